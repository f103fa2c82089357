"""What the demo tells of a round while it runs."""

from __future__ import annotations

import pytest

from fleet.coordinator.service import ProgressEvent
from fleet.demo import orchestrator
from fleet.demo.orchestrator import (
    DemoSettings,
    RoundProgress,
    campaign_config,
    privacy_lines,
)
from fleet.store import RoundRecord
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


def test_a_private_run_says_what_was_unmasked_and_that_one_owner_could_see_all() -> None:
    settings = DemoSettings(devices=24, private=True)
    config = campaign_config(settings)
    assert config.masking is not None
    assert config.masking.least_devices == 6
    assert campaign_config(DemoSettings(devices=24)).masking is None
    sets = [
        {"devices": 8, "counted": True, "why": ""},
        {"devices": 7, "counted": True, "why": ""},
        {"devices": 5, "counted": False, "why": "too-few"},
    ]
    rounds = [
        RoundRecord(0, "score-first", {}, "done", {}),
        RoundRecord(1, "train", {}, "done", {"sets": sets}),
    ]
    first, *others = privacy_lines(config, rounds)
    assert first == (
        "Masked and signed: 2 of 3 sets were unmasked, the smallest of 7 devices; "
        "others counted nothing: too-few."
    )
    assert any("one owner" in line for line in others)
