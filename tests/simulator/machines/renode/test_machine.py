"""Emulations and their processes, where there is a Renode."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from codegen.firmware.bundle import Bundle
from simulator.errors import ImageError
from simulator.machines.renode.machine import Emulation, RenodeMachine, shared_emulation
from tests import processes
from tests.patience import wait_until
from tests.simulator.conftest import WorldClock, skip_without

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


def test_a_board_that_can_not_be_made_leaves_no_process_behind(
    digits: Bundle, world: WorldClock
) -> None:
    for options in ({"clock": world}, {}):
        with pytest.raises(ImageError, match="lie outside of the flash"):
            RenodeMachine(
                digits.board, digits.firmware, flash_content=[(0x9000_0000, b"x")], **options
            )
        wait_until(lambda: not emulations(), "its process to end")
