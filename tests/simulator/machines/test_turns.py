"""Machines of one image take turns on one engine, and none notices the others."""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codegen.firmware.bundle import Bundle
from fleet.protocol import topics
from simulator.machines.counting import InstructionCounter
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.protocol import StopReason
from simulator.machines.registry import build_machine, flash_content
from simulator.machines.unicorn import UnicornMachine
from tests.device_runtime.host_device import Publication
from tests.device_runtime.tiny_round import task_for
from tests.simulator.conftest import WorldClock
from tests.simulator.line import Line

SLICE = 3.0


def spec_of(bundle: Bundle, number: int) -> DeviceSpec:
    samples = np.random.default_rng(number).integers(-128, 128, (9, 8, 8, 1)).astype(np.int8)
    return DeviceSpec(f"cow-{number}", bundle.path, "moo", samples, np.arange(9), fleet="barn")


MakeDevice = Callable[..., "Device"]


@dataclass
class Device:
    """A machine of a fleet, its line, and how it is run in small slices."""

    name: str
    machine: UnicornMachine
    line: Line

    def a_round(self, bundle: Bundle, power_cut_at: int = 0) -> Iterator[None]:
        """Boot and train up to the delta, or a power cut, with pauses for others in between."""
        plan = bundle.manifest.plans[-1]
        task = task_for(bytes.fromhex(plan.id), bundle.weights, seed=7)
        topic = f"fleet/barn/gw/gw/{self.name}/delta"
        line, machine = self.line, self.machine
        line.broker.send(Publication(topics.task("barn", self.name), task.encode(), True, topic))
        if power_cut_at:
            machine.cut_power_at_flash_operation(power_cut_at, 5)
        for _ in range(2_000):
            if any(said.topic == topic for said in line.broker.published):
                return
            reason = machine.run(SLICE)
            if reason is StopReason.SLICE_OVER:
                line.world.now += SLICE
            elif reason is StopReason.POWER_CUT:
                return
            else:
                line.step()
            yield
        pytest.fail(f"{self.name} hasn't sent its delta")

    def state(self) -> dict[str, Any]:
        """All that can be known of it."""
        machine, flash = self.machine, self.machine.board.flash
        return {
            "published": self.line.broker.published,
            "clocks": machine.clock.clocks,
            "now": machine.clock.now,
            "registers": [machine.read_register(number) for number in range(66, 82)],
            "pc": machine.pc,
            "sram": bytes(machine.sram),
            "flash": machine.read_memory(flash.address, flash.bytes),
            "operations": machine.flash_operations,
            "traffic": machine.traffic,
            "stack": machine.stack_high_water_bytes(),
        }


@pytest.fixture
def make_device(digits: Bundle) -> Iterator[MakeDevice]:
    machines: list[UnicornMachine] = []

    def make(
        number: int, *, takes_turns: bool = True, left_there: tuple[tuple[int, bytes], ...] = ()
    ) -> Device:
        world, spec = WorldClock(), spec_of(digits, number)
        machine = UnicornMachine(
            digits.board,
            digits.firmware,
            clock=world,
            seed=spec.seed,
            flash_content=[*flash_content(spec), *left_there],
            takes_turns=takes_turns,
        )
        machines.append(machine)
        return Device(spec.device, machine, Line(machine, world))

    yield make
    for machine in machines:
        machine.close()


def in_turn(*rounds: Iterator[None]) -> None:
    for _ in itertools.zip_longest(*rounds):
        pass


def test_devices_that_take_turns_are_to_the_last_bit_as_each_alone(
    digits: Bundle, make_device: MakeDevice
) -> None:
    cuts = {1: 0, 2: 3, 3: 9}
    together = [make_device(number) for number in cuts]
    in_turn(*(one.a_round(digits, cut) for one, cut in zip(together, cuts.values(), strict=True)))
    for one, (number, cut) in zip(together, cuts.items(), strict=True):
        alone = make_device(number, takes_turns=False)
        in_turn(alone.a_round(digits, cut))
        found, wanted = one.state(), alone.state()
        for name, value in wanted.items():
            assert found[name] == value, f"{name} of {one.name}"


def test_a_device_that_is_added_later_is_as_the_first(
    digits: Bundle, make_device: MakeDevice
) -> None:
    first = make_device(1)
    in_turn(first.a_round(digits))
    wanted = first.state()
    later = make_device(1)
    in_turn(later.a_round(digits))
    assert later.state() == wanted
    assert first.state() == wanted


def test_instructions_are_counted_of_the_own_turns_only(
    digits: Bundle, make_device: MakeDevice
) -> None:
    totals = []
    for others in ([], [2, 3]):
        device = make_device(1)
        rounds = [one.a_round(digits) for one in (device, *map(make_device, others))]
        with InstructionCounter(device.machine) as counter:
            in_turn(*(itertools.islice(one, 12) for one in rounds))
        totals.append(counter.by_function())
        device.machine.close()
    assert totals[0] == totals[1]
    assert totals[0]["tf_sample_log_open"] > 0


def test_code_that_a_probe_has_changed_is_that_devices_own(
    digits: Bundle, make_device: MakeDevice
) -> None:
    broken, whole = make_device(1), make_device(2)
    begun = [broken.a_round(digits), whole.a_round(digits)]
    for one in begun:
        next(one)
    place = broken.machine.image.address_of("tf_client_poll")
    broken.machine.write_flash(place, b"\xff\xde")  # udf #255
    in_turn(*begun[1:])
    broken.machine.power_on()
    for _ in range(50):
        broken.machine.run(SLICE)
    assert broken.machine.last_fault is not None
    assert broken.machine.last_fault.pc == place
    assert whole.machine.last_fault is None
    in_turn(make_device(3).a_round(digits))


def test_code_that_is_left_in_a_devices_flash_is_what_it_runs(
    digits: Bundle, make_device: MakeDevice
) -> None:
    whole = make_device(1)
    in_turn(whole.a_round(digits))
    place = whole.machine.image.address_of("tf_client_poll")
    broken = make_device(2, left_there=((place, b"\xff\xde"),))
    for _ in range(20):
        broken.machine.run(SLICE)
    assert broken.machine.last_fault is not None
    assert broken.machine.last_fault.pc == place


def test_a_reset_of_one_leaves_the_others_where_they_were(
    digits: Bundle, make_device: MakeDevice
) -> None:
    first, second = make_device(1), make_device(2)
    rounds = [first.a_round(digits), second.a_round(digits)]
    for _ in range(20):
        next(rounds[0])
    before = first.state()
    second.machine.power_on(keep_sram=True)
    second.machine.run(SLICE)
    second.machine.close()
    assert first.state() == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_booted_device_costs_what_it_has_written(digits: Bundle) -> None:
    def private_kilobytes() -> int:
        gc.collect()
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))

    def booted(number: int) -> UnicornMachine:
        machine = build_machine(spec_of(digits, number), Path(), lambda: 0.0)
        assert isinstance(machine, UnicornMachine)
        machine.run(1000.0)
        assert machine.data_terminal_ready
        return machine

    machines = [booted(0)]
    before = private_kilobytes()
    machines += [booted(number) for number in range(1, 21)]
    assert (private_kilobytes() - before) / 20 < 256
    for machine in machines:
        machine.close()
