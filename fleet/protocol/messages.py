"""The messages of ``tinyfleet.cddl`` as frozen dataclasses, and their one encoding.

Fields stand in the order of the CDDL; ``protocol`` is left out because it is always
``PROTOCOL_VERSION``. A message checks itself when it is made, so a message that exists can
be encoded. ``decode`` is strict: a message has exactly one encoding, everything else (bytes
left over, longer forms of a number, indefinite lengths, other types) is a ProtocolError that
names message and field.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from io import BytesIO
from typing import Any, ClassVar, Self

import cbor2

from fleet.errors import ProtocolError
from fleet.protocol import fields as check
from fleet.protocol.fields import PROTOCOL_VERSION, FieldCheck
from fleet.protocol.numbers import Action

# What MQTT packets to a device may have at most (wire.md); its messages are no larger either.
MAX_PACKET_BYTES = 768
# Of a delta without its coded bytes: every number as long as it can be.
MAX_DELTA_HEAD_BYTES = 117


@dataclass(frozen=True)
class Message:
    """Base of all messages: checks, encodes and decodes by the table ``CHECKS``."""

    KIND: ClassVar[str]
    CHECKS: ClassVar[tuple[FieldCheck, ...]]
    # Anything longer isn't even parsed.
    MAX_BYTES: ClassVar[int] = MAX_PACKET_BYTES

    def __post_init__(self) -> None:
        """Refuse values that the CDDL doesn't allow, with a ProtocolError."""
        for name, field_check in zip(_names(type(self)), self.CHECKS, strict=True):
            field_check(self.KIND, name, getattr(self, name))

    def encode(self) -> bytes:
        """The message's only encoding: a definite-length array in shortest form."""
        values = [getattr(self, name) for name in _names(type(self))]
        return cbor2.dumps([PROTOCOL_VERSION, *values])

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The message that ``data`` encodes; ProtocolError if it isn't its only encoding."""
        values = _load_array(cls.KIND, data, cls.MAX_BYTES)
        names = _names(cls)
        if values:
            check.version(cls.KIND, "protocol", values[0])
        if len(values) != len(names) + 1:
            raise ProtocolError(
                cls.KIND, "", f"has {len(values)} fields, {len(names) + 1} are wanted"
            )
        message = cls(*values[1:])
        if cbor2.dumps(values) != data:
            raise ProtocolError(cls.KIND, "", "isn't in the shortest, definite-length form")
        return message


_names_of: dict[str, tuple[str, ...]] = {}


def _names(kind: type[Message]) -> tuple[str, ...]:
    """Its fields; listed once, since `dataclasses.fields` takes as long as all the rest."""
    names = _names_of.get(kind.KIND)
    if names is None:
        names = _names_of[kind.KIND] = tuple(field.name for field in fields(kind))
    return names


def _load_array(kind: str, data: bytes, most: int) -> list[Any]:
    if len(data) > most:
        raise ProtocolError(kind, "", f"has {len(data)} bytes, at most {most} fit")
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
        check.digest,
        check.digest,
        check.digest,
        check.LEASE,
        check.uint32,
        check.BATTERY,
        check.uint32,
        check.SAMPLES,
        check.SAMPLES,
        check.uint8,
        check.uint8,
        check.uint32,
        check.uint32,
    )

    board: str
    bundle: bytes
    current: bytes
    candidate: bytes
    """``NO_DIGEST`` where the device has no candidate."""
    lease: int
    free_sram_bytes: int
    battery: int
    link_bits_per_second: int
    train_samples: int
    held_out_samples: int
    reset_cause: int
    fault_code: int
    fault_pc: int
    keyring: int = 0
    """Generation of the keys that it follows; 0: none."""


NO_DIGEST = bytes(check.DIGEST_BYTES)
NO_UNMASKERS = bytes(check.PREFIX_BYTES)


@dataclass(frozen=True)
class Task(Message):
    """What a device is to do in one round."""

    KIND = "task"
    CHECKS = (
        check.LEASE,
        check.campaign_id,
        check.ROUND,
        check.uint8,
        check.digest,
        check.digest,
        check.uint32,
        check.CHUNK_BYTES,
        check.EPOCHS,
        check.LEARNING_RATE_Q20,
        check.SEED,
        check.uint8,
        check.uint8,
        check.UPLINK_CHUNK_BYTES,
        check.DEADLINE_SECONDS,
        check.MAX_SCORE_DROP_PERMILLE,
        check.CHECK_IN_SECONDS,
        check.uint8,
        check.uint8,
        check.uint16,
        check.uint32,
        check.uint16,
        check.uint32,
        check.uint16,
        check.prefix,
        check.keyring,
        check.signature,
    )

    lease: int
    campaign: bytes
    round: int
    action: int
    plan: bytes
    weights: bytes
    weights_bytes: int
    chunk_bytes: int
    epochs: int
    learning_rate_q20: int
    seed: int
    coding: int
    weighting: int
    uplink_chunk_bytes: int
    deadline_seconds: int
    max_score_drop_permille: int
    check_in_seconds: int
    personal: int = 0
    mask_bits: int = 0
    value_bound: int = 0
    clip: int = 0
    norm_share: int = 0
    noise_variance: int = 0
    least_devices: int = 0
    unmaskers: bytes = NO_UNMASKERS
    keyring: bytes = b""
    signature: bytes = b""

    def __post_init__(self) -> None:
        """Refuse, beside single values, epochs that don't go with the action."""
        super().__post_init__()
        if self.action == Action.TRAIN and self.epochs == 0:
            raise ProtocolError(self.KIND, "epochs", "training takes at least 1")
        if self.action in (Action.SCORE, Action.RELEASE) and self.epochs:
            raise ProtocolError(self.KIND, "epochs", f"must be 0 to score, not {self.epochs}")

    def unsigned(self) -> bytes:
        """As it is signed: encoded with neither keyring nor signature."""
        return replace(self, keyring=b"", signature=b"").encode()


@dataclass(frozen=True)
class Delta(Message):
    """One chunk of a device's changes, complete in itself."""

    KIND = "delta"
    MAX_BYTES = MAX_DELTA_HEAD_BYTES + check.UPLINK_CHUNK_BYTES.most
    CHECKS = (
        check.LEASE,
        check.campaign_id,
        check.ROUND,
        check.prefix,
        check.prefix,
        check.uint8,
        check.uint8,
        check.uint16,
        check.uint16,
        check.uint32,
        check.uint32,
        check.SAMPLES,
        check.uint32,
        check.SAMPLES,
        check.SAMPLES,
        check.SAMPLES,
        check.uint32,
        check.uint32,
        check.SAMPLES,
        check.uint8,
        check.coded,
    )

    lease: int
    campaign: bytes
    round: int
    plan: bytes
    weights: bytes
    coding: int
    weighting: int
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
    correct_local: int
    kept: int
    coded: bytes


@dataclass(frozen=True)
class Receipt(Message):
    """A gateway's word on what became of a device's delta."""

    KIND = "receipt"
    CHECKS = (check.LEASE, check.campaign_id, check.ROUND, check.uint8, check.uint32)

    lease: int
    campaign: bytes
    round: int
    result: int
    coded_crc32: int


@dataclass(frozen=True)
class Status(Message):
    """What a device is doing; its will is the state ``OFFLINE``."""

    KIND = "status"
    CHECKS = (check.uint8, check.uint8, check.campaign_id, check.ROUND, check.BATTERY)

    state: int
    reason: int
    campaign: bytes
    round: int
    battery: int


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
    kind.KIND: kind for kind in (Announce, Task, Delta, Receipt, Status, Identity)
}
