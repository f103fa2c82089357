"""What a user says about a campaign; frozen once read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, time, timedelta
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from fleet.aggregation.mean import staleness_scale
from fleet.aggregation.rules import FedAvg, Rule, SetMedian
from fleet.campaign.gates import Gate
from fleet.campaign.masking import Masking
from fleet.campaign.personalize import Personalize
from fleet.campaign.privacy import Privacy, first_clip, round_privacy
from fleet.errors import CampaignError, RegistryError
from fleet.protocol import fields
from fleet.protocol.manifest import Manifest, PlanEntry
from fleet.protocol.round_parameters import RoundParameters
from fleet.registry import Filter

Share = Annotated[float, Field(gt=0.0, le=1.0)]
Percent = Annotated[int, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=1, lt=2**31)]


class Schedule(BaseModel):
    """How the learning rate goes from round to round.

    `cosine` (arXiv 1608.03983, without restarts) goes from `learning_rate` in the first training
    round to `last_share` of it in the last: steps that are right while weights are far off throw
    devices about once they are near.
    """

    model_config = fields.FORM

    name: Literal["constant", "cosine"] = "constant"
    last_share: Share = 0.1

    def share(self, number: int, rounds: int) -> float:
        """Share of the learning rate in training round `number` of 1 … `rounds`."""
        if self.name == "constant" or rounds == 1:
            return 1.0
        done = min(max(number - 1, 0), rounds - 1) / (rounds - 1)
        return self.last_share + (1 - self.last_share) * 0.5 * (1 + math.cos(math.pi * done))


class Stage(BaseModel):
    """A share of the target that a campaign has reached, and what lets it go further.

    Devices of earlier stages belong to later ones as well. Who is in which stage is drawn by the
    campaign's seed, spread over gateways and boards. With gates, a stage's devices score the base
    and, at its end, the candidate; all gates have to pass before its devices get the candidate as
    their current weights.
    """

    model_config = fields.FORM

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    """Letters, digits, - and _."""
    share: Share | None = None
    """Of the target, so far…"""
    devices: Count | None = None
    """…or so many devices."""
    gates: tuple[Gate, ...] = ()
    """All of them have to pass before the stage's devices get the candidate."""
    on_failure: Literal["roll-back", "pause"] = "roll-back"
    """When a gate fails: its devices and those before go back to what they had, or nothing happens
    until somebody decides."""
    on_too_little_evidence: Literal["stop", "widen", "pause"] = "stop"
    """When gates can't tell: end without a release; let the next stage, which has more devices,
    decide; or wait for somebody who does."""
    approval: bool = False
    """It begins only when somebody else than the campaign's author has approved it."""
    soak_seconds: Annotated[float, Field(ge=0.0)] = 0.0
    """Wait so long after its release, since installed isn't good yet, and score again: its gates
    have to pass once more."""

    @model_validator(mode="after")
    def _has_one_size(self) -> Self:
        if (self.share is None) == (self.devices is None):
            raise ValueError("a stage has either a share or a number of devices")
        return self


class Window(BaseModel):
    """When rounds may begin: from `start` to `end` (which may be on the next day), on `days`.

    One that ends at the hour at which it begins lasts a whole day.
    """

    model_config = fields.FORM

    start: time
    """Time of day."""
    end: time
    """Time of day; before `start` it is on the next day."""
    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = ()
    """All where empty; the day on which it begins."""
    timezone: str = "UTC"
    """Such as Europe/Berlin."""

    @field_validator("start", "end")
    @classmethod
    def _is_of_the_windows_time_zone(cls, at: time) -> time:
        if at.tzinfo is not None:
            raise ValueError("an hour without an offset; `timezone` says whose hours these are")
        return at

    @field_validator("timezone")
    @classmethod
    def _is_a_time_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"{name} is no time zone; use one such as Europe/Berlin") from None
        return name

    def is_open(self, unix: float) -> bool:
        """Whether it is at this time."""
        local = datetime.fromtimestamp(unix, ZoneInfo(self.timezone))
        now = local.time()
        if self.start < self.end:
            begun, inside = local, self.start <= now < self.end
        else:
            begun = local if now >= self.start else local - timedelta(days=1)
            inside = now >= self.start or now < self.end
        return inside and (not self.days or _DAYS[begun.weekday()] in self.days)


_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Retry(BaseModel):
    """How often a device is asked again that failed, and after how long: doubled every time."""

    model_config = fields.FORM

    attempts: Count = 3
    """In a row, the first included; then it has failed for this campaign."""
    backoff_seconds: Annotated[float, Field(ge=0.0)] = 0.0


class TaskPace(BaseModel):
    """How fast a round's tasks go out to devices."""

    model_config = fields.FORM

    spread_seconds: Annotated[float, Field(ge=0.0, le=fields.MAX_DELAY_SECONDS)] = 0.0
    """At random moments of so many seconds, so that not all devices start at once."""
    site_bytes_per_hour: Annotated[int, Field(ge=1)] | None = None
    """So much of the campaign's traffic goes over a site's link at most: the weights of each device
    down and its delta up, at `delta_bits_per_value`. Gateways whose site isn't known have a link
    each."""


class Asynchronous(BaseModel):
    """Versions are made while devices still train (FedBuff, arXiv 2106.06639).

    Each time that `buffer` deltas have been accepted since the last one, the next version is made
    of them, and devices that are free begin with it. A delta that began with a version `staleness`
    versions older counts (1 + staleness)^-staleness_exponent (FedAsync, arXiv 1903.03934).
    """

    model_config = fields.FORM

    buffer: Count
    """Deltas of a version; fewer where no device is at work any more."""
    staleness_exponent: Annotated[float, Field(ge=0.0, le=10.0)] = 0.5
    most_stale: Annotated[int, Field(ge=0, lt=2**31)] = 20
    """Deltas that are staler count nothing."""

    def scale(self, staleness: int) -> float:
        """What a delta of this staleness counts; 0 beyond `most_stale`."""
        return (
            staleness_scale(staleness, self.staleness_exponent)
            if staleness <= self.most_stale
            else 0.0
        )


class CampaignConfig(RoundParameters):
    """Rounds, cohort, hyper-parameters and limits of a campaign."""

    kind: Literal["adapt", "personalize", "evaluate", "rollout"] = "adapt"
    """`adapt` trains; `personalize` trains and leaves some tensors to each device alone; `evaluate`
    only scores a version; `rollout` brings a released one to devices."""
    personalize: Personalize = Personalize()
    """Of the kind `personalize`: `{"way": "fedper" | "fedbabu" | "fine-tune-last", …}`."""
    model: str = ""
    """The model in the coordinator's store, by name."""
    version: Count | None = None
    """Of that model; the newest released one where left out."""
    description: Annotated[str, Field(max_length=2000)] = ""
    """For people."""
    stages: tuple[Stage, ...] = (Stage(name="all", share=1.0),)
    """Shares of the target, each with its gates, that the campaign reaches one after the other."""
    approval: bool = False
    """Nothing begins before somebody else than the author has approved it."""
    windows: tuple[Window, ...] = ()
    """When rounds may begin; at any time where empty."""
    pace: TaskPace = TaskPace()
    """A round takes longer by the time until its last task goes out."""
    retry: Retry = Retry()
    """What is done about devices that fail."""
    retries: Mapping[str, Retry] = {}
    """The same for certain reasons: those that devices decline with, `no-report` for silence."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    """Letters, digits, - and _; several campaigns may have one name."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Cohorts, stages and the rounding of deltas follow from it."""
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 6
    """Training rounds of each stage."""
    target: str = ""
    """Which devices it is for: a filter in CEL (docs/howto/filter-devices.md); all where empty."""
    schedule: Schedule = Schedule()
    """How the learning rate goes from round to round."""

    cohort_size: Count | None = None
    """Deltas wanted per round; else `cohort_share` of the eligible devices, rounded up."""
    cohort_share: Share = 1.0
    """Share of the eligible devices that a training round is for."""
    over_selection: Annotated[float, Field(ge=0.0, le=4.0)] = 0.0
    """Share of the cohort that is asked on top, so that a round needn't wait for stragglers."""

    masking: Masking | None = None
    """How devices hide in each other: `{"least_devices": …}`. With `coding: masked` alone, which it
    goes with and whose `weighting` is `uniform`, as by default."""
    aggregation: Rule = FedAvg()
    """What becomes of the deltas of a round: `{"rule": NAME, …}`. With `coding: masked` it is
    `set-median` where left out."""
    asynchronous: Asynchronous | None = None
    """Fold deltas when they come, instead of waiting for a round's end: `{"buffer": NUMBER, …}`.
    `rounds` are versions then, and a cohort is how many devices work at once."""

    privacy: Privacy | None = None
    """Differential privacy of its devices: `{"clip": …, "noise_multiplier": …, "delta": …}`."""

    gateway_grace_seconds: Annotated[float, Field(ge=0.0)] = 90.0
    """How long after the deadline a gateway that doesn't answer is waited for: it may hold
    accepted deltas. A SuperNode that was killed is let in again after about 67 s."""
    max_seen_age_seconds: Annotated[float, Field(gt=0.0)] = 3600.0
    """A device that hasn't been heard of for longer takes no part: it may be dead though nobody has
    noticed. A connected one says something every 15 minutes; one that stays away until its next
    check-in gets that time on top."""

    plans: tuple[str, ...] = ()
    """Plan names or ids to choose from; all of the bundle's where empty."""
    min_battery_percent: Percent = 30
    """Below it a device gets the smallest plan that fits, unless something feeds it."""
    min_battery_to_take_part: Percent = 0
    """Below it a device isn't asked; a charge that nobody knows counts as full."""
    charging_only: bool = False
    """Devices that say that nothing feeds them aren't asked."""
    uplink_share: Share = 0.25
    """The delta's time on the link may take up to this share of the deadline."""
    delta_bits_per_value: Annotated[float, Field(gt=0.0, le=1000.0)] = 12.0
    """Assumed size of a coded delta value, for `uplink_share`, `pace` and plans."""

    min_devices: Count = 1
    """A round begins when so many target devices are online…"""
    wait_for_devices_seconds: Annotated[float, Field(ge=0.0)] = 120.0
    """…and the campaign fails where that hasn't happened for so long."""
    score_first: bool = True
    """Begin with a round (number 0) in which every device only scores the first weights."""
    last_round: Literal["release", "score", "none"] = "release"
    """End with a round in which every device scores the last weights, and with `release` makes them
    current: the weights that its application works with."""
    max_empty_rounds: Count = 3
    """So many training rounds in a row without an accepted delta end the campaign."""

    @field_validator("target")
    @classmethod
    def _the_target_is_a_filter(cls, text: str) -> str:
        try:
            Filter.parse(text)
        except RegistryError as error:
            raise ValueError(str(error)) from None
        return text

    @model_validator(mode="after")
    def _the_last_round_trains_too(self) -> Self:
        last = self.schedule.share(self.rounds, self.rounds) * self.learning_rate
        if last * fields.LEARNING_RATE_ONE < 1:
            raise ValueError(
                f"schedule.last_share: the last round's learning rate would be {last:g}, "
                f"devices can't tell less than {1 / fields.LEARNING_RATE_ONE:g} from 0"
            )
        return self

    @property
    def looks(self) -> int:
        """How often a gate that watches a stage is asked: after each training round, at its end.

        Asynchronous ones have no training rounds that end one by one: at its end alone.
        """
        return 1 if self.asynchronous else self.rounds + 1

    @model_validator(mode="after")
    def _asynchronous_has_what_it_takes(self) -> Self:
        if self.asynchronous is None:
            return self
        if not self.trains:
            raise ValueError(f"asynchronous: {self.kind} doesn't train; leave it out")
        if self.aggregation.fold() != FedAvg().fold():
            raise ValueError(
                f"asynchronous: {self.aggregation.rule} needs all of a round's devices at once; "
                "use fedavg, server-momentum, server-adam or server-yogi"
            )
        if self.over_selection:
            raise ValueError(
                "asynchronous: over_selection is for rounds that wait for stragglers; leave it out"
            )
        if self.cohort_size is not None and self.asynchronous.buffer > self.cohort_size:
            raise ValueError(
                f"asynchronous: buffer is {self.asynchronous.buffer}, and cohort_size lets "
                f"{self.cohort_size} devices work at once; make it smaller"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _masked_campaigns_are_robust(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping) and fields.get("coding") == "masked":
            chosen = {
                "aggregation": {"rule": "set-median"},
                "weighting": "uniform",
                # Masked values can't be told from chance, so they don't get shorter.
                "delta_bits_per_value": 16.0,
            }
            # What is said, and be it null, is said.
            return {**chosen, **fields, "masking": fields.get("masking") or {}}
        return fields

    @model_validator(mode="after")
    def _masks_have_what_they_take(self) -> Self:
        if self.masking is None:
            if isinstance(self.aggregation, SetMedian):
                raise ValueError(
                    "aggregation: set-median is over the sets of masked rounds; say coding masked, "
                    "or use bucket-median"
                )
            return self
        if self.coding != "masked":
            raise ValueError(f"masking: {self.coding} deltas have no masks; say coding masked")
        if self.asynchronous is not None:
            raise ValueError(
                "asynchronous: a set is unmasked once, when a round has ended; leave it out"
            )
        if self.cohort_size is not None and self.cohort_size < self.least_at_once:
            raise ValueError(
                f"cohort_size: {self.cohort_size} devices are too few to hide in each other, "
                f"{self.least_at_once} are wanted; make it more, or masking.least_devices less"
            )
        return self

    @property
    def least_at_once(self) -> int:
        """Devices that a training round takes, so that each can hide in a set."""
        if self.masking is None:
            return 1
        return self.aggregation.sets().least * self.masking.least_devices

    def least_ready(self, trains: bool) -> int:
        """Devices that have to be there before a round begins."""
        return max(self.min_devices, self.least_at_once) if trains else self.min_devices

    def allows(self, plan: PlanEntry) -> bool:
        """Whether devices may train this update plan."""
        return not self.plans or plan.id in self.plans or plan.name in self.plans

    @model_validator(mode="after")
    def _privacy_has_what_it_takes(self) -> Self:
        if self.privacy is None:
            return self
        if self.kind in ("evaluate", "rollout"):
            raise ValueError(
                f"privacy: {self.kind} doesn't train, and scores aren't covered by it; leave it out"
            )
        if self.masking is None:
            raise ValueError(
                f"privacy: {self.coding} deltas are neither clipped nor do they get noise; "
                "say coding masked"
            )
        try:
            round_privacy(self.privacy, self.masking, first_clip(self.privacy), 0)
        except CampaignError as error:
            raise ValueError(str(error)) from None
        return self

    def parameters(self, number: int) -> RoundParameters:
        """What training round `number` of a stage, 1 … `rounds`, asks of its devices."""
        values = self.model_dump(include=set(RoundParameters.model_fields))
        share = self.schedule.share(number, self.rounds)
        return RoundParameters.model_validate(
            {**values, "learning_rate": share * self.learning_rate}
        )

    @model_validator(mode="after")
    def _what_is_personal_is_chosen_for_what_the_application_has(self) -> Self:
        if self.kind == "personalize" and self.last_round != "release":
            raise ValueError(
                "last_round: devices choose between what they share and what is theirs when the "
                "weights are released; personalize takes release"
            )
        if self.kind != "personalize" and self.personalize != Personalize():
            raise ValueError(f"personalize: is for campaigns of that kind, not {self.kind}")
        return self

    @property
    def trains(self) -> bool:
        """Whether a new version comes of it."""
        return self.kind in ("adapt", "personalize")

    def manifest(self, manifest: Manifest) -> Manifest:
        """A bundle as this campaign sees it: its plans, and what devices send of them."""
        if self.kind != "personalize":
            return manifest
        return self.personalize.manifest(manifest)

    @property
    def tuning(self) -> dict[str, Any]:
        """What rounds in which devices train personal tensors alone have for themselves."""
        own = self.personalize
        return {
            "epochs": own.tuning_epochs or self.epochs,
            "learning_rate": own.tuning_learning_rate or self.learning_rate,
        }

    def retry_of(self, reason: str) -> Retry:
        """What is done about a device that failed for this reason."""
        return self.retries.get(reason, self.retry)

    def is_open(self, unix: float) -> bool:
        """Whether a round may begin at this time."""
        return not self.windows or any(one.is_open(unix) for one in self.windows)

    @model_validator(mode="after")
    def _stages_widen(self) -> Self:
        names = [one.name for one in self.stages]
        if not names:
            raise ValueError("stages: a campaign has at least one")
        if len(set(names)) != len(names):
            raise ValueError("stages: two have one name")
        for kind in ("share", "devices"):
            sizes = [size for one in self.stages if (size := getattr(one, kind)) is not None]
            if sizes != sorted(sizes):
                raise ValueError(f"stages: their {kind} are of all so far and have to grow")
        return self

    @model_validator(mode="after")
    def _plans_are_named_once(self) -> Self:
        if len(set(self.plans)) != len(self.plans):
            raise ValueError("plans: a plan is named twice")
        return self

    def as_file(self) -> dict[str, Any]:
        """What a file needs to say: the fields that aren't as by default, whole.

        Parts of them that are as by default, such as which gate it is, can't be left out.
        """
        whole = self.model_dump(mode="json")
        return {name: whole[name] for name in self.model_dump(exclude_defaults=True)}

    @classmethod
    def parse(cls, text: str | bytes) -> CampaignConfig:
        """The configuration in a JSON text; `CampaignError` names the field that is wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "as a whole"
            raise CampaignError(f"campaign configuration: {where}: {first['msg']}") from None
