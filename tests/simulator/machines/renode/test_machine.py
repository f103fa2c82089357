"""Emulations and their processes, where there is a Renode."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen.firmware.bundle import Bundle
from simulator.errors import ImageError
from simulator.machines.registry import MACHINES
from simulator.machines.renode.machine import Emulation, RenodeMachine, shared_emulation
from tests import processes
from tests.device_runtime.host_device import Publication
from tests.patience import wait_until
from tests.simulator.conftest import WorldClock, skip_without
from tests.simulator.line import Line
from tests.simulator.machines.test_registry import built, give_other_weights, spec_of

pytestmark = [pytest.mark.slow]


@pytest.fixture(autouse=True)
def _there_is_one() -> Iterator[None]:
    skip_without("renode")
    yield
    wait_until(lambda: not emulations(), "every Renode of the test to end")


def emulations() -> list[int]:
    """Processes of Renode that this one has started."""
    found = []
    for pid in processes.running("Renode"):
        with open(f"/proc/{os.getsid(pid)}/stat", encoding="ascii") as stat:
            if int(stat.read().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(pid)
    return found


def test_an_emulation_that_ends_leaves_the_shared_one_alone() -> None:
    shared = shared_emulation()
    Emulation().close()
    assert shared_emulation() is shared
    shared.close()
    assert shared_emulation.cache_info().currsize == 0


def test_a_board_in_virtual_time_does_the_same_every_time(digits: Bundle, tmp_path: Path) -> None:
    def life() -> tuple[int, float, list[Publication]]:
        world = WorldClock()
        with built(spec_of(digits, "renode"), world, tmp_path) as machine:
            line = Line(machine, world)
            give_other_weights(line, digits)
            with MACHINES["renode"].counting(machine) as counted:
                line.until(
                    lambda: any(one.topic.endswith("/delta") for one in line.broker.published)
                )
                return counted(), world.now, line.broker.published

    assert life() == life()


def test_a_board_that_is_off_does_not_let_time_run_ahead_of_the_hosts(digits: Bundle) -> None:
    machine = RenodeMachine(digits.board, digits.firmware)
    monitor = shared_emulation().monitor

    def elapsed(which: str) -> float:
        told = monitor.execute("emulation GetTimeSourceInfo")
        found = re.search(rf"Elapsed {which} Time: (\d+):(\d+):([\d.]+)", told)
        assert found is not None, told
        hours, minutes, seconds = found.groups()
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)

    try:
        monitor.execute("sysbus.cpu IsHalted true")
        off = elapsed("Virtual")
        wait_until(lambda: elapsed("Virtual") > off + 1.0, "its time to go on")
        assert elapsed("Virtual") < elapsed("Host") + 1.0
    finally:
        machine.close()


def test_a_board_that_can_not_be_made_leaves_no_process_behind(
    digits: Bundle, world: WorldClock
) -> None:
    for options in ({"clock": world}, {}):
        with pytest.raises(ImageError, match="lie outside of the flash"):
            RenodeMachine(
                digits.board, digits.firmware, flash_content=[(0x9000_0000, b"x")], **options
            )
        wait_until(lambda: not emulations(), "its process to end")
