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


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Answer(BaseModel):
    # A newer service may say more.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Failure(_Answer):
    """What every answer that isn't a success has."""

    error: str
    """For people: what is wrong, and what to do about it."""
    kind: str
    """For programs: the class of error."""


# Who is asking


class WhoAmI(_Answer):
    """Whose token it is."""

    who: str
    role: str
    fleet: str
    version: str


# Devices


class DeviceToAdd(_Form):
    """A device; without a `password` it gets a random one."""

    device: Name
    site: Name
    labels: Labels = {}
    password: Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[!-~]+$")] | None = None


class DevicesToAdd(_Form):
    """All of them are added, or none."""

    devices: Annotated[list[DeviceToAdd], Field(min_length=1, max_length=MOST_DEVICES)]


class Password(_Answer):
    """Told once: only a hash is kept."""

    device: str
    password: str


class Passwords(_Answer):
    """Of new devices."""

    devices: list[Password]


class DeviceView(_Answer):
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
    link_bits_per_second: int | None = None
    train_samples: int | None = None
    held_out_samples: int | None = None
    online: bool | None = None
    last_seen: float | None = None
    seen_age_seconds: float | None = None


class DevicePage(_Answer):
    """A page; `next` is where the one behind it begins, null on the last."""

    devices: list[DeviceView]
    next: str | None = None


class DevicePreview(_Answer):
    """Which devices a filter means, and of how many each part of it isn't true."""

    count: int
    sample: list[DeviceView]
    reasons: dict[str, int]


class SiteCount(_Answer):
    """Devices of a site by state; those that are retired aren't counted."""

    site: str
    states: dict[str, int]


class BoardCount(_Answer):
    """Devices of a board that aren't retired; null: no gateway has told which board."""

    board: str | None
    count: int


class VersionCount(_Answer):
    """Devices with the same current weights that aren't retired.

    `version` is MODEL:NUMBER where the store has them, `current` null where no gateway has told.
    """

    current: str | None
    version: str | None
    count: int


class DeviceSummary(_Answer):
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


class LabelChange(_Form):
    """Labels to set; null takes one away."""

    labels: Annotated[dict[LabelKey, LabelValue | None], Field(min_length=1, max_length=64)]


class HistoryEntry(_Answer):
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
    loss_before: float | None = None
    loss_after: float | None = None
    coded_bytes: int | None = None
    payload_bytes: int | None = None
    seconds: float | None = None


class History(_Answer):
    """Newest first."""

    history: list[HistoryEntry]


class DeviceTrouble(_Answer):
    """A campaign in which a device failed the last time, so many times in a row."""

    campaign: str
    name: str
    stage: str
    failures: int
    reason: str
    not_before: float
    """When it may be asked again; in seconds since 1970."""


class DeviceRecord(_Answer):
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


class GatewayToAdd(_Form):
    """A gateway of a site, with the password that its broker knows it by."""

    gateway: Name
    site: Name


class GatewayView(_Answer):
    """A gateway; `problem` is why what it says can't be used, `retired` that it is gone."""

    gateway: str
    site: str
    added: float
    retired: bool
    last_seen: float | None
    seen_age_seconds: float | None = None
    problem: str


class GatewayList(_Answer):
    """All gateways."""

    gateways: list[GatewayView]


# Models


class BundleToImport(_Form):
    """A bundle's manifest.json, and its weights.bin as base64."""

    model: Name
    manifest: Annotated[str, Field(max_length=16 << 20)]
    weights: Annotated[str, Field(max_length=64 << 20)]


class VersionToAdd(_Form):
    """Weights as base64; `parent` is the version that they were made from."""

    weights: Annotated[str, Field(max_length=64 << 20)]
    parent: Annotated[int, Field(ge=1, lt=2**31)] | None = None


class VersionView(_Answer):
    """A version of a model's weights."""

    model: str
    version: int
    sha256: str
    parent: int | None
    source: str
    state: str
    created: float


class BundleView(_Answer):
    """Firmware of a model for a board."""

    bundle: str
    board: str
    created: float


class ModelView(_Answer):
    """A model with its bundles and versions."""

    model: str
    digest: str
    created: float
    bundles: list[BundleView]
    versions: list[VersionView]


class ModelList(_Answer):
    """All models."""

    models: list[ModelView]


class Comparison(_Answer):
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


# Campaigns


class CampaignToStart(_Form):
    """A campaign as in its file."""

    campaign: CampaignConfig


class StagePlan(_Answer):
    """A stage, before anything is done."""

    stage: str
    devices: int
    smallest_detectable_drop: dict[str, float | None]
    """Gate → drop of accuracy that it would notice four times in five; null: none at all."""


class PlanUse(_Answer):
    """An update plan, and how many devices would train it."""

    plan: str
    name: str
    devices: int
    delta_values: int
    reasons: dict[str, int]


class DeviceCost(_Answer):
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


class CampaignPlan(_Answer):
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


class VerdictView(_Answer):
    """What a gate said."""

    outcome: str
    reason: str
    findings: list[dict[str, Any]] = []


class StageView(_Answer):
    """A stage as it stands."""

    stage: str
    number: int
    devices: int
    outcome: str | None
    judged: float | None
    """When; in seconds since 1970."""
    verdicts: list[VerdictView]


class RoundView(_Answer):
    """A round as it stands."""

    round: int
    kind: str
    state: str
    asked: int
    wanted: int
    accepted: int


class CampaignView(_Answer):
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


class CampaignDetail(CampaignView):
    """All of it."""

    config: CampaignConfig
    stages: list[StageView]
    rounds: list[RoundView]
    quarantined: dict[str, str]
    decisions: dict[str, str]
    failed_devices: dict[str, str]


class CampaignList(_Answer):
    """Newest first; `next` is where the page behind it begins."""

    campaigns: list[CampaignView]
    next: str | None = None


class Reports(_Answer):
    """What devices measured in a round."""

    round: int
    result: dict[str, Any]
    reports: list[dict[str, Any]]


class Act(_Form):
    """Something to do with a campaign."""

    action: Literal["pause", "resume", "stop", "roll-back", "approve"]


# Accounts


class TokenToIssue(_Form):
    """A token for somebody."""

    who: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@-]{1,64}$")]
    role: Role
    days: Annotated[float, Field(gt=0, le=3660)] = 365


class TokenView(_Answer):
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


class TokenList(_Answer):
    """All tokens."""

    tokens: list[TokenView]


class AuditView(_Answer):
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


class AuditPage(_Answer):
    """Oldest first."""

    audit: list[AuditView]
    next: int | None = None


class WebhookToAdd(_Form):
    """Where events of these kinds go."""

    url: Annotated[str, Field(max_length=2000)]
    events: Annotated[list[str], Field(min_length=1, max_length=20)]


class WebhookView(_Answer):
    """A webhook without its secret."""

    webhook: str
    url: str
    events: list[str]
    failures: int
    problem: str


class NewWebhook(WebhookView):
    """A webhook with the secret that signs what it gets, which is told once."""

    secret: str


class WebhookList(_Answer):
    """All webhooks."""

    webhooks: list[WebhookView]


class EventView(_Answer):
    """Something that has happened."""

    number: int
    at: float
    kind: str
    campaign: str
    data: Mapping[str, Any]


class Ready(_Answer):
    """Whether the service can do its work."""

    ready: bool
    leader: bool
    gateways: dict[str, float | None]
    """Gateway → seconds since it was heard of; of those that aren't retired."""
    problems: list[str]
