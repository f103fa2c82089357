"""The gates of a campaign over what its store has: what they say, and what was decided about it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fleet.campaign import CampaignConfig, RoundKind, RoundPlan, Step, schedule
from fleet.campaign.decisions import Decision
from fleet.campaign.gates import DeviceScore, Finding, Outcome, Verdict
from fleet.campaign.stages import evidence_of, failed_early, judge_stage, paired_scores, together
from fleet.protocol.manifest import Manifest
from fleet.store import Events, Registry, SqlStore, Stages


class GateKeeper:
    """Judges the rounds of one campaign."""

    def __init__(
        self,
        store: SqlStore,
        campaign: str,
        config: CampaignConfig,
        manifests: Mapping[str, Manifest],
        registry: Registry | None,
    ) -> None:
        """`manifests` by bundle; labels that gates look at are in the `registry`."""
        self._store = store
        self._stages = Stages(store)
        self._campaign = campaign
        self._config = config
        self._manifests = manifests
        self._registry = registry

    def may_release(self, step: Step, begun: Collection[int]) -> bool:
        """Not where a stage's gates couldn't tell and a wider one is to decide."""
        if step.number in begun:
            return True
        judged = self._stages.judged(self._campaign).get(step.stage)
        if judged is None or judged.outcome != Outcome.TOO_LITTLE_EVIDENCE.value:
            return True
        return decision_about(step).name in self._stages.decisions(self._campaign)

    def may_personalize(self, step: Step, begun: Collection[int]) -> bool:
        """Whether a step's devices work with what it is for: they choose for a released version."""
        if step.kind is not RoundKind.PERSONALIZE:
            return True
        return any(
            one.stage == step.stage and one.kind is RoundKind.RELEASE and one.number in begun
            for one in schedule(self._config)
        )

    def judge(self, step: Step) -> list[Verdict]:
        """What the stage's gates say after a round that has ended; none where it isn't their turn.

        It is kept, and told once.
        """
        stage = self._config.stages[step.stage]
        result = self._store.round(self._campaign, step.number).result
        verdicts: list[Verdict] = []
        is_end = step.kind in (RoundKind.SCORE_LAST, RoundKind.SCORE_AGAIN)
        watched = step.kind is RoundKind.TRAIN and any(one.watches for one in stage.gates)
        if watched or (is_end and stage.gates):
            scores = self._scores(step)
            evidence = evidence_of(result, scores, self._config.looks, self._config.seed)
            if is_end:
                verdicts = judge_stage(stage, evidence)
            else:
                early = failed_early(stage, evidence)
                verdicts = [early] if early is not None else []
        if verdicts:
            self._note(step, verdicts)
        return verdicts

    def _scores(self, step: Step) -> list[DeviceScore]:
        """Of the base and, by the same devices, of what they had in this round."""
        base = next(
            one.number
            for one in schedule(self._config)
            if one.stage == step.stage and one.kind is RoundKind.SCORE_FIRST
        )
        return paired_scores(
            self._store.reports(self._campaign, base),
            self._store.reports(self._campaign, step.number),
            self._groups(step.number),
        )

    def _note(self, step: Step, verdicts: Sequence[Verdict]) -> None:
        plain = [
            {
                "outcome": one.outcome.value,
                "reason": one.reason,
                "findings": [_plain_finding(finding) for finding in one.findings],
                "gate": one.gate,
                "limit": one.limit,
                "is_ceiling": one.is_ceiling,
            }
            for one in verdicts
        ]
        outcome = together(verdicts)
        known = self._stages.judged(self._campaign).get(step.stage)
        if known is not None and list(known.verdicts) == plain:
            return  # judged before this driver began
        self._stages.save_judged(self._campaign, step.stage, outcome.value, plain)
        told = {
            "stage": self._config.stages[step.stage].name,
            "outcome": outcome.value,
            "reasons": [one.reason for one in verdicts],
        }
        Events(self._store).add("gate", self._campaign, told)

    def _groups(self, number: int) -> dict[str, dict[str, str]]:
        """What gates may look at apart: board, gateway, labels.

        By the round's plan: a driver that has just begun has heard of nobody yet.
        """
        plan = RoundPlan.from_json(self._store.round(self._campaign, number).plan)
        known = {
            one.device: {"board": self._manifests[one.bundle].board.name, "gateway": one.gateway}
            for one in plan.assignments
        }
        labels = self._registry.labels(known) if self._registry else {}
        return {name: {**labels.get(name, {}), **known.get(name, {})} for name in known | labels}


def decision_about(step: Step) -> Decision:
    """What is decided where a stage's gates don't pass: each time another thing."""
    if step.kind is RoundKind.TRAIN:
        return Decision("gate", step.stage, "training")
    return Decision("gate", step.stage, "soak" if step.kind is RoundKind.SCORE_AGAIN else "")


def _plain_finding(finding: Finding) -> dict[str, Any]:
    """A finding as JSON can hold it: what isn't finite is null."""

    def plain(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "group": finding.group,
        "devices": finding.devices,
        "outcome": finding.outcome.value,
        "measured": plain(finding.measured),
        "low": plain(finding.interval.low),
        "high": plain(finding.interval.high),
    }
