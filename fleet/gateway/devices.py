"""What a gateway knows of its devices, and how old that is.

The broker tells two kinds of messages: those that a device sends now, and those that it left
retained. Only the first move ``seen``: a retained *idle* outlives a power cut of the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fleet.gateway import actions as act
from fleet.gateway.actions import Action
from fleet.gateway.instant import Instant
from fleet.protocol import Announce, DeviceState, Status

# How often, and how many at a time, the store learns when devices were last heard of.
SAVE_SEEN_SECONDS = 10.0
SAVE_SEEN_DEVICES = 500
NEVER = 0.0


class StoredDevice(NamedTuple):
    """What the store keeps of a device; ``last_seen`` in seconds since 1970, 0 for never."""

    announce: Announce
    lease: int
    last_seen: float


@dataclass(slots=True)
class Device:
    """What is known of a device since this process began, and before."""

    announce: Announce | None = None
    status: Status | None = None
    lease: int = 0
    """The highest that a task of this gateway had or the device has told."""
    seen: float | None = None
    """When it last said something itself, on the monotonic clock; None for never."""
    heard: int = -1
    """Number of the connection to the broker over which it was last told of, retained or not."""


class DeviceView(NamedTuple):
    """A device as ``hello`` shows it."""

    name: str
    announce: Announce
    status: Status | None
    lease: int
    last_seen: float
    seen_age_seconds: float
    stale: bool

    @property
    def online(self) -> bool:
        """Whether it has said, over this connection, that it is there."""
        return not self.stale and self.state != DeviceState.OFFLINE

    @property
    def state(self) -> int:
        """What it is doing."""
        return DeviceState.OFFLINE if self.status is None else self.status.state


class Devices:
    """All devices of one gateway."""

    def __init__(self, touch: Callable[[str], None]) -> None:
        """Nobody is known yet; ``touch`` hears whose entry in a ``hello`` has changed."""
        self._touch = touch
        self._known: dict[str, Device] = {}
        self._connection = 0
        self._settling = False
        self._unsaved: dict[str, None] = {}
        self._save_at = 0.0

    def restore(self, stored: Mapping[str, StoredDevice], now: Instant) -> None:
        """Go on from what the store has."""
        for name, of in stored.items():
            seen = None if of.last_seen == NEVER else now.monotonic - now.age_of(of.last_seen)
            self._known[name] = Device(of.announce, None, of.lease, seen)
            self._touch(name)

    def announced(self, name: str) -> Announce | None:
        """What a device last said it is."""
        device = self._known.get(name)
        return device.announce if device else None

    def lease(self, name: str) -> int:
        """The highest lease known of a device."""
        device = self._known.get(name)
        return device.lease if device else 0

    def views(self, names: Iterable[str], now: Instant) -> Iterator[DeviceView]:
        """Those of ``names`` that have announced themselves."""
        for name in names:
            device = self._known.get(name)
            if device is not None and device.announce is not None:
                yield self._view(name, device, device.announce, now)

    def _view(self, name: str, device: Device, announce: Announce, now: Instant) -> DeviceView:
        age = now.wall if device.seen is None else max(0.0, now.monotonic - device.seen)
        return DeviceView(
            name,
            announce,
            device.status,
            device.lease,
            NEVER if device.seen is None else now.wall - age,
            age,
            self._is_stale(device),
        )

    def _is_stale(self, device: Device) -> bool:
        # While retained messages come in after a connection, those of the one before count.
        return device.heard < self._connection - self._settling

    # ---- what happens ----------------------------------------------------------------

    def connected(self) -> None:
        """A connection to the broker begins: it now tells what is retained."""
        self._connection += 1
        # Of a process that has just begun nothing was heard before.
        self._settling = self._connection > 1

    def settled(self) -> None:
        """All that is retained has come: who isn't among it and said nothing is stale now."""
        if self._settling:
            self._settling = False
            for name, device in self._known.items():
                if device.heard == self._connection - 1:
                    self._touch(name)

    def told(
        self, name: str, message: Announce | Status, retained: bool, now: Instant
    ) -> list[Action]:
        """A device's announce or status came; ``retained`` where the broker had kept it."""
        device = self._known.get(name)
        if device is None:
            device = self._known[name] = Device()
        if (
            not retained
            or self._is_stale(device)
            or message not in (device.announce, device.status)
        ):
            self._touch(name)
        device.heard = self._connection
        if not retained:
            device.seen = now.monotonic
            self._unsaved.setdefault(name)
        if isinstance(message, Status):
            device.status = message
            return []
        if message == device.announce:
            return []
        device.announce = message
        device.lease = max(device.lease, message.lease)
        last_seen = NEVER
        if device.seen is not None:
            last_seen = now.wall - (now.monotonic - device.seen)
        return [
            act.SaveDevice(name, message, device.lease, last_seen),
            act.Log(f"device {name} announced itself, board {message.board}", device=name),
        ]

    def raise_leases(self, leases: Mapping[str, int]) -> list[Action]:
        """Devices get tasks with these leases."""
        raised = {}
        for name, lease in leases.items():
            device = self._known[name]
            if lease > device.lease:
                device.lease = raised[name] = lease
                self._touch(name)
        return [act.SaveLeases(raised)] if raised else []

    def tick(self, now: Instant) -> list[Action]:
        """Time has passed: now and then the store learns who was heard of."""
        if not self._unsaved or now.monotonic < self._save_at:
            return []
        seen = {}
        for name in list(itertools.islice(self._unsaved, SAVE_SEEN_DEVICES)):
            del self._unsaved[name]
            at = self._known[name].seen
            if at is not None:
                seen[name] = now.wall - (now.monotonic - at)
        if not self._unsaved:
            self._save_at = now.monotonic + SAVE_SEEN_SECONDS
        return [act.SaveSeen(seen)]
