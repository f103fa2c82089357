"""How a campaign stands, for a page that looks at it again and again: little is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fleet.campaign.config import CampaignConfig
from fleet.campaign.decisions import Decision
from fleet.campaign.gates import DriftGate, FailureGate, Gate
from fleet.campaign.planning import RoundKind, schedule
from fleet.service import schema
from fleet.service.campaign_schema import (
    CampaignRow,
    CampaignStanding,
    DecisionView,
    GateView,
    OpenDevice,
    RoundFigures,
    StageStanding,
)
from fleet.store import ENDED_STATES, CampaignRecord, RoundGlance, RoundGlances, SqlStore, Stages
from fleet.store.events import Events
from fleet.store.figures import MOST_NAMED

_SCORING = (RoundKind.SCORE_LAST, RoundKind.SCORE_AGAIN, RoundKind.TRAIN)
"""Rounds in which devices of a stage score other weights than what they had."""


def campaign_view(one: CampaignRecord, config: CampaignConfig) -> schema.CampaignView:
    """A campaign's record."""
    return schema.CampaignView(
        campaign=one.id,
        name=config.name,
        kind=config.kind,
        state=one.state,
        has_ended=one.state in ENDED_STATES,
        reason=one.reason,
        waiting=one.waiting,
        wish=one.wish,
        author=one.author,
        created=one.created,
        base=one.base,
        made=one.made,
    )


def campaign_row(one: CampaignRecord, newest: RoundGlance | None) -> CampaignRow:
    """A campaign in a list, with its newest round."""
    config = CampaignConfig.parse(one.config)
    steps = schedule(config)
    row = CampaignRow(
        **campaign_view(one, config).model_dump(), stages=len(config.stages), rounds=len(steps)
    )
    if newest is None:
        return row
    stage = next((step.stage for step in steps if step.number == newest.number), None)
    return row.model_copy(
        update={
            "stage": None if stage is None else config.stages[stage].name,
            "stage_number": stage,
            "round": newest.number,
            "round_kind": newest.kind,
            "round_state": newest.state,
            "asked": newest.asked,
            "wanted": newest.wanted,
            "accepted": newest.accepted,
        }
    )


def round_figures(one: RoundGlance, config: CampaignConfig, blob_bytes: int) -> RoundFigures:
    """A round in figures; `blob_bytes` are those of the weights that its devices begin with."""
    told = dict(one.figures)
    runs = one.state == "running"
    ends_by = one.began + config.deadline_seconds + float(told.pop("longest_delay", 0.0))
    named = [
        OpenDevice(
            device=of["device"],
            gateway=of.get("gateway", ""),
            since=one.began + of["task_after"] if "task_after" in of else None,
            reason=of.get("reason", ""),
        )
        for of in told.pop("open", ())
    ]
    missing = told.pop("missing", max(0, one.asked - one.accepted))
    return RoundFigures(
        **{name: value for name, value in told.items() if name in RoundFigures.model_fields},
        **_round_view(one).model_dump(),
        began=one.began,
        ended=one.ended,
        ends_by=ends_by if runs else None,
        missing=missing,
        open=named,
        bytes_down=one.asked * blob_bytes,
    )


def _round_view(one: RoundGlance) -> schema.RoundView:
    return schema.RoundView(
        round=one.number,
        kind=one.kind,
        state=one.state,
        asked=one.asked,
        wanted=one.wanted,
        accepted=one.accepted,
    )


def campaign_standing(
    store: SqlStore, campaign: str, sights: list[schema.SightView]
) -> CampaignStanding:
    """A campaign as it stands; `sights`: who could see what."""
    record = store.campaign(campaign)
    config = CampaignConfig.parse(record.config)
    glances, stages = RoundGlances(store), Stages(store)
    rounds = glances.newest(campaign)
    newest = rounds[0] if rounds else None
    row = campaign_row(record, newest)
    at = row.stage_number
    if newest is not None and at is None:
        at = int(newest.figures.get("stage", 0))
    current = None
    if newest is not None:
        current = round_figures(newest, config, store.blob_bytes(campaign))
    first, last = _scored(glances, campaign, config, at)
    return CampaignStanding(
        **row.model_dump(),
        description=config.description,
        model=config.model,
        standing=_stages(stages, campaign, config, at),
        current=current,
        newest_rounds=[_round_view(one) for one in rounds],
        scored_before=_scores(first, "before"),
        scored_now=_scores(last, "before"),
        scored_in=None if last is None else last.number,
        quarantined=dict(list(store.quarantined(campaign).items())[:MOST_NAMED]),
        decisions={what: one.who for what, one in stages.decisions(campaign).items()},
        to_decide=_to_decide(record, config),
        failing=stages.failing(campaign),
        events=[
            schema.EventView.model_validate(one, from_attributes=True)
            for one in Events(store).newest(campaign)
        ],
        who_sees=sights,
    )


def _to_decide(record: CampaignRecord, config: CampaignConfig) -> DecisionView | None:
    found = Decision.parse(record.waiting)
    if found is None or found.stage >= len(config.stages):
        return None
    return DecisionView(what=found.what, stage=found.stage, when=found.when)


def _scored(
    glances: RoundGlances, campaign: str, config: CampaignConfig, stage: int | None
) -> tuple[RoundGlance | None, RoundGlance | None]:
    """The stage's round that scored what its devices had, and its newest with other weights."""
    first: RoundGlance | None = None
    last: RoundGlance | None = None
    steps = [step for step in schedule(config) if step.stage == stage]
    # What the first training round of all begins with is what devices had.
    begins = (0, RoundKind.TRAIN, 1)
    scoring = [
        step
        for step in steps
        if step.kind in _SCORING and (step.stage, step.kind, step.training_round) != begins
    ]
    for step in steps:
        if step.kind is RoundKind.SCORE_FIRST:
            first = glances.one(campaign, step.number)
    if scoring:
        kinds = [kind.value for kind in _SCORING]
        last = glances.last_of_kinds(campaign, scoring[0].number, scoring[-1].number, kinds)
    return first, last


def _scores(one: RoundGlance | None, what: str) -> schema.Scores | None:
    told: Mapping[str, Any] | None = None if one is None else one.figures.get(what)
    return None if told is None else schema.Scores.model_validate(told)


def _stages(
    stages: Stages, campaign: str, config: CampaignConfig, at: int | None
) -> list[StageStanding]:
    joined = stages.joined(campaign)
    judged = stages.judged(campaign)
    found = []
    for number, stage in enumerate(config.stages):
        record = judged.get(number)
        verdicts = (
            [schema.VerdictView.model_validate(one) for one in record.verdicts] if record else []
        )
        found.append(
            StageStanding(
                stage=stage.name,
                number=number,
                devices=sum(count for of, count in joined.items() if of <= number),
                outcome=record.outcome if record else None,
                judged=record.judged if record else None,
                is_current=number == at,
                approval=stage.approval or (config.approval and number == 0),
                gates=_gates(stage.gates, verdicts),
            )
        )
    return found


def _gates(gates: Sequence[Gate], verdicts: Sequence[schema.VerdictView]) -> list[GateView]:
    """Each with its verdict. One that broke during training has the only one."""
    found = []
    left = list(verdicts)
    for gate in gates:
        verdict = left[0] if left and left[0].gate in ("", gate.gate) else None
        if verdict is not None:
            left.pop(0)
        found.append(GateView(gate=gate.gate, text=gate_in_words(gate), verdict=verdict))
    return found


def gate_in_words(gate: Gate) -> str:
    """What a gate asks for."""
    if isinstance(gate, FailureGate):
        kinds = f" ({', '.join(gate.classes)})" if gate.classes else ""
        return f"at most {100 * gate.most:.1f} % of the devices fail{kinds}"
    most = f"at most {100 * gate.most_drop:.1f} points"
    if isinstance(gate, DriftGate):
        return f"accuracy falls by {most} in any training round"
    each = f", for each {gate.by}" if gate.by else ""
    return f"the {gate.measure} accuracy falls by {most}{each}"
