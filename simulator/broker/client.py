"""A client in this process: the same sessions and messages, without packets."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from simulator.broker.core import SECOND, Core
from simulator.broker.message import NO_PROPERTIES, Message, Properties
from simulator.broker.session import Subscription


class Received(NamedTuple):
    """A message as it comes to a client."""

    topic: str
    payload: bytes
    retained: bool
    """Its retain flag."""


class Client:
    """A connection with a session that begins and ends with it; subscriptions have QoS 0."""

    __slots__ = ("_core", "_on_ready", "_received", "_session", "client_id", "closed")

    def __init__(self, core: Core, client_id: str, on_ready: Callable[[], None]) -> None:
        """See `Broker.attach`."""
        self.client_id = client_id
        self.closed = False
        """The broker has ended the connection."""
        self._core = core
        self._on_ready = on_ready
        self._received: list[Received] = []
        core.opened(self)
        self._session, _ = core.begin(self, client_id)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        expiry_seconds: int | None = None,
        response_topic: str | None = None,
    ) -> int:
        """Publish; the reason code of the acknowledgement (MQTT 5, 3.4.2.1).

        Nothing where the connection has ended.
        """
        core = self._core
        if self.closed:
            return 0
        properties = NO_PROPERTIES
        if response_topic is not None:
            properties = Properties(response_topic=response_topic)
        expires = None
        if expiry_seconds:  # as Mosquitto: 0 is none
            expires = core.clock() + expiry_seconds * SECOND
        return core.publish(
            Message(topic, payload, qos, retain, self.client_id, expires, properties)
        )

    def subscribe(
        self, pattern: str, *, no_local: bool = False, retain_as_published: bool = False
    ) -> None:
        """Subscribe; what is retained there comes now. Nothing where the connection has ended."""
        if not self.closed:
            wanted = Subscription(0, no_local, retain_as_published)
            self._core.subscribe(self._session, pattern, wanted)
            self._core.deliver_retained(self._session, pattern, 0)

    def unsubscribe(self, pattern: str) -> None:
        """End a subscription, where there is one."""
        if not self.closed:
            self._core.unsubscribe(self._session, pattern)

    def take(self) -> list[Received]:
        """The messages that have come since the last call."""
        received, self._received = self._received, []
        return received

    def close(self) -> None:
        """End the connection, and the session with it."""
        if not self.closed:
            self.closed = True
            self._core.closed(self)
            self._core.lost(self._session, with_will=False)

    # ---- called by the broker --------------------------------------------------------

    def send(
        self, message: Message, qos: int, retain: bool, packet_id: int, duplicate: bool
    ) -> bool:
        """See `Endpoint`."""
        del qos, packet_id, duplicate
        self._received.append(Received(message.topic, message.payload, retain))
        if len(self._received) == 1:
            self._on_ready()
        return True

    def hang_up(self) -> None:
        """See `Endpoint`."""
        self.closed = True
        self._core.closed(self)
        self._on_ready()

    def vanish(self) -> None:
        """See `Endpoint`."""
        self._received = []
        self.hang_up()
