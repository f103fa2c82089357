"""What the API takes and gives about a campaign's text and how it stands, of bounded size."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from fleet.campaign.config import CampaignConfig
from fleet.campaign.files import MOST_BYTES
from fleet.service.schema import (
    Answer,
    CampaignRow,
    EventView,
    Form,
    RoundView,
    Scores,
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


# How it stands


class OpenDevice(Answer):
    """A device that was asked in a round and hasn't delivered: waited for `since` then (Unix time)
    while the round runs, with a `reason` once it has ended."""

    device: str
    gateway: str = ""
    since: float | None = None
    reason: str = ""


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
    failing: dict[str, int]
    """Devices that failed when they were last asked, by reason."""
    failing_devices: dict[str, str]
    """Some of them."""
    events: list[EventView]
    """The last, newest first."""
