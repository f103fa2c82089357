"""Gates: what they say of fleets whose truth is known, and their intervals beside scipy's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from scipy import stats

from fleet.campaign.gates import (
    DeviceScore,
    DriftGate,
    Evidence,
    FailureGate,
    Gate,
    Outcome,
    ScoreGate,
    judge_failures,
    judge_scores,
    smallest_detectable_drop,
)

MEASURES = ("mean", "median", "worst-tenth")


def fleet(
    dice: np.random.Generator,
    devices: int,
    held_out: int = 15,
    before: float = 0.9,
    drop: float = 0.0,
    **groups: str,
) -> list[DeviceScore]:
    """Devices whose accuracies differ, with a candidate that is worse by ``drop`` on average."""
    scores = []
    for number in range(devices):
        mine = float(np.clip(before + dice.normal(0, 0.03), 0, 1))
        right = dice.random(held_out) < mine
        # Most answers stay as they were.
        again = np.where(dice.random(held_out) < 0.2, dice.random(held_out) < mine, right)
        spoilt = dice.random(held_out) < drop / max(mine, 1e-9)
        after = again & ~spoilt
        scores.append(
            DeviceScore(f"d{number}", held_out, int(right.sum()), int(after.sum()), groups)
        )
    return scores


def outcomes(
    gate: ScoreGate, runs: int, devices: int, drop: float, held_out: int = 15
) -> dict[Outcome, float]:
    dice = np.random.default_rng(7)
    said = [
        judge_scores(gate, fleet(dice, devices, held_out, drop=drop), seed).outcome
        for seed in range(runs)
    ]
    return {one: said.count(one) / runs for one in Outcome}


def test_a_candidate_at_the_limit_seldom_passes_and_seldom_fails() -> None:
    said = outcomes(ScoreGate(most_drop=0.05), runs=120, devices=60, drop=0.05)
    assert said[Outcome.PASS] <= 0.1
    assert said[Outcome.FAIL] <= 0.1


@pytest.mark.parametrize("measure", MEASURES)
def test_a_candidate_that_is_no_worse_seldom_fails_where_no_drop_is_allowed(measure: str) -> None:
    gate = ScoreGate(measure=measure, most_drop=0.0)  # type: ignore[arg-type]
    assert outcomes(gate, runs=120, devices=60, drop=0.0)[Outcome.FAIL] <= 0.1


@pytest.mark.parametrize("measure", MEASURES)
def test_many_devices_pass_a_candidate_that_is_no_worse_and_fail_one_that_is_poisoned(
    measure: str,
) -> None:
    gate = ScoreGate(measure=measure, most_drop=0.1)  # type: ignore[arg-type]
    assert outcomes(gate, runs=20, devices=400, drop=0.0)[Outcome.PASS] >= 0.95
    assert outcomes(gate, runs=20, devices=400, drop=0.5)[Outcome.FAIL] == 1.0


def test_three_devices_that_all_keep_their_score_are_too_little_evidence() -> None:
    same = [DeviceScore(f"d{number}", 15, 14, 14, {}) for number in range(3)]
    verdict = judge_scores(ScoreGate(), same)
    assert verdict.outcome is Outcome.TOO_LITTLE_EVIDENCE
    assert "over 3 devices, -2.0 points is the limit" in verdict.reason


def test_three_devices_that_lose_nearly_all_are_enough_to_fail() -> None:
    poisoned = [DeviceScore(f"d{number}", 40, 38, 2 + number, {}) for number in range(3)]
    assert judge_scores(ScoreGate(), poisoned).outcome is Outcome.FAIL


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("devices", [0, 1])
def test_no_device_or_one_says_nothing(measure: str, devices: int) -> None:
    gate = ScoreGate(measure=measure)  # type: ignore[arg-type]
    scores = [DeviceScore("d", 15, 15, 15, {})][:devices]
    assert judge_scores(gate, scores).outcome is Outcome.TOO_LITTLE_EVIDENCE
    nothing_held_out = [DeviceScore("d", 0, 0, 0, {})]
    assert judge_scores(gate, nothing_held_out).outcome is Outcome.TOO_LITTLE_EVIDENCE


def test_a_group_that_gets_worse_fails_the_gate_though_the_mean_is_fine() -> None:
    dice = np.random.default_rng(1)
    many = fleet(dice, 300, 50, board="stm32f746")
    few = fleet(dice, 30, 50, drop=0.3, board="stm32f407")
    assert judge_scores(ScoreGate(most_drop=0.1), many + few).outcome is Outcome.PASS
    verdict = judge_scores(ScoreGate(most_drop=0.1, by="board"), many + few)
    assert verdict.outcome is Outcome.FAIL
    assert "of board stm32f407" in verdict.reason
    assert [one.group for one in verdict.findings] == ["stm32f407", "stm32f746"]


def test_a_group_with_too_few_devices_keeps_the_gate_undecided() -> None:
    dice = np.random.default_rng(1)
    scores = fleet(dice, 300, 50, room="north") + fleet(dice, 1, 50, room="south")
    verdict = judge_scores(ScoreGate(most_drop=0.1, by="room"), scores)
    assert verdict.outcome is Outcome.TOO_LITTLE_EVIDENCE
    assert "of room south" in verdict.reason
    nobody = judge_scores(ScoreGate(by="colour"), scores)
    assert nobody.outcome is Outcome.TOO_LITTLE_EVIDENCE
    assert "no device has a colour" in nobody.reason


def changes(scores: Sequence[DeviceScore]) -> np.ndarray:
    return np.array([one.change for one in scores])


def test_the_interval_of_the_mean_is_students_where_devices_differ() -> None:
    dice = np.random.default_rng(3)
    # Half of them fall by a lot, so that devices differ by more than few samples explain.
    scores = fleet(dice, 20, 200) + fleet(dice, 20, 200, drop=0.4)
    (found,) = judge_scores(ScoreGate(confidence=0.95), scores).findings
    expected = stats.ttest_1samp(changes(scores), 0.0).confidence_interval(0.9)
    assert found.interval.low == pytest.approx(expected.low)
    assert found.interval.high == pytest.approx(expected.high)


@pytest.mark.parametrize("devices", [5, 6, 12, 41])
def test_the_interval_of_the_median_is_that_of_the_sign_test(devices: int) -> None:
    scores = fleet(np.random.default_rng(devices), devices, 97)
    (found,) = judge_scores(ScoreGate(measure="median"), scores).findings
    for value, side, alternative in (
        (found.interval.low, "low", "greater"),
        (found.interval.high, "high", "less"),
    ):
        test = stats.quantile_test(changes(scores), q=0, p=0.5, alternative=alternative)
        assert value == pytest.approx(getattr(test.confidence_interval(0.95), side))


def test_a_worst_tenth_of_few_devices_is_nothing_to_judge_by() -> None:
    dice = np.random.default_rng(2)
    gate = ScoreGate(measure="worst-tenth", most_drop=0.5)
    assert judge_scores(gate, fleet(dice, 19)).outcome is Outcome.TOO_LITTLE_EVIDENCE
    assert judge_scores(gate, fleet(dice, 200, 60)).outcome is Outcome.PASS


def test_a_verdict_is_the_same_whenever_it_is_asked_for() -> None:
    scores = fleet(np.random.default_rng(4), 50)
    gate = ScoreGate(measure="worst-tenth")
    assert judge_scores(gate, scores, seed=5) == judge_scores(gate, scores, seed=5)


@pytest.mark.parametrize(
    ("asked", "failed", "outcome"),
    [
        (3, 0, Outcome.TOO_LITTLE_EVIDENCE),
        (100, 0, Outcome.PASS),
        (100, 10, Outcome.TOO_LITTLE_EVIDENCE),
        (100, 30, Outcome.FAIL),
        (3, 3, Outcome.FAIL),
        (0, 0, Outcome.TOO_LITTLE_EVIDENCE),
    ],
)
def test_failures_pass_or_fail_by_how_many_there_can_be(
    asked: int, failed: int, outcome: Outcome
) -> None:
    verdict = judge_failures(FailureGate(most=0.1), asked, {"flash": failed})
    assert verdict.outcome is outcome
    assert f"{failed} of {asked} devices failed" in verdict.reason
    if asked:
        expected = stats.binomtest(failed, asked).proportion_ci(0.9, method="exact")
        (found,) = verdict.findings
        assert found.interval.low == pytest.approx(expected.low)
        assert found.interval.high == pytest.approx(expected.high)


def test_only_failures_of_the_named_classes_count() -> None:
    gate = FailureGate(most=0.1, classes=("flash", "fault"))
    failures = {"flash": 1, "deadline": 60}
    assert judge_failures(gate, 100, failures).outcome is Outcome.PASS
    assert judge_failures(FailureGate(most=0.1), 100, failures).outcome is Outcome.FAIL


def false_alarms(drop: float, campaigns: int = 60, looks: int = 20) -> float:
    """Share of campaigns of 30 devices in which an alarm for more than 5 points goes off."""
    dice, gate = np.random.default_rng(3), DriftGate(most_drop=0.05)
    off = 0
    for _ in range(campaigns):
        said = {
            gate.judge(Evidence(fleet(dice, 30, 40, drop=drop), looks=looks)).outcome
            for _ in range(looks)
        }
        assert Outcome.TOO_LITTLE_EVIDENCE not in said
        off += Outcome.FAIL in said
    return off / campaigns


def test_a_drift_alarm_is_seldom_false_however_often_it_looks() -> None:
    assert false_alarms(drop=0.05) <= 0.1
    assert false_alarms(drop=0.3) == 1.0


def test_a_drift_alarm_that_counted_no_looks_would_go_off_by_chance() -> None:
    dice = np.random.default_rng(3)
    once = ScoreGate(most_drop=0.05, confidence=0.7)
    alarm = DriftGate(most_drop=0.05, confidence=0.7)
    off = Counter[str]()
    for _ in range(60):
        seen = [fleet(dice, 30, 40, drop=0.05) for _ in range(20)]
        off["each"] += any(once.judge(Evidence(one)).outcome is Outcome.FAIL for one in seen)
        off["all"] += any(
            alarm.judge(Evidence(one, looks=20)).outcome is Outcome.FAIL for one in seen
        )
    assert off["each"] > 50
    assert off["all"] <= 0.3 * 60


def test_what_a_plan_says_that_it_can_detect_is_detected_four_times_in_five() -> None:
    gate = ScoreGate(most_drop=0.02)
    drop = smallest_detectable_drop(gate, [40] * 30)
    assert 0.05 < drop < 0.12
    # The rule is careful: answers before and after are alike, which it doesn't count on.
    assert outcomes(gate, runs=60, devices=30, drop=drop, held_out=40)[Outcome.FAIL] >= 0.8
    assert smallest_detectable_drop(gate, [15] * 3) > 0.25
    assert smallest_detectable_drop(gate, [15]) == math.inf
    assert smallest_detectable_drop(gate, [0, 0]) == math.inf


@pytest.mark.parametrize(
    ("gate", "field"),
    [
        ({"gate": "score", "measure": "mode"}, "measure"),
        ({"gate": "score", "most_drop": -0.1}, "most_drop"),
        ({"gate": "score", "confidence": 0.4}, "confidence"),
        ({"gate": "failures", "most": 1.0}, "most"),
        ({"gate": "luck"}, "gate"),
        ({"gate": "score", "limit": 1}, "limit"),
        ({"gate": "drift", "by": "board"}, "by"),
    ],
)
def test_a_gate_that_is_none_is_refused_by_its_field(gate: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        TypeAdapter(Gate).validate_python(gate)
