"""How a round's deltas are added up while they come in, by name.

A fold deals the devices of a round to parts; a gateway keeps one sum per plan and part, so that no
single delta need be kept. What the parts are made of later is the coordinator's matter
(:mod:`fleet.aggregation`). A new fold is a class here and its name in ``Fold``.

With `Arrivals` parts follow each other in time: the coordinator takes one out of a round that still
runs, and what comes then goes to the next.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

MAX_BUCKETS = 64
MAX_DEALT = 1024


class _Dealing(BaseModel, ABC):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @property
    def by_arrival(self) -> bool:
        """Whether parts follow each other, so that they leave a round while it runs."""
        return False

    @property
    @abstractmethod
    def parts(self) -> int:
        """How many sums there are of each plan; where parts follow each other, at a time."""

    @abstractmethod
    def part_of(self, round_seed: int, device: str, dealt: int) -> int:
        """Which of them a device's delta is added to; the same at every gateway.

        ``dealt`` is the one that the start request deals it to.
        """


class Sums(_Dealing):
    """One sum of each plan."""

    name: Literal["sums"] = "sums"

    @property
    def parts(self) -> int:
        """See `_Dealing`."""
        return 1

    def part_of(self, round_seed: int, device: str, dealt: int) -> int:
        """See `_Dealing`."""
        return 0


class Buckets(_Dealing):
    """``count`` sums of each plan; round seed and name say which is a device's."""

    name: Literal["buckets"]
    count: Annotated[int, Field(ge=1, le=MAX_BUCKETS)]

    @property
    def parts(self) -> int:
        """See `_Dealing`."""
        return self.count

    def part_of(self, round_seed: int, device: str, dealt: int) -> int:
        """See `_Dealing`."""
        text = f"tinyfleet-bucket/{round_seed}/{device}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % self.count


class Dealt(_Dealing):
    """``count`` sums of each plan; the start request says which is a device's."""

    name: Literal["dealt"]
    count: Annotated[int, Field(ge=1, le=MAX_DEALT)]

    @property
    def parts(self) -> int:
        """See `_Dealing`."""
        return self.count

    def part_of(self, round_seed: int, device: str, dealt: int) -> int:
        """See `_Dealing`."""
        return dealt


class Arrivals(_Dealing):
    """One sum of each plan at a time: of what came since the coordinator took the one before."""

    name: Literal["arrivals"]

    @property
    def by_arrival(self) -> bool:
        """See `_Dealing`."""
        return True

    @property
    def parts(self) -> int:
        """See `_Dealing`."""
        return 1

    def part_of(self, round_seed: int, device: str, dealt: int) -> int:
        """See `_Dealing`; counted from the part that deltas go to now."""
        return 0


AnyFold: TypeAlias = Sums | Buckets | Dealt | Arrivals
Fold = Annotated[AnyFold, Field(discriminator="name")]
"""A fold in a start request: ``{"name": NAME, …}``."""

FOLD: TypeAdapter[AnyFold] = TypeAdapter(Fold)
