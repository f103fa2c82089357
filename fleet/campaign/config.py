"""What a user says about a campaign; frozen once read."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fleet.errors import CampaignError

Share = Annotated[float, Field(gt=0.0, le=1.0)]
Percent = Annotated[int, Field(ge=0, le=100)]


class Target(BaseModel):
    """Which devices a campaign is for: each pattern list matches any where it is empty.

    Patterns are shell-like (`*`, `?`) and case counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    devices: tuple[str, ...] = ()
    boards: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()

    def matches(self, device: str, board: str, gateway: str) -> bool:
        """True where the device belongs to the target."""
        return all(
            not patterns or any(fnmatchcase(value, pattern) for pattern in patterns)
            for value, patterns in (
                (device, self.devices),
                (board, self.boards),
                (gateway, self.gateways),
            )
        )


class CampaignConfig(BaseModel):
    """Rounds, cohort, hyper-parameters and limits of a campaign."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 6
    target: Target = Target()

    cohort_size: Annotated[int, Field(ge=1)] | None = None
    """Deltas wanted per round; else `cohort_share` of the eligible devices, rounded up."""
    cohort_share: Share = 1.0
    over_selection: Annotated[float, Field(ge=0.0, le=4.0)] = 0.0
    """Share of the cohort that is asked on top, so that a round needn't wait for stragglers."""

    epochs: Annotated[int, Field(ge=1, le=255)] = 1
    learning_rate: Annotated[float, Field(gt=0.0, lt=4096.0)] = 0.01
    server_learning_rate: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    max_score_drop: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Devices keep their own weights where the new ones score lower by more than this."""

    deadline_seconds: Annotated[int, Field(ge=1, le=7 * 24 * 3600)] = 120
    gateway_grace_seconds: Annotated[float, Field(ge=0.0)] = 90.0
    """How long after the deadline a gateway that doesn't answer is waited for: it may hold
    accepted deltas. A SuperNode that was killed is let in again after about 67 s."""
    check_in_seconds: Annotated[int, Field(ge=0)] = 0
    chunk_bytes: Annotated[int, Field(ge=64, le=512)] = 512

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
    score_last: bool = True
    """End with a round in which every device only scores the last weights."""
    max_empty_rounds: Annotated[int, Field(ge=1)] = 3
    """So many training rounds in a row without an accepted delta end the campaign."""

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
