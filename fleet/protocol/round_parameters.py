"""What a round asks of its devices, and in which range: one definition for all who pass it on.

A campaign's configuration is these fields and more, a gateway's start request has them, and a task
message is made of them; so what the first accepts the last can say.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LEARNING_RATE_ONE = 1 << 20
"""Learning rates travel as integers of this unit."""
LONGEST_ROUND_SECONDS = 7 * 24 * 3600
LARGEST_CHUNK_BYTES = 512
"""Of the weights, on their way down: what a device takes at once while it programs its flash."""
LARGEST_UPLINK_CHUNK_BYTES = 16 * 1024

CODINGS = ("rice", "masked")
WEIGHTINGS = ("samples", "uniform")
ACTIONS = ("score", "train", "release")
"""Position in these tuples: the number on the wire."""


class RoundParameters(BaseModel):
    """The same for every device of a round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: Annotated[int, Field(ge=1, le=255)] = 1
    learning_rate: Annotated[float, Field(gt=0.0, lt=4096.0)] = 0.01
    coding: Literal["rice"] = "rice"
    """How delta values become bytes; `masked` has its place on the wire and no code yet."""
    weighting: Literal["samples", "uniform"] = "samples"
    """Devices count by their training samples, or all alike."""
    max_score_drop: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Devices keep their own weights where the new ones score lower by more than this."""
    deadline_seconds: Annotated[int, Field(ge=1, le=LONGEST_ROUND_SECONDS)] = 120
    check_in_seconds: Annotated[int, Field(ge=0, lt=LONGEST_ROUND_SECONDS)] = 0
    """How long a device that is done stays away; 0: it stays connected."""
    chunk_bytes: Annotated[int, Field(ge=64, le=LARGEST_CHUNK_BYTES, multiple_of=4)] = (
        LARGEST_CHUNK_BYTES
    )
    uplink_chunk_bytes: Annotated[int, Field(ge=64, le=LARGEST_UPLINK_CHUNK_BYTES)] = (
        LARGEST_UPLINK_CHUNK_BYTES
    )

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
        return min(round(self.learning_rate * LEARNING_RATE_ONE), (1 << 32) - 1)

    @property
    def max_score_drop_permille(self) -> int:
        """As on the wire."""
        return round(self.max_score_drop * 1000)
