"""What the gates of a stage say of its rounds. Pure functions over what the store has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fleet.campaign.config import Stage
from fleet.campaign.gates import DeviceScore, Evidence, Outcome, Verdict
from fleet.errors import CampaignError
from fleet.protocol.manifest import Manifest

NO_REPORT = "no-report"
"""The class of reason of a device that was asked and of which nothing was heard…"""
GATEWAY_LOST = "gateway-lost"
"""…because nothing was heard of its gateway, which says nothing of the device."""


def paired_scores(
    before: Iterable[Mapping[str, Any]],
    after: Iterable[Mapping[str, Any]],
    groups: Mapping[str, Mapping[str, str]],
) -> list[DeviceScore]:
    """Scores of the devices that report in both rounds.

    `before` and `after` are reports of a round that scored the base and of one that scored the
    candidate. A device that logged samples between them is counted with its share of right answers,
    one whose model has no right answers isn't.
    """
    first = {str(one["device"]): one for one in before if _is_score(one)}
    scores = []
    for one in after:
        other = first.get(str(one["device"]))
        if other is None or not _is_score(one):
            continue
        held_out = int(one["held_out"])
        share = _best(other) / int(other["held_out"])
        scores.append(
            DeviceScore(
                str(one["device"]),
                held_out,
                round(share * held_out),
                _best(one),
                groups.get(str(one["device"]), {}),
            )
        )
    return scores


def _is_score(report: Mapping[str, Any]) -> bool:
    return bool(report.get("held_out")) and report.get("correct_before") is not None


def _best(report: Mapping[str, Any]) -> int:
    """Right answers with the weights of the round; of a device that has models of its own with the
    best of them all, which it would work with."""
    right = int(report["correct_before"])
    if report.get("kept") is None:
        return right
    return max(right, int(report["correct_after"]), int(report.get("correct_local") or 0))


def failures(result: Mapping[str, Any]) -> dict[str, int]:
    """How many devices of a round failed, by class of reason, from its result.

    Where as many have delivered as were wanted, nobody waited for the others: their silence is no
    failure then. Nor is it one of theirs that their gateway was lost.
    """
    counted = Counter(str(reason) for reason in result["failed"].values())
    counted.pop(GATEWAY_LOST, None)
    silent = counted.pop(NO_REPORT, 0)
    # Gateways count all that declined, but don't name more than some.
    for reason, count in sorted(result.get("declined", {}).items()):
        unnamed = min(silent, max(0, int(count) - counted[str(reason)]))
        counted[str(reason)] += unnamed
        silent -= unnamed
    if int(result["accepted"]) < int(result["wanted"]):
        counted[NO_REPORT] = silent
    return {reason: count for reason, count in counted.items() if count}


def evidence_of(
    result: Mapping[str, Any], scores: Sequence[DeviceScore] = (), looks: int = 1, seed: int = 0
) -> Evidence:
    """What gates judge by; `result` is that of the round that scored what is judged."""
    failed = failures(result)
    return Evidence(scores, int(result["accepted"]) + sum(failed.values()), failed, looks, seed)


def check_gates(stages: Iterable[Stage], manifest: Manifest) -> None:
    """Raises `CampaignError` for gates of accuracy where the model of `manifest` has none."""
    if manifest.model.has_accuracy:
        return
    for stage in stages:
        for gate in stage.gates:
            if gate.scores:
                raise CampaignError(
                    f"gate {gate.gate} of stage {stage.name} looks at accuracy, which a model with "
                    f"the loss {manifest.model.loss} doesn't have: leave it out, and look at the "
                    "losses that devices report"
                )


def judge_stage(stage: Stage, evidence: Evidence) -> list[Verdict]:
    """A verdict for each gate."""
    return [gate.judge(evidence) for gate in stage.gates]


def failed_early(stage: Stage, evidence: Evidence) -> Verdict | None:
    """A gate that a training round already breaks: nobody has to wait for the stage's end."""
    for gate in stage.gates:
        if gate.watches:
            verdict = gate.judge(evidence)
            if verdict.outcome is Outcome.FAIL:
                return verdict
    return None


def together(verdicts: Iterable[Verdict]) -> Outcome:
    """One failure fails; one that can't tell leaves it open; without gates it passes."""
    outcomes = {one.outcome for one in verdicts}
    for worst in (Outcome.FAIL, Outcome.TOO_LITTLE_EVIDENCE):
        if worst in outcomes:
            return worst
    return Outcome.PASS
