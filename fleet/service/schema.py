"""What the API takes and gives, as types that the service and its client share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fleet.campaign.config import CampaignConfig
from fleet.protocol.fields import Name
from fleet.registry.records import LabelKey, Labels, LabelValue

Role = Literal["viewer", "operator", "approver", "admin"]
MOST_DEVICES = 10_000
"""In one request."""


class Form(BaseModel):
    """What is sent: nothing that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(BaseModel):
    """What is told."""

    # A newer service may say more.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Failure(Answer):
    """What every answer that isn't a success has."""

    error: str
    """For people: what is wrong, and what to do about it."""
    kind: str
    """For programs: the class of error."""


# Who is asking


class WhoAmI(Answer):
    """Whose token it is."""

    who: str
    role: str
    fleet: str
    version: str


# Devices


class DeviceToAdd(Form):
    """A device; without a `password` it gets a random one."""

    device: Name
    site: Name
    labels: Labels = {}
    password: Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[!-~]+$")] | None = None


class DevicesToAdd(Form):
    """All of them are added, or none."""

    devices: Annotated[list[DeviceToAdd], Field(min_length=1, max_length=MOST_DEVICES)]


class Password(Answer):
    """Told once: only a hash is kept."""

    device: str
    password: str


class Passwords(Answer):
    """Of new devices."""

    devices: list[Password]


class DeviceView(Answer):
    """A device as the registry has it; what no gateway has told is null."""

    device: str
    site: str
    labels: dict[str, str]
    added: float
    retired: bool
    gateway: str | None = None
    board: str | None = None
    bundle: str | None = None
    current: str | None = None
    version: str | None = None
    """MODEL:NUMBER of `current`, where the store has it."""
    candidate: str | None = None
    lease: int | None = None
    free_sram_bytes: int | None = None
    battery_percent: int | None = None
    charging: bool | None = None
    reset_cause: str | None = None
    fault_code: int | None = None
    """Of the last fault that it has a record of; 0: none."""
    link_bits_per_second: int | None = None
    train_samples: int | None = None
    held_out_samples: int | None = None
    online: bool | None = None
    last_seen: float | None = None
    seen_age_seconds: float | None = None


class DevicePage(Answer):
    """A page; `next` is where the one behind it begins, null on the last."""

    devices: list[DeviceView]
    next: str | None = None


class DevicePreview(Answer):
    """Which devices a filter means, and of how many each part of it isn't true."""

    count: int
    sample: list[DeviceView]
    reasons: dict[str, int]


class SiteCount(Answer):
    """Devices of a site by state; those that are retired aren't counted."""

    site: str
    states: dict[str, int]


class BoardCount(Answer):
    """Devices of a board that aren't retired; null: no gateway has told which board."""

    board: str | None
    count: int


class VersionCount(Answer):
    """Devices with the same current weights that aren't retired.

    `version` is MODEL:NUMBER where the store has them, `current` null where no gateway has told.
    """

    current: str | None
    version: str | None
    count: int


class DeviceSummary(Answer):
    """The devices that a filter means, counted."""

    count: int
    """With those that are retired."""
    states: dict[str, int]
    """`online`, `offline`, `unheard` (no gateway has told of it) and `retired`."""
    sites: list[SiteCount]
    boards: list[BoardCount]
    """Most devices first, as versions."""
    versions: list[VersionCount]
    other_versions: int
    """Devices with weights that fewer have than those of `versions`."""


class LabelChange(Form):
    """Labels to set; null takes one away."""

    labels: Annotated[dict[LabelKey, LabelValue | None], Field(min_length=1, max_length=64)]


class HistoryEntry(Answer):
    """What a device reported in a round."""

    campaign: str
    round: int
    kind: str
    name: str = ""
    """The campaign's."""
    ended: float | None = None
    gateway: str | None = None
    plan: str | None = None
    plan_reason: str | None = None
    """Why no larger one."""
    status: str | None = None
    weights: str = ""
    """Digest of what it began with; empty where devices of the round had different ones."""
    version: str | None = None
    """MODEL:NUMBER of `weights`, where they were released or imported."""
    train_samples: int | None = None
    train_steps: int | None = None
    held_out: int | None = None
    correct_before: int | None = None
    correct_after: int | None = None
    """After training; or, where the round asked for it, with its personal tensors."""
    correct_local: int | None = None
    """With what it has trained alone."""
    kept: str | None = None
    """What its application works with since: `shared`, `personal` or `local`."""
    loss_before: float | None = None
    loss_after: float | None = None
    coded_bytes: int | None = None
    payload_bytes: int | None = None
    seconds: float | None = None


class History(Answer):
    """Newest first."""

    history: list[HistoryEntry]


class DeviceTrouble(Answer):
    """A campaign in which a device failed the last time, so many times in a row."""

    campaign: str
    name: str
    stage: str
    failures: int
    reason: str
    not_before: float
    """When it may be asked again; in seconds since 1970."""


class DeviceRecord(Answer):
    """What a device has done, and what that took of it, by the reports that are kept.

    Energy is that of the board's microcontroller if it had computed from each task to its delta,
    without radio: an estimate, rather too much than too little.
    """

    rounds: int
    trained_rounds: int
    seconds: float
    uplink_bytes: int
    active_milliwatts: int | None
    """Null where nobody says it of the board, or its bundle wasn't imported."""
    millijoules: float | None
    flash_slot_writes: int
    """Versions that it has reported with and hadn't before: so many were written to its flash."""
    troubles: list[DeviceTrouble]


# Gateways


class GatewayToAdd(Form):
    """A gateway of a site, with the password that its broker knows it by."""

    gateway: Name
    site: Name


class GatewayView(Answer):
    """A gateway; `problem` is why what it says can't be used, `retired` that it is gone."""

    gateway: str
    site: str
    added: float
    retired: bool
    last_seen: float | None
    seen_age_seconds: float | None = None
    problem: str


class GatewayList(Answer):
    """All gateways."""

    gateways: list[GatewayView]


# Models


class BundleToImport(Form):
    """A bundle's manifest.json, and its weights.bin as base64."""

    model: Name
    manifest: Annotated[str, Field(max_length=16 << 20)]
    weights: Annotated[str, Field(max_length=64 << 20)]


class VersionToAdd(Form):
    """Weights as base64; `parent` is the version that they were made from."""

    weights: Annotated[str, Field(max_length=64 << 20)]
    parent: Annotated[int, Field(ge=1, lt=2**31)] | None = None


class VersionView(Answer):
    """A version of a model's weights."""

    model: str
    version: int
    sha256: str
    parent: int | None
    source: str
    state: str
    created: float


class BundleView(Answer):
    """Firmware of a model for a board."""

    bundle: str
    board: str
    created: float


class ModelView(Answer):
    """A model with its bundles and versions."""

    model: str
    digest: str
    created: float
    bundles: list[BundleView]
    versions: list[VersionView]


class ModelList(Answer):
    """All models."""

    models: list[ModelView]


class Scores(Answer):
    """Accuracies of devices on their own held-out samples."""

    devices: int
    mean: float
    quantiles: list[float]
    """The accuracy that a tenth, half and nine tenths of the devices don't exceed."""
    counts: list[int]
    """How many devices lie in each of equal parts from 0 to 1; the last one holds 1 as well."""


class Comparison(Answer):
    """Two versions: how many values differ, and what devices scored with each."""

    model: str
    first: int
    second: int
    changed_values: int
    values: int
    devices: int
    """That have scored both."""
    mean_accuracy_first: float | None
    mean_accuracy_second: float | None
    scores_first: Scores | None = None
    scores_second: Scores | None = None
    better: int = 0
    """Devices that have more right answers with the second…"""
    worse: int = 0
    """…and with the first; the others have as many."""


class RollbackOfModel(Form):
    """`newest` is the version that is to be withdrawn: another one isn't."""

    newest: Annotated[int, Field(ge=1, lt=2**31)] | None = None


# Campaigns


class EventView(Answer):
    """Something that has happened."""

    number: int
    at: float
    kind: str
    campaign: str
    data: Mapping[str, Any]


class CampaignToStart(Form):
    """A campaign as in its file."""

    campaign: CampaignConfig


class FindingView(Answer):
    """What a gate found of one group of devices (all, without a name); null: nobody can say."""

    group: str
    devices: int
    outcome: str
    measured: float | None
    low: float | None
    high: float | None


class VerdictView(Answer):
    """What a gate said."""

    outcome: str
    reason: str
    findings: list[FindingView] = []
    gate: str = ""
    limit: float | None = None
    is_ceiling: bool = False
    """Whether what was measured may not be above the limit; else not below."""


class StageView(Answer):
    """A stage as it stands."""

    stage: str
    number: int
    devices: int
    outcome: str | None
    judged: float | None
    """When; in seconds since 1970."""
    verdicts: list[VerdictView]


class RoundView(Answer):
    """A round as it stands."""

    round: int
    kind: str
    state: str
    asked: int
    wanted: int
    accepted: int


class CampaignView(Answer):
    """A campaign as it stands."""

    campaign: str
    name: str
    kind: str
    state: str
    has_ended: bool
    """In whatever way; only rolling back goes on from there."""
    reason: str
    waiting: str
    wish: str
    author: str
    created: float
    base: str
    made: str


class SightView(Answer):
    """What somebody could see of a campaign's devices, or do to them, in words."""

    who: str
    sees: str


class CampaignDetail(CampaignView):
    """All of it."""

    config: CampaignConfig
    who_sees: list[SightView]
    stages: list[StageView]
    rounds: list[RoundView]
    quarantined: dict[str, str]
    decisions: dict[str, str]
    failed_devices: dict[str, str]


class Reports(Answer):
    """What devices measured in a round."""

    round: int
    result: dict[str, Any]
    reports: list[dict[str, Any]]


class Seen(Form):
    """A campaign as it was when somebody decided."""

    state: str
    waiting: str = ""
    wish: str = ""


class Act(Form):
    """Something to do with a campaign; as it was `seen`, or as it is."""

    action: Literal["pause", "resume", "stop", "roll-back", "approve"]
    seen: Seen | None = None


# Accounts


class TokenToIssue(Form):
    """A token for somebody."""

    who: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@-]{1,64}$")]
    role: Role
    days: Annotated[float, Field(gt=0, le=3660)] = 365


class TokenView(Answer):
    """A token without its secret."""

    token: str
    who: str
    role: str
    created: float
    expires: float
    revoked: bool


class NewToken(TokenView):
    """A token with its secret, which is told once."""

    secret: str


class TokenList(Answer):
    """All tokens."""

    tokens: list[TokenView]


class AuditView(Answer):
    """Who did what, and why."""

    number: int
    at: float
    who: str
    role: str
    action: str
    object: str
    before: Any
    after: Any
    why: str


class AuditPage(Answer):
    """In the order that was asked for; `next` is the number to ask on from."""

    audit: list[AuditView]
    next: int | None = None


class WebhookToAdd(Form):
    """Where events of these kinds go."""

    url: Annotated[str, Field(max_length=2000)]
    events: Annotated[list[str], Field(min_length=1, max_length=20)]


class WebhookView(Answer):
    """A webhook without its secret."""

    webhook: str
    url: str
    events: list[str]
    failures: int
    problem: str


class NewWebhook(WebhookView):
    """A webhook with the secret that signs what it gets, which is told once."""

    secret: str


class WebhookList(Answer):
    """All webhooks."""

    webhooks: list[WebhookView]


class Settings(Answer):
    """What a service was told, as it runs; nothing of it is secret."""

    fleet: str
    version: str
    settings: dict[str, Any]


class Ready(Answer):
    """Whether the service can do its work."""

    ready: bool
    leader: bool
    gateways: dict[str, float | None]
    """Gateway → seconds since it was heard of; of those that aren't retired."""
    problems: list[str]
