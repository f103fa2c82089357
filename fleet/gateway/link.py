"""The gateway's way to the broker, as the rest of the gateway sees it.

What stands behind it may be any MQTT 5 client, or a broker in virtual time. Nothing is promised
beyond one connection: what isn't published when it ends is lost, and the round logic looks after
every connection at what the broker has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fleet.errors import BrokerError
from fleet.gateway.actions import Filter, Publish


class Message(NamedTuple):
    """A message as the broker sends it."""

    topic: str
    payload: bytes
    retained: bool
    """Its retain flag."""


class Listener(Protocol):
    """Who is told what happens; called from the link's thread, where it has one."""

    def on_connected(self) -> None:
        """The broker has let us in; there are no subscriptions yet."""

    def on_messages(self, messages: Sequence[Message]) -> None:
        """Messages came, in this order."""

    def on_failed(self, error: BrokerError) -> None:
        """The link has given up: the broker will not let us in, or there is a defect."""


class Link(Protocol):
    """Keeps connected from ``start`` to ``stop``; the other methods return at once."""

    def start(self) -> None:
        """Connect, and stay connected until ``stop``."""

    def stop(self) -> None:
        """Send what is waiting and say goodbye."""

    def publish(self, message: Publish) -> None:
        """Publish, in order; nothing where there is no connection."""

    def subscribe(self, filters: Sequence[Filter]) -> None:
        """Subscribe; what is retained there comes now."""

    def unsubscribe(self, topics: Sequence[str]) -> None:
        """End subscriptions."""

    @property
    def waiting(self) -> int | None:
        """How many of these wait to be sent; None where there is no connection."""
