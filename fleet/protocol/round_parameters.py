"""What a round asks of its devices, and in which range: one definition for all who pass it on.

A campaign's configuration is these fields and more, a gateway's start request has them, and a task
message is made of them; so what the first accepts the last can say.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from fleet.protocol import fields
from fleet.protocol.numbers import Action, Coding, Weighting, number_name


def _names(kind: type[IntEnum]) -> tuple[str, ...]:
    return tuple(number_name(kind, value) for value in kind)


CODINGS = _names(Coding)
WEIGHTINGS = _names(Weighting)
ACTIONS = _names(Action)
"""Position in these tuples: the number on the wire."""


# Below the least one devices would be told 0.
LEARNING_RATE = Field(ge=1 / fields.LEARNING_RATE_ONE, le=fields.MAX_LEARNING_RATE)


class RoundParameters(BaseModel):
    """The same for every device of a round."""

    model_config = fields.FORM

    epochs: Annotated[int, fields.EPOCHS.field(least=1)] = 1
    """Times over a device's samples, each round."""
    learning_rate: Annotated[float, LEARNING_RATE] = 0.01
    """Of the devices' training."""
    coding: Literal["rice", "masked"] = "rice"
    """How delta values become bytes: `masked` hides each device's behind a mask, so that only sums
    of many devices can be read (docs/specification/masking.md)."""
    weighting: Literal["samples", "uniform"] = "samples"
    """Devices count by their training samples, or all alike, as masked ones have to."""
    max_score_drop: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Devices keep their own weights where the new ones score lower by more than this."""
    deadline_seconds: Annotated[int, fields.DEADLINE_SECONDS.field(least=1)] = 120
    """What a device has for its task; a round ends so long after its last task at the latest."""
    check_in_seconds: Annotated[int, fields.CHECK_IN_SECONDS.field()] = 0
    """How long a device that is done stays away; 0: it stays connected."""
    chunk_bytes: Annotated[int, fields.CHUNK_BYTES.field()] = fields.CHUNK_BYTES.most
    """Size of a message down to devices; smaller for links that lose much."""
    uplink_chunk_bytes: Annotated[int, fields.UPLINK_CHUNK_BYTES.field()] = (
        fields.UPLINK_CHUNK_BYTES.most
    )
    """Size of a message up from devices."""

    @model_validator(mode="after")
    def _masked_devices_count_alike(self) -> Self:
        if self.coding == "masked" and self.weighting != "uniform":
            raise ValueError(
                "coding: nobody sees whose masked values are whose, so all count alike; "
                "say weighting uniform as well"
            )
        return self

    @model_validator(mode="after")
    def _devices_are_back_in_time(self) -> Self:
        # A device stays away for up to an eighth longer, so that a cohort doesn't come back as one.
        if self.check_in_seconds and self.check_in_seconds * 9 // 8 >= self.deadline_seconds:
            raise ValueError(
                f"check_in_seconds: devices that stay away for up to "
                f"{self.check_in_seconds * 9 // 8} s miss rounds of deadline_seconds "
                f"{self.deadline_seconds}; make it less than 8/9 of the deadline"
            )
        return self

    @property
    def learning_rate_q20(self) -> int:
        """As on the wire."""
        return round(self.learning_rate * fields.LEARNING_RATE_ONE)

    @property
    def max_score_drop_permille(self) -> int:
        """As on the wire."""
        return round(self.max_score_drop * 1000)
