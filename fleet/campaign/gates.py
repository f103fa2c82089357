"""Gates: whether a candidate may go on, by what devices measured on their own held-out samples.

Every device scores the weights that it had and the candidate on the same samples, so that devices
are compared with themselves. A device may hold fifteen samples and a canary three devices: a gate
therefore looks at an interval that holds the true value with its confidence, and has three
outcomes. It passes where the whole interval is on the right side of the limit, fails where the
whole interval is on the wrong one, and else says that there is too little evidence.

Pure functions; who waits, widens a stage or rolls back decides by the outcome.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field, model_validator

from fleet.protocol import fields

Share = Annotated[float, Field(ge=0.0, le=1.0)]
WORST_SHARE = 0.1
RESAMPLES = 2000
"""Of the bootstrap; the interval's own error is then below a tenth of its width."""
LEAST_FOR_WORST = 20
"""Devices, below which a worst tenth is one device or two, and no interval can be had."""
POWER = 0.8


class Outcome(StrEnum):
    """What a gate says."""

    PASS = "pass"
    FAIL = "fail"
    TOO_LITTLE_EVIDENCE = "too little evidence"


@dataclass(frozen=True)
class DeviceScore:
    """One device's answers to its held-out samples, with the weights of before and the candidate.

    `groups` are what gates may look at apart: `board`, and its labels.
    """

    device: str
    held_out: int
    correct_before: int
    correct_after: int
    groups: Mapping[str, str]

    @property
    def change(self) -> float:
        """Accuracy with the candidate less accuracy before."""
        return (self.correct_after - self.correct_before) / self.held_out


@dataclass(frozen=True)
class Interval:
    """Where a value lies, each side with the gate's confidence; endless where nobody can say."""

    low: float
    high: float


@dataclass(frozen=True)
class Finding:
    """What a gate found of one group of devices (all, where `group` is empty)."""

    outcome: Outcome
    measured: float
    interval: Interval
    devices: int
    group: str = ""


@dataclass(frozen=True)
class Verdict:
    """A gate's outcome with what it rests on.

    What was measured may not be below `limit`, or above it where `is_ceiling`.
    """

    outcome: Outcome
    reason: str
    findings: tuple[Finding, ...]
    gate: str = ""
    limit: float | None = None
    is_ceiling: bool = False


@dataclass(frozen=True)
class Evidence:
    """What is known when a gate is asked.

    `scores` are those of the base and of what is judged, `failures` are devices by class of reason,
    `reached` how many delivered or failed. A gate that watches the training is asked `looks` times
    in all. `seed` is the bootstrap's.
    """

    scores: Sequence[DeviceScore] = ()
    reached: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    looks: int = 1
    seed: int = 0


class _Gate(BaseModel, ABC):
    model_config = fields.FORM

    watches: ClassVar[bool] = False
    """Whether it is asked after every training round, and not only at the stage's end: a failure
    then ends the stage at once, nothing else counts."""

    scores: ClassVar[bool] = False
    """Whether it looks at accuracy, which models of values don't have."""

    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Of each side of the interval."""

    @abstractmethod
    def judge(self, evidence: Evidence) -> Verdict:
        """What it says."""

    def smallest_drops(self, held_out: Sequence[int], looks: int) -> dict[str, float]:
        """By what it looks at: the smallest drop that it would notice with 80 % probability.

        For devices with so many held-out samples. Nothing where it doesn't look at scores.
        """
        del held_out, looks
        return {}


class ScoreGate(_Gate):
    """Accuracy on held-out samples may not fall by more than `most_drop`.

    `measure`: the mean or the median over devices of each device's change, or the change of the
    accuracy that a tenth of the devices stays below. With `by` (`board`, or a label) every group
    has to pass by itself; the confidence is divided among them.
    """

    scores: ClassVar[bool] = True

    gate: Literal["score"] = "score"
    measure: Literal["mean", "median", "worst-tenth"] = "mean"
    """Of the devices' changes, or the change of the accuracy that a tenth of them stays below."""
    most_drop: Share = 0.02
    """Accuracy may fall by so much: 0.02 is two points."""
    by: str = ""
    """`board`, `gateway` or a label: each group has to pass by itself."""

    def judge(self, evidence: Evidence) -> Verdict:
        """See `judge_scores`."""
        return judge_scores(self, evidence.scores, evidence.seed)

    def smallest_drops(self, held_out: Sequence[int], looks: int) -> dict[str, float]:
        """See `smallest_detectable_drop`."""
        del looks
        what = f"{self.measure} by {self.by}" if self.by else self.measure
        return {what: smallest_detectable_drop(self, held_out)}


class DriftGate(_Gate):
    """An alarm: accuracy with the weights of any round may not fall by more than `most_drop`.

    Devices that train score what they begin with, so that a campaign whose training leads away ends
    rounds before its stage does. It is about the mean of the devices' changes since the stage
    began. The confidence is that all its looks together raise no false alarm (Bonferroni); it never
    says that there is too little evidence.
    """

    watches: ClassVar[bool] = True
    scores: ClassVar[bool] = True

    gate: Literal["drift"] = "drift"
    most_drop: Share = 0.05
    """Accuracy may fall by so much since the stage began."""

    def judge(self, evidence: Evidence) -> Verdict:
        """It fails, or it passes."""
        verdict = judge_scores(self._of_a_look(evidence.looks), evidence.scores, evidence.seed)
        outcome = Outcome.FAIL if verdict.outcome is Outcome.FAIL else Outcome.PASS
        reason = f"drift: {verdict.reason}"
        return replace(verdict, outcome=outcome, reason=reason, gate=self.gate)

    def smallest_drops(self, held_out: Sequence[int], looks: int) -> dict[str, float]:
        """See `smallest_detectable_drop`; of one look."""
        return {"drift": smallest_detectable_drop(self._of_a_look(looks), held_out)}

    def _of_a_look(self, looks: int) -> ScoreGate:
        confidence = 1.0 - (1.0 - self.confidence) / max(1, looks)
        return ScoreGate(most_drop=self.most_drop, confidence=confidence)


class FailureGate(_Gate):
    """At most this share of the devices that were asked may fail, for the reasons in `classes`.

    Without classes all reasons count.
    """

    watches: ClassVar[bool] = True

    gate: Literal["failures"] = "failures"
    most: Share = 0.1
    """Share of the devices that were asked."""
    classes: tuple[str, ...] = ()
    """Reasons that count; all where empty."""

    @model_validator(mode="after")
    def _something_may_fail(self) -> FailureGate:
        if self.most == 1.0:
            raise ValueError("most: a gate that lets all devices fail can't fail; leave it out")
        return self

    def judge(self, evidence: Evidence) -> Verdict:
        """See `judge_failures`."""
        return judge_failures(self, evidence.reached, evidence.failures)


Gate = Annotated[ScoreGate | FailureGate | DriftGate, Field(discriminator="gate")]


def judge_scores(gate: ScoreGate, scores: Sequence[DeviceScore], seed: int = 0) -> Verdict:
    """What the gate says of these devices; `seed` is the bootstrap's."""
    usable = [one for one in scores if one.held_out > 0]
    groups: dict[str, list[DeviceScore]] = {}
    if gate.by:
        for one in usable:
            if gate.by in one.groups:
                groups.setdefault(one.groups[gate.by], []).append(one)
    else:
        groups[""] = usable
    # Bonferroni: so that many groups don't make a failure likely by chance.
    error = (1.0 - gate.confidence) / max(1, len(groups))
    findings = tuple(
        _finding(gate, name, members, error, seed) for name, members in sorted(groups.items())
    )
    return _verdict(gate, findings)


def _finding(
    gate: ScoreGate, group: str, members: Sequence[DeviceScore], error: float, seed: int
) -> Finding:
    measured, interval = _MEASURES[gate.measure](members, error, seed)
    outcome = _outcome(interval.low >= -gate.most_drop, interval.high < -gate.most_drop)
    return Finding(outcome, measured, interval, len(members), group)


def _outcome(is_right: bool, is_wrong: bool) -> Outcome:
    if is_right:
        return Outcome.PASS
    return Outcome.FAIL if is_wrong else Outcome.TOO_LITTLE_EVIDENCE


def _verdict(gate: ScoreGate, findings: tuple[Finding, ...]) -> Verdict:
    what = f"{gate.measure} change of accuracy"
    failed = [one for one in findings if one.outcome is Outcome.FAIL]
    unsure = [one for one in findings if one.outcome is Outcome.TOO_LITTLE_EVIDENCE]
    if failed:
        worst = min(failed, key=lambda one: one.interval.high)
        outcome, shown = Outcome.FAIL, worst
    elif unsure or not findings:
        outcome = Outcome.TOO_LITTLE_EVIDENCE
        if not findings:
            why = f"no device has a {gate.by or 'score'} to judge by"
            return Verdict(outcome, why, findings, gate.gate, -gate.most_drop)
        shown = min(unsure, key=lambda one: one.interval.low)
    else:
        outcome, shown = Outcome.PASS, min(findings, key=lambda one: one.interval.low)
    where = f" of {gate.by} {shown.group}" if gate.by else ""
    return Verdict(
        outcome,
        f"{what}{where}: {_points(shown.measured)}, at {100 * gate.confidence:.0f} % between "
        f"{_points(shown.interval.low)} and {_points(shown.interval.high)} "
        f"over {shown.devices} devices, {_points(-gate.most_drop)} is the limit",
        findings,
        gate.gate,
        -gate.most_drop,
    )


def _points(share: float) -> str:
    return "unknown" if not math.isfinite(share) else f"{100 * share:+.1f} points"


# ---- measures: value and interval, with `error` on each side ---------------------------------


def _mean_change(members: Sequence[DeviceScore], error: float, seed: int) -> tuple[float, Interval]:
    del seed
    if not members:
        return math.nan, Interval(-math.inf, math.inf)
    changes = np.array([one.change for one in members])
    measured = float(changes.mean())
    if len(members) < 2:
        return measured, Interval(-math.inf, math.inf)
    spread = max(float(changes.var(ddof=1)), sampling_variance(members))
    half = _student(error, len(members) - 1) * math.sqrt(spread / len(members))
    return measured, Interval(measured - half, measured + half)


def sampling_variance(members: Iterable[DeviceScore]) -> float:
    """Mean over devices of the variance that few held-out samples give a change, at most.

    Of two accuracies a, b on the same n samples: (a(1-a) + b(1-b)) / n, if their answers were
    independent; they are alike, so that it is less. With one right and one wrong answer added
    (Laplace), lest three devices that all have the same score look certain.
    """
    each = []
    for one in members:
        before = (one.correct_before + 1) / (one.held_out + 2)
        after = (one.correct_after + 1) / (one.held_out + 2)
        each.append((before * (1 - before) + after * (1 - after)) / one.held_out)
    return float(np.mean(each))


def _median_change(
    members: Sequence[DeviceScore], error: float, seed: int
) -> tuple[float, Interval]:
    del seed
    changes = np.sort([one.change for one in members])
    measured = float(np.median(changes)) if len(changes) else math.nan
    # The number of devices below the true median is binomial with one half.
    rank, below = -1, 0.0
    for count in range(len(changes)):
        below += math.comb(len(changes), count) * 0.5 ** len(changes)
        if below > error:
            break
        rank = count
    if rank < 0:
        return measured, Interval(-math.inf, math.inf)
    return measured, Interval(float(changes[rank]), float(changes[-1 - rank]))


def _worst_tenth_change(
    members: Sequence[DeviceScore], error: float, seed: int
) -> tuple[float, Interval]:
    before = np.array([one.correct_before / one.held_out for one in members])
    after = np.array([one.correct_after / one.held_out for one in members])
    if not members:
        return math.nan, Interval(-math.inf, math.inf)
    measured = float(np.quantile(after, WORST_SHARE) - np.quantile(before, WORST_SHARE))
    if len(members) < LEAST_FOR_WORST:
        return measured, Interval(-math.inf, math.inf)
    # A device keeps its pair of scores: devices are drawn, not scores.
    drawn = np.random.default_rng(seed).integers(0, len(members), (RESAMPLES, len(members)))
    changes = np.quantile(after[drawn], WORST_SHARE, axis=1)
    changes = changes - np.quantile(before[drawn], WORST_SHARE, axis=1)
    low, high = np.quantile(changes, [error, 1.0 - error])
    return measured, Interval(float(low), float(high))


_MEASURES = {
    "mean": _mean_change,
    "median": _median_change,
    "worst-tenth": _worst_tenth_change,
}


# ---- failures --------------------------------------------------------------------------------


def judge_failures(gate: FailureGate, asked: int, failures: Mapping[str, int]) -> Verdict:
    """What the gate says where so many devices were asked and failed, by class of reason.

    The interval of the share is that of Clopper and Pearson: it holds whatever the number.
    """
    failed = sum(
        count for kind, count in failures.items() if not gate.classes or kind in gate.classes
    )
    if not 0 <= failed <= asked:
        raise ValueError(f"{failed} failures of {asked} devices")
    error = 1.0 - gate.confidence
    share = failed / asked if asked else math.nan
    interval = Interval(_beta(error, failed, asked - failed + 1), 1.0)
    interval = Interval(interval.low, 1.0 - _beta(error, asked - failed, failed + 1))
    outcome = _outcome(interval.high <= gate.most, interval.low > gate.most)
    finding = Finding(outcome, share, interval, asked)
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(failures.items()) if count)
    reason = (
        f"{failed} of {asked} devices failed ({kinds or 'none'}), at {100 * gate.confidence:.0f} % "
        f"between {100 * interval.low:.1f} % and {100 * interval.high:.1f} %, "
        f"{100 * gate.most:.1f} % is the limit"
    )
    return Verdict(outcome, reason, (finding,), gate.gate, gate.most, is_ceiling=True)


# ---- before anything is started --------------------------------------------------------------


def smallest_detectable_drop(
    gate: ScoreGate, held_out: Sequence[int], accuracy: float = 0.9
) -> float:
    """The smallest true drop of the mean for which the gate fails with 80 % probability.

    For devices with so many held-out samples each and about this accuracy, that don't differ in how
    they fare. Infinite for fewer than two devices. What `campaign plan` prints.
    """
    usable = [count for count in held_out if count > 0]
    if len(usable) < 2:
        return math.inf
    members = [DeviceScore("", n, round(accuracy * n), round(accuracy * n), {}) for n in usable]
    deviation = math.sqrt(sampling_variance(members) / len(usable))
    degrees = len(usable) - 1
    quantiles = _student(1.0 - gate.confidence, degrees) + _student(1.0 - POWER, degrees)
    return gate.most_drop + deviation * quantiles


def _student(error: float, degrees: int) -> float:
    """The value that Student's t exceeds with probability `error`."""
    from scipy.stats import t  # type: ignore[import-untyped]  # a second of import time

    return float(t.isf(error, degrees))


def _beta(error: float, a: int, b: int) -> float:
    """The value below which a beta distribution has `error` of its weight; 0 where a is 0."""
    from scipy.stats import beta

    return float(beta.ppf(error, a, b)) if a else 0.0
