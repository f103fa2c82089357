"""The ``start`` request of docs/specification/gateway.md, checked as a whole."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from fleet.errors import GatewayError
from fleet.gateway.folds import Fold, Sums
from fleet.gateway.rounds import PlanSpec, RoundKey, RoundSpec, TaskSpec
from fleet.protocol import fields
from fleet.protocol.chunks import chunk_count
from fleet.protocol.fields import HexCampaign, HexDigest, Name
from fleet.protocol.round_parameters import RoundParameters

# Σ weight · value stays inside int64: 2^16 devices · 2^16 samples · 2^31.
MAX_COHORT = (1 << 16) - 1
MAX_VALUES = 1 << 26

Uint32 = Annotated[int, fields.uint32.field()]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Lease = Annotated[int, fields.LEASE.field()]
Samples = Annotated[int, fields.SAMPLES.field()]
Delay = Annotated[float, Field(ge=0.0, le=fields.MAX_DELAY_SECONDS, allow_inf_nan=False)]


def _with_delay(task: object) -> object:
    return [*task, 0.0] if isinstance(task, list | tuple) and len(task) == 2 else task


class Tasks(_Request):
    """What devices are to train and from which weights: a round has few pairs of these.

    `devices`: for each its lease, on how many samples it may train at most, and for how long its
    task is held back, which may be left out.
    """

    plan: HexDigest
    weights: HexDigest
    devices: dict[
        Name,
        Annotated[tuple[Lease, Samples, Delay], Field(strict=False), BeforeValidator(_with_delay)],
    ]


class PlanSize(_Request):
    """How many values a plan's delta has, and the largest magnitudes, as [values, bound]."""

    values: Annotated[int, Field(ge=0, le=MAX_VALUES)]
    bounds: list[Annotated[list[Uint32], Field(min_length=2, max_length=2)]] | None = None

    @model_validator(mode="after")
    def _bounds_cover_the_values(self) -> PlanSize:
        if self.bounds is not None and sum(count for count, _ in self.bounds) != self.values:
            raise ValueError(f"the counts of bounds don't add up to {self.values} values")
        return self


class Blob(_Request):
    """A version of the weights."""

    sha256: HexDigest
    data: bytes

    @model_validator(mode="after")
    def _digest_fits(self) -> Blob:
        if not self.data:
            raise ValueError("the blob is empty")
        if hashlib.sha256(self.data).hexdigest() != self.sha256:
            raise ValueError("the digest isn't that of the data")
        return self


class StartRequest(RoundParameters):
    """All that a round is asked for with."""

    model_config = ConfigDict(strict=True)

    campaign: HexCampaign
    round: Annotated[int, fields.ROUND.field()]
    action: Literal["score", "train", "release"]
    seed: Annotated[int, fields.SEED.field()]
    fold: Fold = Sums()
    blobs: Annotated[tuple[Blob, ...], Field(strict=False)] = ()
    tasks: Annotated[tuple[Tasks, ...], Field(strict=False)]
    plans: dict[HexDigest, PlanSize]
    target: Annotated[int, Field(ge=1)]
    personal: Annotated[int, fields.uint8.field()] = 0

    @model_validator(mode="after")
    def _parts_agree(self) -> StartRequest:
        for of in self.tasks:
            if of.plan not in self.plans:
                raise ValueError(f"plans lacks {of.plan[:8]}…, which tasks has")
        devices = Counter(device for of in self.tasks for device in of.devices)
        if not 1 <= len(devices) <= MAX_COHORT:
            raise ValueError(f"tasks has {len(devices)} devices, 1 … {MAX_COHORT} are allowed")
        twice = [device for device, count in devices.items() if count > 1]
        if twice:
            raise ValueError(f"tasks has device {twice[0]} twice")
        prefixes = {plan[: 2 * fields.PREFIX_BYTES] for plan in self.plans}
        if len(prefixes) != len(self.plans):
            raise ValueError("two plans have ids that begin alike")
        for blob in self.blobs:
            chunks = chunk_count(len(blob.data), self.chunk_bytes)
            if chunks > fields.uint16.most + 1:
                raise ValueError(
                    f"blob {blob.sha256[:8]}… would have {chunks} chunks, "
                    f"{fields.uint16.most + 1} have numbers; make chunk_bytes larger"
                )
        return self

    @classmethod
    def parse(cls, request: Mapping[str, Any]) -> StartRequest:
        """The request in a CBOR map without its ``op``; GatewayError names what is wrong."""
        try:
            return cls.model_validate(dict(request))
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise GatewayError(
                f"start: {where or 'request'}: {first['msg']}; "
                f"docs/specification/gateway.md has the form of a start request"
            ) from None

    @property
    def key(self) -> RoundKey:
        """Campaign and round."""
        return RoundKey(bytes.fromhex(self.campaign), self.round)

    @cached_property
    def spec(self) -> RoundSpec:
        """The round that is asked for, if all its devices can have a part in it."""
        tasks = {}
        for of in self.tasks:
            plan, weights = bytes.fromhex(of.plan), bytes.fromhex(of.weights)
            for device, asked in of.devices.items():
                tasks[device] = TaskSpec(plan, weights, *asked)
        return RoundSpec(
            key=self.key,
            action=self.action,
            seed=self.seed,
            tasks=tasks,
            plans={
                bytes.fromhex(plan): PlanSpec(
                    size.values,
                    None if size.bounds is None else tuple((n, bound) for n, bound in size.bounds),
                )
                for plan, size in self.plans.items()
            },
            parameters=RoundParameters(
                **{name: getattr(self, name) for name in RoundParameters.model_fields}
            ),
            fold=self.fold,
            target=self.target,
            personal=self.personal,
        )

    @cached_property
    def content(self) -> bytes:
        """Digest of all but the blobs, which the tasks name: two requests of one are the same."""
        return hashlib.sha256(self.spec.encode()).digest()

    def blob_data(self) -> dict[bytes, bytes]:
        """The versions that came along, by digest."""
        return {bytes.fromhex(blob.sha256): blob.data for blob in self.blobs}
