"""One bundle on every machine that has a name."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from codegen.firmware.bundle import Bundle
from fleet.protocol import Announce, Task, topics
from fleet.protocol.chunks import chunks_of
from simulator.devices.flash_image import read_identity
from simulator.errors import FleetError
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.protocol import Capability, Machine, StopReason
from simulator.machines.registry import MACHINES, boards_of, build_machine, prepare_bundle
from tests.device_runtime.host_device import Publication
from tests.device_runtime.tiny_round import task_for
from tests.simulator.conftest import ALL_OUTSIDE, WorldClock, skip_without
from tests.simulator.line import Line, idle

CONNECT = 0x10
"""First byte of MQTT's first packet."""
CHUNK_BYTES = 512
OLD_FIRMWARES = b"left by another firmware"


def those_that_can(capability: Capability) -> pytest.MarkDecorator:
    names = [name for name, kind in sorted(MACHINES.items()) if capability in kind.capabilities]
    return pytest.mark.parametrize("name", names, indirect=True)


def spec_of(bundle: Bundle, machine: str) -> DeviceSpec:
    return DeviceSpec(
        "cow",
        bundle.path,
        "moo",
        np.zeros((4, 8, 8, 1), np.int8),
        np.arange(4),
        fleet="barn",
        machine=machine,
        battery_percent=70.0,
        charging=True,
        flash=((bundle.manifest.flash.slot_b.address, OLD_FIRMWARES),),
    )


@contextmanager
def built(spec: DeviceSpec, world: WorldClock, folder: Path) -> Iterator[Machine]:
    prepare_bundle(spec.machine, spec.bundle, folder / "prepared")
    machine = build_machine(spec, folder / "prepared", world)
    try:
        yield machine
    finally:
        machine.close()


@pytest.fixture(params=sorted(MACHINES))
def name(request: pytest.FixtureRequest) -> str:
    skip_without(request.param)
    return str(request.param)


@pytest.fixture
def bundle(name: str, compiled: Callable[[str], Bundle]) -> Bundle:
    boards = boards_of(MACHINES[name])
    return compiled("stm32f407" if "stm32f407" in boards else boards[0])


@pytest.fixture
def machine(name: str, bundle: Bundle, world: WorldClock, tmp_path: Path) -> Iterator[Machine]:
    with built(spec_of(bundle, name), world, tmp_path) as made:
        yield made


def other_weights(bundle: Bundle) -> bytes:
    return bytes([bundle.weights[0] ^ 1]) + bundle.weights[1:]


def give_other_weights(line: Line, bundle: Bundle) -> None:
    """A task whose weights the device has to fetch and to write to its flash."""
    blob = other_weights(bundle)
    digest = hashlib.sha256(blob).digest()
    for number, payload in chunks_of(blob, CHUNK_BYTES):
        line.broker.send(Publication(topics.blob("barn", digest, number), payload, True))
    plan = bytes.fromhex(bundle.manifest.plans[0].id)
    task: Task = task_for(plan, blob, chunk_bytes=CHUNK_BYTES)
    line.broker.send(
        Publication("fleet/barn/to/cow/task", task.encode(), True, "fleet/barn/gw/gw/cow/delta")
    )


def test_the_client_dials_and_says_who_it_is_in_the_time_it_is_given(
    machine: Machine, world: WorldClock
) -> None:
    idle(machine, world)
    while not machine.data_terminal_ready:
        world.now += machine.tick_milliseconds
        idle(machine, world)
    assert machine.hang_ups == 0
    machine.set_data_carrier_detect(True)
    said = b""
    for _ in range(100):
        world.now += 10.0
        idle(machine, world)
        said += machine.take_transmitted()
    assert said[0] == CONNECT
    assert b"\0\3cow" in said
    assert machine.traffic.up == len(said)
    assert machine.traffic.down == 0


def test_a_broker_that_says_nothing_is_given_up_when_its_time_is_over(
    machine: Machine, world: WorldClock
) -> None:
    idle(machine, world)
    assert machine.data_terminal_ready
    machine.set_data_carrier_detect(True)
    while world.now < 19_000.0:
        idle(machine, world)
        world.now += min(machine.tick_milliseconds, 1000.0)
    assert machine.hang_ups == 0
    while world.now < 21_000.0:
        idle(machine, world)
        world.now += min(machine.tick_milliseconds, 1000.0)
    assert machine.hang_ups == 1


def test_bytes_are_counted_both_ways(machine: Machine, world: WorldClock) -> None:
    line = Line(machine, world)
    line.until(lambda: bool(line.broker.published))
    assert line.broker.connects == 1
    assert machine.traffic.up > machine.traffic.down > 0


def test_what_is_on_its_flash_can_be_read(machine: Machine, bundle: Bundle) -> None:
    where = bundle.manifest.flash.identity
    identity = read_identity(machine.read_memory(where.address, where.bytes))
    assert (identity.device, identity.fleet) == ("cow", "barn")


def test_its_flash_has_what_firmware_before_has_left(machine: Machine, bundle: Bundle) -> None:
    slot = bundle.manifest.flash.slot_b.address
    assert machine.read_memory(slot, len(OLD_FIRMWARES)) == OLD_FIRMWARES


def test_the_battery_is_what_the_firmware_says(
    machine: Machine, name: str, world: WorldClock
) -> None:
    line = Line(machine, world)
    line.until(lambda: bool(line.broker.published))
    announce = Announce.decode(line.broker.published[0].payload)
    charging = Capability.CHARGING in MACHINES[name].capabilities
    assert announce.battery == 70 | (0x80 if charging else 0)


def test_stack_use_is_told_where_that_is_declared(
    machine: Machine, name: str, bundle: Bundle, world: WorldClock
) -> None:
    idle(machine, world)
    told = machine.stack_high_water_bytes()
    if Capability.STACK_USE in MACHINES[name].capabilities:
        assert 100 < told < bundle.board.stack_bytes
    else:
        assert told == 0


@those_that_can(Capability.POWER_CUT)
def test_a_power_cut_in_a_flash_operation_stops_it_until_power_is_back(
    machine: Machine, world: WorldClock, bundle: Bundle
) -> None:
    line = Line(machine, world)
    give_other_weights(line, bundle)
    machine.cut_power_at_flash_operation(3, seed=1)
    line.until(lambda: line.reason is StopReason.POWER_CUT)
    assert machine.run(1000.0) is StopReason.POWER_CUT
    assert machine.flash_operations == 3
    assert not machine.data_terminal_ready
    machine.power_on()
    assert machine.flash_operations == 3
    line.until(lambda: machine.flash_operations > 100)
    assert line.broker.connects == 2
    assert machine.fault is None


@those_that_can(Capability.POWER_CUT)
def test_an_armed_power_cut_outlives_power_on_and_can_be_taken_back(
    machine: Machine, world: WorldClock, bundle: Bundle
) -> None:
    line = Line(machine, world)
    line.until(lambda: bool(line.broker.published))
    machine.cut_power_at_flash_operation(3, seed=1)
    machine.power_on()
    line.hang_up()
    give_other_weights(line, bundle)
    line.until(lambda: line.reason is StopReason.POWER_CUT)
    assert machine.flash_operations == 3
    machine.cut_power_at_flash_operation(1, seed=1)
    machine.cut_power_at_flash_operation(0, seed=1)
    machine.power_on()
    line.until(lambda: machine.flash_operations > 100)
    assert machine.fault is None


@those_that_can(Capability.EXTERNAL_FLASH)
def test_weights_in_an_external_flash_are_staged_through_power_cuts(
    name: str, compiled: Callable[[str], Bundle], world: WorldClock, tmp_path: Path
) -> None:
    bundle = compiled(ALL_OUTSIDE)
    slot = bundle.manifest.flash.slot_a
    assert slot.flash == bundle.manifest.flash.samples.flash == "external"
    with built(spec_of(bundle, name), world, tmp_path) as machine:
        line = Line(machine, world)
        give_other_weights(line, bundle)
        for operations in (1, 40, 300):
            machine.cut_power_at_flash_operation(operations, seed=operations)
            line.until(lambda: line.reason is StopReason.POWER_CUT)
            machine.power_on()
            line.step()
        line.until(lambda: any(one.topic.endswith("/delta") for one in line.broker.published))
        blob = other_weights(bundle)
        slots = (bundle.manifest.flash.slot_a, bundle.manifest.flash.slot_b)
        assert any(blob in machine.read_memory(one.address, one.bytes) for one in slots)
        assert machine.fault is None


@those_that_can(Capability.INSTRUCTION_COUNT)
def test_what_it_executes_is_counted(machine: Machine, name: str, world: WorldClock) -> None:
    with MACHINES[name].counting(machine) as counted:
        assert counted() == 0
        idle(machine, world)
        booted = counted()
        world.now += 2000.0
        idle(machine, world)
        assert 0 < booted < counted()


def test_host_code_does_not_import_the_emulator(digits: Bundle, tmp_path: Path) -> None:
    prepare_bundle("host", digits.path, tmp_path / "prepared")
    program = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "import simulator.fleet.worker\n"
        "from simulator.machines.device_spec import DeviceSpec\n"
        "from simulator.machines.registry import build_machine\n"
        "none = np.zeros((0, 8, 8, 1), np.int8), np.zeros(0, np.int64)\n"
        "spec = DeviceSpec('cow', Path(sys.argv[1]), 'moo', *none, machine='host')\n"
        "build_machine(spec, Path(sys.argv[2])).run(1.0)\n"
        "print('unicorn' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, str(digits.path), str(tmp_path / "prepared")]
    assert subprocess.run(command, check=True, capture_output=True).stdout.strip() == b"False"


def test_a_name_that_no_machine_has_is_refused_with_those_there_are(
    digits: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(
        FleetError, match=r"device cow.*no machine 'abacus'.*host, qemu, renode, unicorn"
    ):
        build_machine(spec_of(digits, "abacus"), tmp_path)


def test_a_bundle_for_a_board_that_a_machine_is_not_is_refused_with_machines_that_are(
    digits: Bundle, tmp_path: Path
) -> None:
    wanted = r"machine qemu doesn't run board stm32f407, only mps2-an383.*host or renode or unicorn"
    with pytest.raises(FleetError, match=wanted):
        prepare_bundle("qemu", digits.path, tmp_path / "prepared")
    with pytest.raises(FleetError, match=f"device cow.*{wanted}"):
        build_machine(spec_of(digits, "qemu"), tmp_path)
