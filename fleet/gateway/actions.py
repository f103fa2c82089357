"""What the round logic asks to be done, in this order: store, then publish.

All store actions of one batch go into one transaction. Nothing is published, receipts above all,
before that transaction is on disk.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from fleet.gateway.rounds import Report, RoundKey, RoundSpec, RoundState
from fleet.gateway.value_forms import Values
from fleet.protocol import Announce


@dataclass(frozen=True)
class SaveDevice:
    """Remember what a device said it is, the highest lease known of it, and when it spoke."""

    device: str
    announce: Announce
    lease: int
    last_seen: float


@dataclass(frozen=True)
class SaveSeen:
    """Remember when devices were last heard of, in seconds since 1970."""

    last_seen: Mapping[str, float]


@dataclass(frozen=True)
class SaveLeases:
    """Remember higher leases."""

    leases: Mapping[str, int]


@dataclass(frozen=True)
class SaveBlob:
    """Keep a version of the weights."""

    weights: bytes
    data: bytes


@dataclass(frozen=True)
class SaveRound:
    """Keep a new round; ``started`` and ``deadline`` in seconds since 1970."""

    spec: RoundSpec
    content: bytes
    refused: Mapping[str, str]
    started: float
    deadline: float


@dataclass(frozen=True)
class SaveDeadline:
    """The wall clock has stepped: a running round's deadline has another time on it."""

    key: RoundKey
    deadline: float


@dataclass(frozen=True)
class SetState:
    """A round ended; chunks of unfinished deltas go."""

    key: RoundKey
    state: RoundState
    now: float


@dataclass(frozen=True)
class ForgetRound:
    """Remove a round that ended long ago."""

    key: RoundKey


@dataclass(frozen=True)
class ForgetBlob:
    """Remove weights that no kept round refers to."""

    weights: bytes


@dataclass(frozen=True)
class KeepChunk:
    """Keep a chunk of a delta until all are there; a crash may lose it, the device sends again."""

    key: RoundKey
    device: str
    chunk: int
    coded: bytes


@dataclass(frozen=True)
class DropChunks:
    """Remove the chunks of a device's delta."""

    key: RoundKey
    device: str


@dataclass(frozen=True)
class Assemble:
    """All chunks are there: read them and hand them to ``RoundLogic.assembled``."""

    key: RoundKey
    device: str


@dataclass(frozen=True, eq=False)
class Accept:
    """Add a delta to a sum of its plan and keep its report, once per device and round.

    ``number`` counts the round's accepted deltas from 1. ``weight`` 0 adds nothing.
    """

    key: RoundKey
    number: int
    report: Report
    part: int
    weight: int
    values: Values
    coded: bytes


@dataclass(frozen=True)
class ClosePart:
    """Deltas go to the part after ``part`` from now on; the sums of those before it aren't needed.

    ``through`` is the number of the last delta in it.
    """

    key: RoundKey
    part: int
    through: int


@dataclass(frozen=True)
class SaveDecline:
    """A device declined or failed (a reason), or has taken the task up after all (None)."""

    key: RoundKey
    device: str
    reason: int | None


@dataclass(frozen=True)
class Count:
    """Count a delta that wasn't accepted; ``kind`` is late, duplicate or a refusal reason.

    ``key`` is None where it belongs to no round that the gateway knows.
    """

    key: RoundKey | None
    kind: str
    device: str
    detail: str
    now: float


StoreAction: TypeAlias = (
    SaveDevice
    | SaveSeen
    | SaveLeases
    | SaveBlob
    | SaveRound
    | SaveDeadline
    | SetState
    | ForgetRound
    | ForgetBlob
    | KeepChunk
    | DropChunks
    | Assemble
    | Accept
    | ClosePart
    | SaveDecline
    | Count
)


@dataclass(frozen=True)
class Publish:
    """``expiry_seconds`` and ``response_topic`` become MQTT 5 properties."""

    topic: str
    payload: bytes
    retain: bool
    qos: int = 1
    expiry_seconds: int | None = None
    response_topic: str | None = None


@dataclass(frozen=True)
class PublishTask:
    """Publish a device's task with the time that its round has left by then, if it still runs."""

    key: RoundKey
    device: str


@dataclass(frozen=True)
class PublishChunks:
    """Publish chunks of a stored blob, retained; None for all of them."""

    weights: bytes
    chunk_bytes: int
    expiry_seconds: int
    chunks: Sequence[int] | None = None


@dataclass(frozen=True)
class ClearChunks:
    """Empty the topics of a blob's chunks 0 … ``count``-1, number 0 last."""

    weights: bytes
    count: int


class Filter(NamedTuple):
    """A subscription, with QoS 0: whatever matters is asked for or told again if it is lost."""

    topic: str
    no_local: bool = False
    """Not what this gateway publishes itself."""
    retain_as_published: bool = False
    """Messages keep their retain flag; else only those have it that were there before."""


@dataclass(frozen=True)
class Subscribe:
    """Subscribe; the broker then sends what is retained there."""

    filters: Sequence[Filter]


@dataclass(frozen=True)
class Unsubscribe:
    """End a subscription."""

    topics: Sequence[str]


@dataclass(frozen=True)
class Log:
    """One line for the log."""

    text: str
    level: int = logging.INFO
    key: RoundKey | None = None
    """The round that it is about…"""
    device: str = ""
    """…and the device, fields of their own in structured logs."""

    @property
    def about(self) -> dict[str, str | int]:
        """Both by the names that such fields have."""
        return (self.key.about if self.key else {}) | (
            {"device": self.device} if self.device else {}
        )


@dataclass(frozen=True)
class RoundChanged:
    """Wake up whoever waits for this round to end, or for deltas of it."""

    key: RoundKey


Publication: TypeAlias = (
    Publish | PublishTask | PublishChunks | ClearChunks | Subscribe | Unsubscribe
)
Action: TypeAlias = StoreAction | Publication | Log | RoundChanged
