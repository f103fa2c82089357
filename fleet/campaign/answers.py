"""What gateways answer, checked where it enters: docs/specification/gateway.md as types.

A gateway may be of another version, misconfigured or hostile. Whatever it says either has this form
or is an `AnswerError` that names the gateway and the field; nothing behind this module has to doubt
an answer's form again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fleet.errors import AnswerError
from fleet.protocol import fields
from fleet.protocol.fields import HexDigest, Name
from fleet.protocol.keys import MAX_UNMASKERS
from fleet.protocol.masking import NONCE_BYTES, SEAL_BYTES

Count = Annotated[int, Field(ge=0, le=(1 << 63) - 1)]
Uint16 = Annotated[int, fields.uint16.field()]
Uint32 = Annotated[int, fields.uint32.field()]
Seconds = Annotated[float, Field(allow_inf_nan=False)]
State = Literal["running", "closed", "cancelled", "unknown"]
StartRefusal = Literal["busy", "unknown", "older-lease"]


class _Answer(BaseModel):
    # A newer gateway may say more; what is read has to be right.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    @classmethod
    def parse(cls, gateway: str, answer: object) -> Self:
        """The answer of ``gateway``; AnswerError names it and the field that is wrong."""
        return _parse(cls, gateway, answer)


class DeviceEntry(_Answer):
    """A device in a `hello`."""

    device: Name
    board: Name
    bundle: HexDigest
    current: HexDigest
    candidate: HexDigest | Literal[""] = ""
    lease: Uint32 = 0
    free_sram_bytes: Uint32
    battery_percent: Annotated[int, Field(ge=0, le=100)] | None
    """None where the device can't tell."""
    charging: bool | None = None
    """Whether something feeds it from outside; None where it can't tell."""
    reset_cause: Annotated[str, Field(max_length=32)] | None = None
    fault_code: Annotated[int, Field(ge=0, le=255)] | None = None
    """Of the last fault that it has a record of; 0: none."""
    keyring: Uint32 = 0
    """Generation of the fleet's keys that it follows; 0: none."""
    link_bits_per_second: Uint32
    train_samples: Uint16
    held_out_samples: Uint16
    online: bool
    stale: bool = False
    seen_age_seconds: Seconds = 0.0
    last_seen: Seconds | None = None
    """0: never itself, there is only what the broker kept of it."""


class RoundCounters(_Answer):
    """The counters of a round in a `hello`; they go on after the round's end."""

    campaign: str
    round: Uint32
    state: State
    late: Count = 0
    duplicate: Count = 0
    refused: dict[str, Count] = {}


class Hello(_Answer):
    """What a gateway says of itself: devices and rounds that changed since the cursor."""

    gateway: Name
    version: Count = 0
    """Of docs/specification/gateway.md; 0: of a time before it was told."""
    devices: list[DeviceEntry]
    rounds: list[RoundCounters]
    access_cursor: Count | None = None
    """Up to which change it knows the broker's users; None where it doesn't keep them."""
    cursor: Count = 0
    more: bool = False


class StartAnswer(_Answer):
    """The answer to `start` and `cancel`; `devices` are those that got no task."""

    state: State
    devices: dict[Name, StartRefusal] = {}


class FoldPart(_Answer):
    """One sum of a fold: int64 little endian values, Σ of the weights, number of devices."""

    values: bytes
    weight: Count
    devices: Count


class Report(_Answer):
    """What a device measured in a round."""

    device: Name
    plan: HexDigest
    status: str = "accepted"
    train_samples: Uint16
    train_steps: Uint32 = 0
    held_out: Uint16
    correct_before: Uint16
    correct_after: Uint16
    loss_before: Seconds = 0.0
    loss_after: Seconds = 0.0
    correct_local: Uint16 = 0
    """With what the device has trained for itself alone."""
    kept: Annotated[int, fields.uint8.field()] = 0
    """What its application works with (wire.md)."""
    coded_bytes: Uint32
    payload_bytes: Uint32
    seconds: Seconds
    nonce: Annotated[bytes, Field(max_length=NONCE_BYTES)] = b""
    """Of a masked delta…"""
    seals: Annotated[bytes, Field(max_length=MAX_UNMASKERS * SEAL_BYTES)] = b""
    """…with its seals, end to end."""

    @model_validator(mode="after")
    def _has_no_more_right_answers_than_samples(self) -> Self:
        if max(self.correct_before, self.correct_after, self.correct_local) > self.held_out:
            raise ValueError(f"more right answers than its {self.held_out} samples")
        return self


class Explanation(_Answer):
    """Why a delta wasn't counted in."""

    device: str
    kind: str
    detail: str
    at: Seconds


class CollectAnswer(_Answer):
    """Where a round stands: its counters, a page of reports, the folds once it is closed."""

    state: State
    accepted: Count = 0
    late: Count = 0
    duplicate: Count = 0
    refused: dict[str, Count] = {}
    declined: dict[str, Count] = {}
    declined_by: dict[Name, str] = {}
    """Devices that declined or failed, with reasons; once the round is closed, 500 at most."""
    sums: dict[HexDigest, list[FoldPart]] | None = None
    part: Count | None = None
    """Of a fold by arrival: which part the sums are of…"""
    through: Count = 0
    """…and the number of the last delta in it."""
    reports: list[Report] = []
    explanations: list[Explanation] = []
    cursor: Count = 0
    more: bool = False


Form = TypeVar("Form", bound=BaseModel)


def _parse(form: type[Form], gateway: str, answer: object) -> Form:
    try:
        # Through a dict: what isn't a map is named as such.
        return form.model_validate(dict(answer) if isinstance(answer, Mapping) else answer)
    except ValidationError as error:
        first: Any = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the answer"
        raise AnswerError(
            f"gateway {gateway or 'of unknown name'}: {where}: {first['msg']}; gateway and "
            "coordinator are of different versions, or it isn't a gateway of ours"
        ) from None
