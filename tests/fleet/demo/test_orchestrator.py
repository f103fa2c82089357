"""What the demo tells of a round while it runs."""

from __future__ import annotations

import pytest

from fleet.coordinator.service import ProgressEvent
from fleet.demo import orchestrator
from fleet.demo.orchestrator import RoundProgress
from tests.patience import wait_until


class Told:
    def __init__(self) -> None:
        self.phases: list[tuple[str, int, int]] = []

    def phase(self, name: str, done: int, of: int) -> None:
        self.phases.append((name, done, of))

    def say(self, text: str) -> None:
        raise AssertionError(text)


def test_accepted_deltas_are_told_before_the_coordinator_hears_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(orchestrator, "LOOK_SECONDS", 0.001)
    told, counts = Told(), iter(range(1, 4))
    label = "round 2 of 5"
    with RoundProgress(lambda number: next(counts, 4), 5, told) as rounds:
        rounds.note(ProgressEvent("round-started", 2, {"wanted": 4}))
        wait_until(lambda: (label, 3, 4) in told.phases, lambda: told.phases)
        # All are told of when the round is over, even where the gateways know of them before.
        assert (label, 4, 4) not in told.phases
        rounds.note(ProgressEvent("round-done", 2, {}))
        assert told.phases[-1] == (label, 4, 4)
        known = len(told.phases)
        rounds.note(ProgressEvent("run-submitted", None, {"run": 1}))
    assert len(told.phases) == known
    assert told.phases[0] == (label, 0, 4)
