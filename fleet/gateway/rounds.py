"""A round as the gateway sees it: what was asked for, and where it stands."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, Self

import cbor2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fleet.errors import GatewayError
from fleet.protocol import Delta, Task
from fleet.protocol.fields import CHUNK_BYTES, NAME_PATTERN

LEARNING_RATE_ONE = 1 << 20
# Σ train_samples · value stays inside int64: 2^16 devices · 2^16 samples · 2^31.
MAX_COHORT = (1 << 16) - 1

UINT16 = (1 << 16) - 1
UINT32 = (1 << 32) - 1


class RoundState(StrEnum):
    """Where a round stands."""

    RUNNING = "running"
    CLOSED = "closed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class RoundKey(NamedTuple):
    """What names a round."""

    campaign: bytes
    round: int

    def __str__(self) -> str:
        """For logs and messages."""
        return f"round {self.round} of campaign {self.campaign.hex()}"


Hex8 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Uint8 = Annotated[int, Field(ge=0, le=255)]
Uint16 = Annotated[int, Field(ge=0, le=UINT16)]
Uint32 = Annotated[int, Field(ge=0, le=UINT32)]
DeviceName = Annotated[str, Field(pattern=f"^{NAME_PATTERN.pattern}$")]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TaskEntry(_Request):
    """What one device is to train, from which weights, and on how many samples at most."""

    plan: Hex32
    weights: Hex32
    train_samples: Uint16 = UINT16


class PlanSize(_Request):
    """How many values a plan's delta has, and the largest magnitudes, as [values, bound]."""

    values: Annotated[int, Field(ge=0, le=1 << 26)]
    bounds: list[Annotated[list[Uint32], Field(min_length=2, max_length=2)]] | None = None

    @model_validator(mode="after")
    def _bounds_cover_the_values(self) -> Self:
        if self.bounds is not None and sum(count for count, _ in self.bounds) != self.values:
            raise ValueError(f"the counts of bounds don't add up to {self.values} values")
        return self


class Blob(_Request):
    """A version of the weights."""

    sha256: Hex32
    data: bytes
    chunk_bytes: Annotated[int, Field(ge=64, le=CHUNK_BYTES)] = CHUNK_BYTES

    @model_validator(mode="after")
    def _digest_fits(self) -> Self:
        if not self.data:
            raise ValueError("the blob is empty")
        if hashlib.sha256(self.data).hexdigest() != self.sha256:
            raise ValueError("the digest isn't that of the data")
        return self

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-len(self.data) // self.chunk_bytes)


class StartRequest(_Request):
    """The ``start`` request of docs/specification/gateway.md."""

    campaign: Hex8
    round: Uint32
    blobs: Annotated[tuple[Blob, ...], BeforeValidator(tuple)] = ()
    tasks: Annotated[dict[DeviceName, TaskEntry], Field(min_length=1, max_length=MAX_COHORT)]
    plans: dict[Hex32, PlanSize]
    epochs: Uint8
    learning_rate: Annotated[float, Field(ge=0.0, le=UINT32 / LEARNING_RATE_ONE)]
    seed: Uint32
    deadline_seconds: Annotated[int, Field(ge=1, le=UINT32)]
    max_score_drop_permille: Uint16
    check_in_seconds: Uint32
    target: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        for device, task in self.tasks.items():
            if task.plan not in self.plans:
                raise ValueError(f"plans lacks {task.plan[:8]}…, the plan of device {device}")
        prefixes = {plan[:16] for plan in self.plans}
        if len(prefixes) != len(self.plans):
            raise ValueError("two plans have ids that begin alike")
        return self

    @classmethod
    def parse(cls, request: Mapping[str, Any]) -> StartRequest:
        """The request in a CBOR map without its ``op``; GatewayError names what is wrong."""
        try:
            return cls.model_validate(dict(request))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise GatewayError(
                f"start: {where or 'request'}: {first['msg']}; "
                f"docs/specification/gateway.md has the form of a start request"
            ) from None

    @property
    def key(self) -> RoundKey:
        """Campaign and round."""
        return RoundKey(bytes.fromhex(self.campaign), self.round)


@dataclass(frozen=True)
class BlobSize:
    """What a task says about its weights."""

    bytes: int
    chunk_bytes: int

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.bytes // self.chunk_bytes)


@dataclass(frozen=True)
class RoundSpec:
    """What was asked for. Ids are raw bytes here, as on the wire."""

    key: RoundKey
    tasks: Mapping[str, tuple[bytes, bytes]]  # device → plan, weights
    plans: Mapping[bytes, int]  # plan → values of its delta
    weights: Mapping[bytes, BlobSize]
    epochs: int
    learning_rate_q20: int
    seed: int
    deadline_seconds: int
    max_score_drop_permille: int
    check_in_seconds: int
    target: int
    # What an older coordinator doesn't say has no entry.
    bounds: Mapping[bytes, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    most_samples: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_request(cls, request: StartRequest, known: Mapping[bytes, BlobSize]) -> RoundSpec:
        """The round that ``request`` asks for; ``known`` are weights that the store has."""
        available = dict(known)
        for blob in request.blobs:
            available[bytes.fromhex(blob.sha256)] = BlobSize(len(blob.data), blob.chunk_bytes)
        tasks = {
            device: (bytes.fromhex(task.plan), bytes.fromhex(task.weights))
            for device, task in request.tasks.items()
        }
        needed = {weights for _, weights in tasks.values()}
        for weights in needed - available.keys():
            raise GatewayError(
                f"start: no blob has the weights {weights.hex()}; put them into 'blobs'"
            )
        return cls(
            key=request.key,
            tasks=tasks,
            plans={bytes.fromhex(plan): size.values for plan, size in request.plans.items()},
            weights={weights: available[weights] for weights in sorted(needed)},
            epochs=request.epochs,
            learning_rate_q20=min(round(request.learning_rate * LEARNING_RATE_ONE), UINT32),
            seed=request.seed,
            deadline_seconds=request.deadline_seconds,
            max_score_drop_permille=request.max_score_drop_permille,
            check_in_seconds=request.check_in_seconds,
            target=request.target,
            bounds={
                bytes.fromhex(plan): tuple((count, bound) for count, bound in size.bounds)
                for plan, size in request.plans.items()
                if size.bounds is not None
            },
            most_samples={
                device: task.train_samples
                for device, task in request.tasks.items()
                if task.train_samples < UINT16
            },
        )

    def encode(self) -> bytes:
        """One byte string for one content: what the store keeps and ``digest`` is taken of."""
        bounded: list[Any] = []
        # Left out where there is nothing, as in the stores that older versions wrote.
        if self.bounds or self.most_samples:
            bounded = [dict(sorted(self.bounds.items())), dict(sorted(self.most_samples.items()))]
        return cbor2.dumps(
            [
                self.key.campaign,
                self.key.round,
                {device: list(task) for device, task in sorted(self.tasks.items())},
                dict(sorted(self.plans.items())),
                {sha: [w.bytes, w.chunk_bytes] for sha, w in sorted(self.weights.items())},
                self.epochs,
                self.learning_rate_q20,
                self.seed,
                self.deadline_seconds,
                self.max_score_drop_permille,
                self.check_in_seconds,
                self.target,
                *bounded,
            ]
        )

    @classmethod
    def decode(cls, data: bytes) -> RoundSpec:
        """What ``encode`` wrote."""
        campaign, number, tasks, plans, weights, *rest = cbor2.loads(data)
        numbers, bounded = rest[:7], rest[7:]
        bounds, most_samples = bounded or ({}, {})
        pairs = {plan: tuple((n, bound) for n, bound in of) for plan, of in bounds.items()}
        numbers += [pairs, most_samples]
        return cls(
            RoundKey(campaign, number),
            {device: (plan, version) for device, (plan, version) in tasks.items()},
            plans,
            {sha: BlobSize(size, chunk) for sha, (size, chunk) in weights.items()},
            *numbers,
        )

    def beyond_bounds(self, plan: bytes, values: NDArray[np.int32]) -> str | None:
        """Which of a delta's ``values`` (shape: the plan's values) no device can send, if any."""
        if plan not in self.bounds or not values.size:
            return None
        counts, bounds = zip(*self.bounds[plan], strict=True)
        limits = np.repeat(np.array(bounds, np.int64), counts)
        # As int64: the magnitude of -2^31 isn't an int32.
        beyond = np.flatnonzero(np.abs(values.astype(np.int64)) > limits)
        if not beyond.size:
            return None
        first = int(beyond[0])
        return (
            f"value {first} is {values[first]}, beyond ±{limits[first]} "
            f"({beyond.size} of {values.size} values are beyond their bounds)"
        )

    def task(self, device: str, seconds_left: float) -> Task:
        """The task message of ``device``."""
        plan, weights = self.tasks[device]
        blob = self.weights[weights]
        return Task(
            campaign=self.key.campaign,
            round=self.key.round,
            plan=plan,
            weights=weights,
            weights_bytes=blob.bytes,
            chunk_bytes=blob.chunk_bytes,
            epochs=self.epochs,
            learning_rate_q20=self.learning_rate_q20,
            seed=self.seed,
            deadline_seconds=max(1, math.ceil(seconds_left)),
            max_score_drop_permille=self.max_score_drop_permille,
            check_in_seconds=self.check_in_seconds,
        )


@dataclass
class PartialDelta:
    """Chunks of one device's delta that have arrived; the bytes themselves are in the store."""

    header: Delta
    received: set[int] = field(default_factory=set)


@dataclass
class Round:
    """Where a round stands."""

    spec: RoundSpec
    deadline: float  # seconds since 1970
    state: RoundState = RoundState.RUNNING
    accepted: set[str] = field(default_factory=set)
    declined: dict[str, int] = field(default_factory=dict)
    partial: dict[str, PartialDelta] = field(default_factory=dict)

    @property
    def waiting(self) -> set[str]:
        """Devices that have neither delivered nor declined."""
        return self.spec.tasks.keys() - self.accepted - self.declined.keys()

    @property
    def open(self) -> bool:
        """Whether deltas are still folded in."""
        return self.state is RoundState.RUNNING

    @property
    def settled(self) -> bool:
        """Whether nothing more is wanted or can come."""
        answered = len(self.accepted) + len(self.declined)  # no device is in both
        return len(self.accepted) >= self.spec.target or answered >= len(self.spec.tasks)
