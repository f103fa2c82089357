"""What the round logic asks to be done, in this order: store, then publish, then acknowledge.

All store actions of one batch go into one transaction. Nothing is published and nothing is
acknowledged to the broker before that transaction is on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fleet.gateway.rounds import Blob, RoundKey, RoundSpec, RoundState
from fleet.protocol import Announce, Delta, Status


@dataclass(frozen=True)
class SaveAnnounce:
    """Remember what a device said it is."""

    announce: Announce
    now: float


@dataclass(frozen=True)
class SaveStatus:
    """Remember what a device said it is doing."""

    status: Status
    now: float


@dataclass(frozen=True)
class SaveBlob:
    """Keep a version of the weights, which is retained at the broker until then."""

    blob: Blob
    published_until: float


@dataclass(frozen=True)
class KeepBlobUntil:
    """A version of the weights was published again, and is retained until then."""

    weights: bytes
    published_until: float


@dataclass(frozen=True)
class SaveRound:
    """Keep a new round."""

    spec: RoundSpec
    started: float
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
class SaveChunk:
    """Keep a chunk of a delta."""

    key: RoundKey
    device: str
    delta: Delta


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
    """Fold a delta into the sum of its plan and keep its report, once per device and round."""

    key: RoundKey
    device: str
    plan: bytes
    values: NDArray[np.int32]
    header: Delta
    seconds: float


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
    SaveAnnounce
    | SaveStatus
    | SaveBlob
    | KeepBlobUntil
    | SaveRound
    | SetState
    | ForgetRound
    | ForgetBlob
    | SaveChunk
    | DropChunks
    | Assemble
    | Accept
    | SaveDecline
    | Count
)


@dataclass(frozen=True)
class Publish:
    """Publish with QoS 1; ``expiry_seconds`` and ``response_topic`` become MQTT 5 properties."""

    topic: str
    payload: bytes
    retain: bool
    expiry_seconds: int | None = None
    response_topic: str | None = None


@dataclass(frozen=True)
class PublishChunks:
    """Publish chunks of a stored blob, retained; None for all of them."""

    weights: bytes
    expiry_seconds: int
    chunks: Sequence[int] | None = None


@dataclass(frozen=True)
class Subscribe:
    """Subscribe with QoS 1; the broker then sends what is retained there."""

    filters: Sequence[str]


@dataclass(frozen=True)
class Unsubscribe:
    """End a subscription."""

    filters: Sequence[str]


@dataclass(frozen=True)
class Acknowledge:
    """Tell the broker that a message has been dealt with."""

    token: object


@dataclass(frozen=True)
class Log:
    """One line for the log."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class RoundChanged:
    """Wake up whoever waits for this round to end."""

    key: RoundKey


Action: TypeAlias = (
    StoreAction
    | Publish
    | PublishChunks
    | Subscribe
    | Unsubscribe
    | Acknowledge
    | Log
    | RoundChanged
)
