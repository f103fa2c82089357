"""What the API takes and gives about a campaign's text, what it would do, and how it stands."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fleet.campaign.config import CampaignConfig
from fleet.campaign.decisions import What, When
from fleet.campaign.files import MOST_BYTES
from fleet.service.schema import (
    Answer,
    CampaignView,
    DevicePreview,
    EventView,
    Form,
    RoundView,
    Scores,
    SightView,
    VerdictView,
)

# Texts


class CampaignText(Form):
    """A campaign's file, as YAML."""

    text: Annotated[str, Field(max_length=MOST_BYTES)]


class MistakeView(Answer):
    """What is wrong with a campaign's text; `line` counts from 1."""

    field: str
    line: int | None
    message: str


class CampaignReading(Answer):
    """What a text says; no campaign where there are mistakes in it."""

    campaign: CampaignConfig | None
    mistakes: list[MistakeView]


class CampaignSchema(Answer):
    """The JSON Schema of a campaign's file."""

    json_schema: dict[str, Any]


# Before it is started


class StagePlan(Answer):
    """A stage, before anything is done."""

    stage: str
    devices: int
    smallest_detectable_drop: dict[str, float | None]
    """Gate → drop of accuracy that it would notice four times in five; null: none at all."""


class PlanUse(Answer):
    """An update plan, and how many devices would train it."""

    plan: str
    name: str
    devices: int
    delta_values: int
    reasons: dict[str, int]


class DeviceCost(Answer):
    """What a campaign takes of a device of a board with an update plan; null: not known.

    Seconds are medians of what such devices took in past campaigns of the model, from task to
    delta: with fetching and sending, and with staying away. Energy is that of the board's
    microcontroller if it computed all the time, without radio: rather too much than too little.
    """

    plan: str
    name: str
    board: str
    devices: int
    round_seconds: dict[str, float | None]
    """Of a round that trains, scores, releases."""
    seconds: float | None
    """Of all rounds, for a device that has a part in each."""
    active_milliwatts: int | None
    round_millijoules: dict[str, float | None]
    millijoules: float | None


class SetPlan(Answer):
    """How devices of an update plan would hide in each other, if all that are ready took part."""

    plan: str
    name: str
    devices: int
    sets: int
    smallest: int


class CampaignPlan(Answer):
    """What a campaign would do, as things stand: nothing is done."""

    version: str
    target: DevicePreview
    ready: int
    skipped: dict[str, int]
    """Reason → devices that match and couldn't take part now."""
    stages: list[StagePlan]
    plans: list[PlanUse]
    rounds: int
    bytes_down: int
    bytes_up: int
    """An estimate, from `delta_bits_per_value`."""
    longest_seconds: float
    """If every round took its deadline, from its last task on."""
    longest_round_seconds: float
    expected_seconds: float | None
    """If the slowest kind of device took as long as its median in past campaigns, and sites had
    their shares of each cohort; null where one hasn't been measured yet."""
    costs: list[DeviceCost]
    flash_slot_writes_per_device: int
    sets: list[SetPlan]
    """Of masked campaigns."""
    too_few_to_hide: int
    """Devices that are ready and wouldn't be asked, since too few others train their plan."""
    who_sees: list[SightView]


# How it stands


class CampaignRow(CampaignView):
    """A campaign as a list shows it; of its newest round, once there is one."""

    stages: int
    stage: str | None = None
    stage_number: int | None = None
    rounds: int
    """That its schedule has, without those that roll back."""
    round: int | None = None
    round_kind: str | None = None
    round_state: str | None = None
    asked: int = 0
    wanted: int = 0
    accepted: int = 0


class CampaignList(Answer):
    """Newest first; `next` is where the page behind it begins."""

    campaigns: list[CampaignRow]
    next: str | None = None


CampaignState = Literal[
    "live",
    "ended",
    "pending",
    "running",
    "waiting",
    "paused",
    "rolling-back",
    "finished",
    "failed",
    "cancelled",
    "undecided",
    "rolled-back",
]
"""To list campaigns by."""


class OpenDevice(Answer):
    """A device that was asked in a round and hasn't delivered: waited for `since` then (Unix time)
    while the round runs, with a `reason` once it has ended."""

    device: str
    gateway: str = ""
    since: float | None = None
    reason: str = ""


class SetFigures(Answer):
    """The sets of a masked round that has ended, whose sums were to be unmasked."""

    sets: int
    counted: int
    devices: int
    """In sets that counted."""
    smallest: int
    """Devices of the smallest of them."""
    not_counted: dict[str, int]
    """Reason → sets that counted nothing."""
    differs_by: int | None
    """By how many devices some set differs from the nearest one of the training round before: the
    fewer, the more both sums say of these. Null where there is none to compare with."""
    rule: str
    """What the rule did with so many sets."""


class RoundFigures(RoundView):
    """A round in figures, of bounded size: at most twenty of whatever is named, those that matter
    most first. Reasons are counted without the figures that are in them."""

    stage: int | None = None
    began: float
    ended: float | None
    ends_by: float | None = None
    """When it is over at the latest, gateways that are silent aside; in seconds since 1970."""
    late: int = 0
    duplicate: int = 0
    refused: dict[str, int] = Field(default_factory=dict)
    declined: dict[str, int] = Field(default_factory=dict)
    not_started: dict[str, int] = Field(default_factory=dict)
    failed: dict[str, int] = Field(default_factory=dict)
    skipped: dict[str, int] = Field(default_factory=dict)
    lost: dict[str, str] = Field(default_factory=dict)
    gateways: dict[str, int] = Field(default_factory=dict)
    """Devices asked, by gateway…"""
    accepted_by: dict[str, int] = Field(default_factory=dict)
    """…and how many of them have delivered, while it runs."""
    missing: int = 0
    """Devices that were asked and haven't delivered."""
    open: list[OpenDevice] = Field(default_factory=list)
    """Some of them: those that have been waited for longest."""
    bytes_down: int = 0
    """If each device that was asked fetched its weights."""
    bytes_up: int = 0
    before: Scores | None = None
    """With what devices were given in this round…"""
    after: Scores | None = None
    """…and when they had done it: those that trained have other weights then."""
    alone: Scores | None = None
    """With what each has trained by itself, in rounds that asked for it."""
    kept: dict[str, int] = Field(default_factory=dict)
    """Devices by what they work with since: `shared`, `personal`, `local`; where some have models
    of their own."""
    sets: SetFigures | None = None
    """Of a masked round that has ended."""


class GateView(Answer):
    """A gate of a stage, and what it has said, if anything."""

    gate: str
    text: str
    """In words: what it asks for."""
    verdict: VerdictView | None = None


class StageStanding(Answer):
    """A stage as a page shows it."""

    stage: str
    number: int
    devices: int
    outcome: str | None
    judged: float | None
    is_current: bool
    approval: bool
    gates: list[GateView]


class DecisionView(Answer):
    """What somebody has to decide: whether stage number `stage` may `begin`, or what to do about
    one whose `gate`s didn't pass `when` it trained, after its soak, or (empty) had scored."""

    what: What
    stage: int
    when: When


class CampaignStanding(CampaignRow):
    """A campaign as it stands, of bounded size whatever the number of devices."""

    description: str
    model: str
    standing: list[StageStanding]
    current: RoundFigures | None
    """Its newest round."""
    newest_rounds: list[RoundView]
    """Newest first."""
    scored_before: Scores | None
    """With what devices had when the stage began…"""
    scored_now: Scores | None
    """…and by the stage's newest round with other weights."""
    scored_in: int | None
    """The number of that round."""
    quarantined: dict[str, str]
    decisions: dict[str, str]
    to_decide: DecisionView | None = None
    """What `waiting` means, where it means something that can be decided now."""
    failing: dict[str, int]
    """Devices that failed when they were last asked, by reason."""
    events: list[EventView]
    """The last, newest first."""
    who_sees: list[SightView]
