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

from fleet.errors import GatewayError, KeysError, MaskError
from fleet.gateway.folds import Dealt, Fold, Sums
from fleet.gateway.rounds import MaskSpec, PlanSpec, RoundKey, RoundSpec, TaskSpec
from fleet.protocol import fields
from fleet.protocol.chunks import chunk_count
from fleet.protocol.fields import HexCampaign, HexDigest, Name
from fleet.protocol.keys import MAX_UNMASKERS, SignedKeyring
from fleet.protocol.masking import MaskParameters
from fleet.protocol.round_parameters import RoundParameters

# Σ weight · value stays inside int64: 2^16 devices · 2^16 samples · 2^31.
MAX_COHORT = (1 << 16) - 1
MAX_VALUES = 1 << 26

Uint32 = Annotated[int, fields.uint32.field()]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Lease = Annotated[int, fields.LEASE.field()]
Samples = Annotated[int, fields.SAMPLES.field()]
Signature = Annotated[bytes, Field(max_length=fields.MAX_SIGNATURE_BYTES)]
Uint16 = Annotated[int, fields.uint16.field()]
Delay = Annotated[float, Field(ge=0.0, le=fields.MAX_DELAY_SECONDS, allow_inf_nan=False)]


_LEFT_OUT = (0.0, b"", 0)
"""What a device's delay, signature and part are where they aren't said."""


def _whole(task: object) -> object:
    if not isinstance(task, list | tuple) or not 2 <= len(task) <= 5:
        return task
    return [*task, *_LEFT_OUT[len(task) - 2 :]]


class Tasks(_Request):
    """What devices are to train and from which weights: a round has few pairs of these.

    `devices`: for each its lease, on how many samples it may train at most, and what may be left
    out: for how long its task is held back, its signature, its part of a fold that deals.
    """

    plan: HexDigest
    weights: HexDigest
    devices: dict[
        Name,
        Annotated[
            tuple[Lease, Samples, Delay, Signature, Annotated[int, Field(ge=0)]],
            Field(strict=False),
            BeforeValidator(_whole),
        ],
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


class Masks(_Request):
    """How devices mask their deltas (masking.md); `unmaskers` is their number."""

    bits: int
    value_bound: Annotated[int, Field(ge=1, le=fields.uint16.most)]
    clip: Uint32 = 0
    norm_share: Uint16 = 0
    noise_variance: Uint32 = 0
    least_devices: Annotated[int, Field(ge=2, le=fields.uint16.most)]
    unmaskers: Annotated[int, Field(ge=1, le=MAX_UNMASKERS)]
    unmaskers_digest: Annotated[bytes, Field(min_length=fields.PREFIX_BYTES, max_length=8)]

    @property
    def parameters(self) -> MaskParameters:
        """As tasks have them; MaskError where no device can do that."""
        return MaskParameters(
            self.bits,
            self.value_bound,
            self.clip,
            self.norm_share,
            self.noise_variance,
            self.least_devices,
        )

    @property
    def spec(self) -> MaskSpec:
        """As a round keeps it."""
        return MaskSpec(self.parameters, self.unmaskers, self.unmaskers_digest)

    @model_validator(mode="after")
    def _devices_can(self) -> Masks:
        try:
            _ = self.parameters
        except MaskError as error:
            raise ValueError(str(error)) from None
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
    masks: Masks | None = None
    personal: Annotated[int, fields.uint8.field()] = 0
    keyring: bytes = b""

    @model_validator(mode="after")
    def _keys_are_there(self) -> StartRequest:
        if (self.coding == "masked") != (self.masks is not None):
            raise ValueError("masks go with the coding masked, and with no other")
        if self.keyring:
            try:
                SignedKeyring.decode(self.keyring)
            except KeysError as error:
                raise ValueError(f"keyring: {error}") from None
        return self

    @model_validator(mode="after")
    def _devices_are_dealt_to_parts_that_there_are(self) -> StartRequest:
        parts = self.fold.parts if isinstance(self.fold, Dealt) else 1
        for of in self.tasks:
            for device, (*_, part) in of.devices.items():
                if part >= parts:
                    raise ValueError(f"tasks has {device} in part {part}; the fold has {parts}")
        return self

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
            masks=self.masks.spec if self.masks else None,
            personal=self.personal,
            keyring=self.keyring,
        )

    @cached_property
    def content(self) -> bytes:
        """Digest of all but blobs, which the tasks name, and keys: two of one are the same."""
        return hashlib.sha256(self.spec.content.encode()).digest()

    def blob_data(self) -> dict[bytes, bytes]:
        """The versions that came along, by digest."""
        return {bytes.fromhex(blob.sha256): blob.data for blob in self.blobs}
