"""What devices have sent, as it passed the broker, and what it has to add up to."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.aggregation.mean import UNITS_PER_STEP
from fleet.campaign.masking import MaskedRound
from fleet.errors import FleetError
from fleet.gateway.link import Message
from fleet.gateway.rounds import RoundKey
from fleet.protocol import Delta, delta_coding, masking, topics
from fleet.protocol.keys import DeviceKeys
from fleet.protocol.manifest import Manifest
from fleet.protocol.masking import MaskedDelta


class DeltaName(NamedTuple):
    """Which delta of which device."""

    device: str
    key: RoundKey
    crc32: int


class AcceptedRow(NamedTuple):
    """A delta that a gateway has in its store as counted."""

    device: str
    plan: str
    crc32: int
    train_samples: int


class Share(NamedTuple):
    """What a delta has in a version: it counts ``scale`` times."""

    row: AcceptedRow
    key: RoundKey
    scale: int = 1


class SentDeltas:
    """All deltas that devices, or somebody in their name, have sent."""

    def __init__(self, keys: Mapping[str, DeviceKeys] | None = None) -> None:
        """None yet; `keys` of devices that mask theirs."""
        self._keys = keys or {}
        self.masks: dict[RoundKey, MaskedRound] = {}
        """Of rounds whose deltas are masked."""
        self._whole: dict[DeltaName, bytes] = {}
        self._parts: dict[DeltaName, dict[int, bytes]] = {}
        self.messages: dict[str, list[Message]] = {}
        """As they came, by device."""

    def hears(self, message: Message) -> None:
        """A message in a delta topic; what is no delta is left alone."""
        device = topics.parse(message.topic).device
        self.messages.setdefault(device, []).append(message)
        try:
            delta = Delta.decode(message.payload)
        except FleetError:
            return
        key = RoundKey(delta.campaign, delta.round)
        name = DeltaName(device, key, delta.coded_crc32)
        if name in self._whole:
            return
        parts = self._parts.setdefault(name, {})
        parts[delta.chunk] = delta.coded
        coded = b"".join(parts[number] for number in sorted(parts))
        if len(parts) == max(1, delta.chunks) and zlib.crc32(coded) == delta.coded_crc32:
            self._whole[name] = coded
            del self._parts[name]

    def values(self, name: DeltaName, count: int) -> NDArray[np.int32] | None:
        """Of one delta; None where nobody has sent it."""
        coded = self._whole.get(name)
        if coded is None:
            return None
        masks = self.masks.get(name.key)
        if masks is None or not count:
            return delta_coding.decode(coded, count)
        bits = masks.parameters.bits
        delta = MaskedDelta.decode(coded, count, bits, len(masks.keys))
        exchange = self._keys[name.device].exchange
        seeds = [masking.seed_of(exchange, delta.nonce, key) for key in masks.keys]
        streams = masking.sum_of_streams(seeds, count, bits)
        left = (delta.values - streams) & np.uint32((1 << bits) - 1)
        return masking.centred(left, bits).astype(np.int32)


class Accepted:
    """What a gateway has on disk, seen from outside of its process."""

    def __init__(self, path: Path) -> None:
        """Of the store at ``path``, which is there."""
        self._path = path
        self._db: sqlite3.Connection | None = None

    def rows(self, key: RoundKey) -> list[AcceptedRow]:
        """The deltas that it has counted in a round, in the order in which it did."""
        if self._db is None:
            self._db = sqlite3.connect(self._path, isolation_level=None)
        found = self._db.execute(
            "SELECT device, hex(plan), coded_crc32, train_samples FROM accepted "
            "JOIN rounds ON rounds.id = round_id WHERE campaign = ? AND round = ? ORDER BY number",
            key,
        )
        return [AcceptedRow(device, plan.lower(), *rest) for device, plan, *rest in found]

    def close(self) -> None:
        """Let go of it."""
        if self._db is not None:
            self._db.close()


class MissingDelta(Exception):
    """A gateway has counted what nobody has sent."""


def mean_of(
    shares: Sequence[Share],
    sent: SentDeltas,
    manifest: Manifest,
    is_uniform: bool,
    before: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The master weights after averaging of these deltas, in integers but one division.

    Raises: MissingDelta naming a device.
    """
    numerator = np.zeros(before.size, np.int64)
    denominator = np.zeros(before.size, np.int64)
    for row, key, scale in shares:
        samples = min(1, row.train_samples) if is_uniform else row.train_samples
        weight = samples * scale
        plan = manifest.plan(row.plan)
        name = DeltaName(row.device, key, row.crc32)
        values = sent.values(name, plan.delta_values if row.train_samples else 0)
        if values is None:
            raise MissingDelta(f"{row.device} in {key}")
        if not weight:
            continue
        places = manifest.plan_coordinates(plan)
        units = np.rint(manifest.steps_per_unit(plan) * UNITS_PER_STEP).astype(np.int64)
        np.add.at(numerator, places, values.astype(np.int64) * units * weight)
        np.add.at(denominator, places, weight)
    trained = denominator > 0
    after = before.copy()
    after[trained] += numerator[trained] / (denominator[trained] * float(UNITS_PER_STEP))
    limits = np.repeat([one.limit for one in manifest.tensors], [t.size for t in manifest.tensors])
    return np.clip(after, -limits, limits)


def same_devices(rows: Mapping[str, Sequence[AcceptedRow]], reported: Sequence[str]) -> str:
    """Why devices of a round's reports aren't those that gateways have counted; empty: they are."""
    counted = sorted(row.device for of in rows.values() for row in of)
    if counted == sorted(reported):
        return ""
    return f"gateways have counted {counted}, the coordinator has {sorted(reported)}"
