"""One bundle on every machine that has a name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codegen.compile import compile_model
from codegen.firmware.bundle import Bundle
from simulator.devices.flash_image import read_identity
from simulator.errors import FleetError
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.protocol import Machine, StopReason
from simulator.machines.registry import MACHINES, build_machine, machine_kind
from tests.simulator.conftest import WorldClock

ROOT = Path(__file__).parents[3]
DIGITS = ROOT / "examples" / "digits"
CONNECT = 0x10
"""First byte of MQTT's first packet."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return compile_model(
        DIGITS / "digits.onnx",
        "stm32f407",
        None,
        DIGITS / "calibration.npz",
        tmp_path_factory.mktemp("bundle") / "digits",
        ROOT / "fleet" / "protocol" / "tinyfleet.cddl",
    )


@pytest.fixture(scope="module")
def spec(bundle: Bundle) -> DeviceSpec:
    samples = np.zeros((4, 8, 8, 1), np.int8)
    return DeviceSpec("cow", bundle.path, "moo", samples, np.arange(4), fleet="barn")


@pytest.fixture(params=sorted(MACHINES))
def machine(
    request: pytest.FixtureRequest, spec: DeviceSpec, world: WorldClock, tmp_path: Path
) -> Iterator[Machine]:
    prepared = tmp_path / "prepared"
    machine_kind(request.param).prepare(spec.bundle, prepared)
    made = build_machine(replace(spec, machine=request.param), prepared, world)
    yield made
    made.close()


def idle(machine: Machine, world: WorldClock) -> None:
    """Run it until it waits for something, in the time that it says it needs."""
    while machine.run(1000.0) is StopReason.SLICE_OVER:
        world.now += 1.0


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


def test_what_is_on_its_flash_can_be_read(machine: Machine, bundle: Bundle) -> None:
    where = bundle.manifest.flash.identity
    identity = read_identity(machine.read_memory(where.address, where.bytes))
    assert (identity.device, identity.fleet) == ("cow", "barn")


def test_power_comes_back_after_a_cut(machine: Machine, world: WorldClock) -> None:
    idle(machine, world)
    before = machine.flash_operations
    machine.power_on()
    idle(machine, world)
    assert machine.fault is None
    assert machine.flash_operations >= before


def test_a_name_that_no_machine_has_is_refused_with_those_there_are(
    spec: DeviceSpec, tmp_path: Path
) -> None:
    with pytest.raises(FleetError, match=r"device cow.*no machine 'abacus'.*host, unicorn"):
        build_machine(replace(spec, machine="abacus"), tmp_path)
