"""What the broker keeps for one client, connected or not: subscriptions and what is under way."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from simulator.broker.message import Message, Will

NEVER_EXPIRES = 0xFFFFFFFF
MAX_PACKET_ID = 65535


class Endpoint(Protocol):
    """The side of a connection that messages go out of."""

    def send(
        self, message: Message, qos: int, retain: bool, packet_id: int, duplicate: bool
    ) -> bool:
        """Send a copy of a message; False where the client wants no packet that large."""
        ...

    def hang_up(self) -> None:
        """The broker ends this connection; the session has let go of it already."""
        ...

    def vanish(self) -> None:
        """The broker is gone, and what it had for this connection."""
        ...


class Subscription:
    """The options of a subscription (MQTT 5, 3.8.3.1)."""

    __slots__ = ("no_local", "qos", "retain_as_published")

    def __init__(self, qos: int, no_local: bool, retain_as_published: bool) -> None:
        """``qos`` is 0 or 1."""
        self.qos = qos
        self.no_local = no_local
        self.retain_as_published = retain_as_published


class _Copy:
    """A message on its way to one client, with QoS 1."""

    __slots__ = ("message", "packet_id", "retain")

    def __init__(self, message: Message, retain: bool, packet_id: int) -> None:
        self.message = message
        self.retain = retain
        self.packet_id = packet_id


class Session:
    """A client's session. Nothing in it knows of time but what it is told."""

    __slots__ = (
        "_in_flight",
        "_last_packet_id",
        "_queue",
        "_quota",
        "_receive_maximum",
        "_strict",
        "client_id",
        "endpoint",
        "ends",
        "expiry_seconds",
        "max_queued",
        "subscriptions",
        "will",
        "will_due",
    )

    def __init__(self, client_id: str, max_queued: int, strict: bool) -> None:
        """``strict``: never more under way than the client's receive maximum."""
        self.client_id = client_id
        self.max_queued = max_queued
        self.subscriptions: dict[str, Subscription] = {}
        self.endpoint: Endpoint | None = None
        self.expiry_seconds = 0
        self.ends: float | None = None
        """When a session without a connection ends."""
        self.will: Will | None = None
        self.will_due: float | None = None
        """When the will of a lost connection is published."""
        self._strict = strict
        self._receive_maximum = self._quota = 0
        self._last_packet_id = 0
        self._in_flight: dict[int, _Copy] = {}
        self._queue: deque[_Copy] | None = None  # there seldom is one, and an empty one is large

    def begin(self, endpoint: Endpoint, receive_maximum: int) -> None:
        """A connection begins; ``resume`` is to follow once it has been let in."""
        self.endpoint = endpoint
        self._receive_maximum = self._quota = receive_maximum

    def resume(self, now: float) -> None:
        """Send again what wasn't acknowledged, however much that is, and what has waited."""
        assert self.endpoint is not None
        for copy in list(self._in_flight.values()):
            self._quota = max(0, self._quota - 1)
            self._send(copy, now, duplicate=True)
        self._send_queued(self._quota, now)

    def deliver(self, message: Message, qos: int, retain: bool, now: float) -> None:
        """Send a message, or keep it for later, or drop it where there is no room."""
        if qos == 0:
            if self.endpoint is not None and (message.expires is None or message.expires > now):
                self.endpoint.send(message, 0, retain, 0, False)
            return
        # As Mosquitto: also what has to be dropped, or is too large for the client, has its number.
        self._last_packet_id = self._last_packet_id % MAX_PACKET_ID + 1
        copy = _Copy(message, retain, self._last_packet_id)
        if self.endpoint is not None and self._quota and not self._queue:
            self._send_first(copy, now)
            return
        if self._queue is None:
            self._queue = deque()
        # As Mosquitto, which counts those under way too, but for a window of a connected client.
        window = 0 if self.endpoint is None else self._receive_maximum
        if len(self._in_flight) + len(self._queue) - window >= self.max_queued:
            return
        self._queue.append(copy)
        if self.endpoint is not None:
            self._send_queued(self._quota, now)

    def acknowledged(self, packet_id: int, now: float) -> None:
        """The client has taken a message, or refused it."""
        if not self._strict:
            # Mosquitto 2.0.11 takes for the number of messages under way the place among them of
            # the one that was acknowledged. So a client that acknowledges in order is sent
            # as many more as its receive maximum, each time.
            under_way = next(
                (place for place, one in enumerate(self._in_flight) if one == packet_id),
                len(self._in_flight),
            )
            self._in_flight.pop(packet_id, None)
            self._quota = min(self._receive_maximum, self._quota + 1)
            self._send_queued(self._receive_maximum - under_way, now)
        elif self._in_flight.pop(packet_id, None) is not None:
            self._quota = max(0, self._receive_maximum - len(self._in_flight))
            self._send_queued(self._quota, now)

    def _send_queued(self, room: int, now: float) -> None:
        queue = self._queue
        while queue and room > 0:
            if self._send_first(queue.popleft(), now):
                room -= 1
        if queue is not None and not queue:
            self._queue = None

    def _send_first(self, copy: _Copy, now: float) -> bool:
        self._in_flight[copy.packet_id] = copy
        self._quota = max(0, self._quota - 1)
        return self._send(copy, now, duplicate=False)

    def _send(self, copy: _Copy, now: float, duplicate: bool) -> bool:
        """Send a copy in flight, which ends here where it has expired or the client can't take it.

        Returns whether it takes room of the receive maximum.
        """
        assert self.endpoint is not None
        message, packet_id = copy.message, copy.packet_id
        expired = message.expires is not None and message.expires <= now
        if not expired and self.endpoint.send(message, 1, copy.retain, packet_id, duplicate):
            return True
        del self._in_flight[packet_id]
        # Mosquitto 2.0.11 forgets that what was too large for the client has never been sent.
        if expired or self._strict:
            self._quota = min(self._receive_maximum, self._quota + 1)
        return not (expired or self._strict)
