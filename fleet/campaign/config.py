"""What a user says about a campaign; frozen once read."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from fleet.aggregation.rules import FedAvg, Rule
from fleet.errors import CampaignError, RegistryError
from fleet.protocol import fields
from fleet.protocol.round_parameters import RoundParameters
from fleet.registry import Filter

Share = Annotated[float, Field(gt=0.0, le=1.0)]
Percent = Annotated[int, Field(ge=0, le=100)]


class Schedule(BaseModel):
    """How the learning rate goes from round to round.

    `cosine` (arXiv 1608.03983, without restarts) goes from `learning_rate` in the first training
    round to `last_share` of it in the last: steps that are right while weights are far off throw
    devices about once they are near.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["constant", "cosine"] = "constant"
    last_share: Share = 0.1

    def share(self, number: int, rounds: int) -> float:
        """Share of the learning rate in training round `number` of 1 … `rounds`."""
        if self.name == "constant" or rounds == 1:
            return 1.0
        done = min(max(number - 1, 0), rounds - 1) / (rounds - 1)
        return self.last_share + (1 - self.last_share) * 0.5 * (1 + math.cos(math.pi * done))


class CampaignConfig(RoundParameters):
    """Rounds, cohort, hyper-parameters and limits of a campaign."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 6
    target: str = ""
    """Which devices it is for: a filter in CEL (docs/howto/filter-devices.md); all where empty."""
    schedule: Schedule = Schedule()

    cohort_size: Annotated[int, Field(ge=1)] | None = None
    """Deltas wanted per round; else `cohort_share` of the eligible devices, rounded up."""
    cohort_share: Share = 1.0
    over_selection: Annotated[float, Field(ge=0.0, le=4.0)] = 0.0
    """Share of the cohort that is asked on top, so that a round needn't wait for stragglers."""

    aggregation: Rule = FedAvg()
    """What becomes of the deltas of a round: `{"rule": NAME, …}`."""

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
    """Below it a device gets the smallest plan that fits."""
    min_battery_to_take_part: Percent = 0
    uplink_share: Share = 0.25
    """The delta's time on the link may take up to this share of the deadline."""
    delta_bits_per_value: Annotated[float, Field(gt=0.0)] = 12.0
    """Assumed size of a coded delta value, for `uplink_share` only."""

    min_devices: Annotated[int, Field(ge=1)] = 1
    """A round begins when so many target devices are online…"""
    wait_for_devices_seconds: Annotated[float, Field(ge=0.0)] = 120.0
    """…and the campaign fails where that hasn't happened for so long."""
    score_first: bool = True
    """Begin with a round (number 0) in which every device only scores the first weights."""
    last_round: Literal["release", "score", "none"] = "release"
    """End with a round in which every device scores the last weights, and with `release` makes them
    current: the weights that its application works with."""
    max_empty_rounds: Annotated[int, Field(ge=1)] = 3
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

    def parameters(self, number: int) -> RoundParameters:
        """What round `number` asks of its devices."""
        values = self.model_dump(include=set(RoundParameters.model_fields))
        share = self.schedule.share(number, self.rounds)
        return RoundParameters.model_validate(
            {**values, "learning_rate": share * self.learning_rate}
        )

    @model_validator(mode="after")
    def _plans_are_named_once(self) -> Self:
        if len(set(self.plans)) != len(self.plans):
            raise ValueError("plans: a plan is named twice")
        return self

    @classmethod
    def parse(cls, text: str | bytes) -> CampaignConfig:
        """The configuration in a JSON text; `CampaignError` names the field that is wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "as a whole"
            raise CampaignError(f"campaign configuration: {where}: {first['msg']}") from None
