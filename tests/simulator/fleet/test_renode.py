"""Boards in Renode in a fleet: its worker, its modems, a real broker and gateway."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from codegen.firmware.bundle import Bundle
from tests import processes
from tests.patience import wait_until
from tests.simulator.conftest import skip_without
from tests.simulator.fleet.test_firmware import BOARDED, HOSTED, World, other_weights, running

pytestmark = [pytest.mark.slow]


@pytest.fixture
def world(digits: Bundle, tmp_path: Path) -> World:
    skip_without("renode")
    return World(tmp_path, digits, machine="renode")


def test_a_board_in_renode_trains_as_host_code_does(world: World, digits: Bundle) -> None:
    with running(world):
        results = []
        for number, device in enumerate((BOARDED, HOSTED), 1):
            world.start(number, device, other_weights(digits))
            results.append(world.collect(number))
        stats = world.fleet.stats()[BOARDED]
    plan = digits.manifest.plans[1].id
    sums = [np.frombuffer(one["sums"][plan][0]["values"], "<i8") for one in results]
    assert np.array_equal(*sums)
    assert any(sums[0])
    assert stats.bytes_down > len(digits.weights)
    assert (stats.resets, stats.dials) == (0, 1)


def test_a_board_in_renode_whose_power_fails_while_it_writes_takes_part_all_the_same(
    world: World, digits: Bundle
) -> None:
    with running(world):
        world.fleet.cut_power_at_flash_operation(BOARDED, 300, seed=1)
        world.start(1, BOARDED, other_weights(digits))
        result = world.collect(1)
        stats = world.fleet.stats()[BOARDED]
    assert result["accepted"] == 1
    assert stats.dials == 2


def test_a_worker_that_is_killed_leaves_no_renode_behind(world: World) -> None:
    with running(world):
        of_workers = {one.process: emulations_of(one.process) for one in world.fleet.worker_stats()}
        (worker,) = (pid for pid, found in of_workers.items() if found)
        os.kill(worker, signal.SIGKILL)
        wait_until(
            lambda: not [one for one in of_workers[worker] if Path(f"/proc/{one}").exists()],
            "the emulation to end",
        )


def emulations_of(worker: int) -> list[int]:
    """Processes of Renode in sessions whose leader this worker has started."""
    return [one for one in processes.running("Renode") if parent_of(os.getsid(one)) == worker]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
