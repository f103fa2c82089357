"""Windows of virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simulator.experiments.window_clock import OwnWall, WindowClock
from simulator.virtual.device import NEVER, Said
from simulator.virtual.offline import Score
from simulator.virtual.pool import Arrivals, DevicePool, Figures


class NoDevices(DevicePool):
    @property
    def next_due(self) -> int:
        return NEVER

    def begin(self, until: int, arrivals: Arrivals) -> None:
        pass

    def finish(self) -> list[Said]:
        return []

    def figures(self, now: int) -> dict[int, Figures]:
        return {}

    def infer(self, numbers: Sequence[int]) -> dict[int, Score]:
        return {}

    def each(self, job: Any, numbers: Sequence[int]) -> dict[int, Any]:
        return {}

    def close(self) -> None:
        pass


def test_what_is_due_between_the_last_two_nanoseconds_of_a_wait_happens_in_it() -> None:
    clock = WindowClock(NoDevices(), lambda said: None)
    seen: list[float] = []
    for at in (0.5, 1 - 1.4e-9, 1 - 0.7e-9, 1 - 0.2e-9, 1.0):
        clock.call_at(at, lambda: seen.append(clock.monotonic()))
    clock.wait(1.0, lambda: False)
    assert seen == [0.5, 1 - 1.4e-9, 1 - 0.7e-9, 1 - 0.2e-9, 1.0]
    assert clock.monotonic() == 1.0


def test_a_machines_own_time_of_day_steps_alone() -> None:
    clock = WindowClock(NoDevices(), lambda said: None, wall=1000.0)
    own = OwnWall(clock)
    own.step_wall(-300.0)
    own.sleep(5.0)
    assert (own.monotonic(), own.wall()) == (5.0, 705.0)
    clock.step_wall(60.0)
    assert (clock.wall(), own.wall()) == (1065.0, 765.0)
