"""The messages of ``tinyfleet.cddl`` as frozen dataclasses, and their one encoding.

Fields stand in the order of the CDDL; ``protocol`` is left out because it is always
``PROTOCOL_VERSION``. A message checks itself when it is made, so a message that exists can
be encoded. ``decode`` is strict: a message has exactly one encoding, everything else (bytes
left over, longer forms of a number, indefinite lengths, other types) is a ProtocolError that
names message and field.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from io import BytesIO
from typing import Any, ClassVar, Self

import cbor2

from fleet.errors import ProtocolError
from fleet.protocol import fields as check
from fleet.protocol.fields import PROTOCOL_VERSION, FieldCheck

# The largest message is a delta with a full chunk; anything longer isn't even parsed.
MAX_MESSAGE_BYTES = 768


class DeviceState(IntEnum):
    """What a device is doing (wire.md)."""

    OFFLINE = 0
    IDLE = 1
    FETCHING = 2
    SCORING = 3
    TRAINING = 4
    SENDING = 5
    DECLINED = 6
    FAILED = 7


class Reason(IntEnum):
    """Why a device declined or failed (wire.md)."""

    NONE = 0
    UNKNOWN_PLAN = 1
    NOT_ENOUGH_SRAM = 2
    WEIGHTS_DIGEST_MISMATCH = 3
    WEIGHTS_SIZE_MISMATCH = 4
    SCORE_DROPPED = 5
    DEADLINE_PASSED = 6
    NO_SAMPLES = 7
    FLASH_FAILURE = 8
    MALFORMED_TASK = 9
    WEIGHTS_OF_ANOTHER_MODEL = 10


def state_name(state: int) -> str:
    """Name of a device state for people and reports; unknown numbers keep their number."""
    try:
        return DeviceState(state).name.lower()
    except ValueError:
        return f"state-{state}"


def reason_name(reason: int) -> str:
    """Name of a reason for people and reports; unknown numbers keep their number."""
    try:
        return Reason(reason).name.lower().replace("_", "-")
    except ValueError:
        return f"reason-{reason}"


@dataclass(frozen=True)
class Message:
    """Base of all messages: checks, encodes and decodes by the table ``CHECKS``."""

    KIND: ClassVar[str]
    CHECKS: ClassVar[tuple[FieldCheck, ...]]

    def __post_init__(self) -> None:
        """Refuse values that the CDDL doesn't allow, with a ProtocolError."""
        for field, field_check in zip(fields(self), self.CHECKS, strict=True):
            field_check(self.KIND, field.name, getattr(self, field.name))

    def encode(self) -> bytes:
        """The message's only encoding: a definite-length array in shortest form."""
        values = [getattr(self, field.name) for field in fields(self)]
        return cbor2.dumps([PROTOCOL_VERSION, *values])

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The message that ``data`` encodes; ProtocolError if it isn't its only encoding."""
        values = _load_array(cls.KIND, data)
        names = [field.name for field in fields(cls)]
        if len(values) != len(names) + 1:
            raise ProtocolError(
                cls.KIND, "", f"has {len(values)} fields, {len(names) + 1} are wanted"
            )
        check.version(cls.KIND, "protocol", values[0])
        message = cls(*values[1:])
        if message.encode() != data:
            raise ProtocolError(cls.KIND, "", "isn't in the shortest, definite-length form")
        return message


def _load_array(kind: str, data: bytes) -> list[Any]:
    if len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolError(kind, "", f"has {len(data)} bytes, at most {MAX_MESSAGE_BYTES} fit")
    if not data:
        raise ProtocolError(kind, "", "is empty")
    if data[0] >> 5 != 4:  # major type 4: what isn't an array needs no parsing
        raise ProtocolError(kind, "", "an array is wanted")
    stream = BytesIO(data)
    try:
        values = cbor2.CBORDecoder(stream).decode()
    except Exception as error:  # cbor2 lets errors of tag handlers through, whatever they are
        raise ProtocolError(kind, "", f"is no CBOR: {error}") from None
    rest = len(data) - stream.tell()
    if rest:
        raise ProtocolError(kind, "", f"{rest} bytes are left over after the message")
    if not isinstance(values, list):
        raise ProtocolError(kind, "", "an array is wanted")
    return values


@dataclass(frozen=True)
class Announce(Message):
    """What a device says about itself after every (re)connection."""

    KIND = "announce"
    CHECKS = (
        check.name,
        check.name,
        check.digest,
        check.digest,
        check.uint32,
        check.percent,
        check.uint32,
        check.uint16,
        check.uint16,
    )

    device: str
    board: str
    bundle: bytes
    weights: bytes
    free_sram_bytes: int
    battery_percent: int
    link_bits_per_second: int
    train_samples: int
    held_out_samples: int


@dataclass(frozen=True)
class Task(Message):
    """What a device is to do in one round."""

    KIND = "task"
    CHECKS = (
        check.campaign_id,
        check.uint32,
        check.digest,
        check.digest,
        check.uint32,
        check.uint16,
        check.uint8,
        check.uint32,
        check.uint32,
        check.uint32,
        check.uint16,
        check.uint32,
    )

    campaign: bytes
    round: int
    plan: bytes
    weights: bytes
    weights_bytes: int
    chunk_bytes: int
    epochs: int
    learning_rate_q20: int
    seed: int
    deadline_seconds: int
    max_score_drop_permille: int
    check_in_seconds: int


@dataclass(frozen=True)
class Delta(Message):
    """One chunk of a device's changes, complete in itself."""

    KIND = "delta"
    CHECKS = (
        check.campaign_id,
        check.uint32,
        check.prefix,
        check.prefix,
        check.uint16,
        check.uint16,
        check.uint32,
        check.uint32,
        check.uint16,
        check.uint32,
        check.uint16,
        check.uint16,
        check.uint16,
        check.uint32,
        check.uint32,
        check.bytes_of(0, check.CHUNK_BYTES),
    )

    campaign: bytes
    round: int
    plan: bytes
    weights: bytes
    chunk: int
    chunks: int
    coded_bytes: int
    coded_crc32: int
    train_samples: int
    train_steps: int
    held_out_samples: int
    correct_before: int
    correct_after: int
    loss_before_thousandths: int
    loss_after_thousandths: int
    coded: bytes


@dataclass(frozen=True)
class Status(Message):
    """What a device is doing; its will is the state ``OFFLINE``."""

    KIND = "status"
    CHECKS = (
        check.name,
        check.uint8,
        check.uint8,
        check.campaign_id,
        check.uint32,
        check.percent,
    )

    device: str
    state: int
    reason: int
    campaign: bytes
    round: int
    battery_percent: int


@dataclass(frozen=True)
class Identity(Message):
    """The record in a device's flash that tells it who it is; never on the wire."""

    KIND = "identity"
    CHECKS = (
        check.name,
        check.name,
        check.text_of(1, 64),
        check.uint32,
        check.uint32,
    )

    device: str
    fleet: str
    password: str
    reserved_sram_bytes: int
    link_bits_per_second: int


MESSAGES: dict[str, type[Message]] = {
    kind.KIND: kind for kind in (Announce, Task, Delta, Status, Identity)
}
