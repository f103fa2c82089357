"""The broker: an MQTT 5 server that does nothing by itself.

Bytes and calls come in, bytes and messages wait to be taken, and time is what the clock says. The
same events in the same order have the same results, byte for byte. It behaves as Mosquitto 2.0.11
does, also where that isn't what MQTT 5 asks for: docs/design/simulator.md lists where.

It has no QoS 2, no shared subscriptions, no subscription identifiers, no topic aliases and no
authentication exchange, and says so to clients; and it keeps nothing when it is told to forget.
"""

from __future__ import annotations

from collections.abc import Callable

from simulator.broker.client import Client
from simulator.broker.connection import Connection
from simulator.broker.core import Access, BrokerSettings, Core
from simulator.clock import Milliseconds


def _nothing() -> None:
    pass


class Broker:
    """For one owner; nothing here is thread safe."""

    def __init__(
        self,
        clock: Milliseconds,
        settings: BrokerSettings | None = None,
        access: Access | None = None,
    ) -> None:
        """Empty; without ``access`` everybody may do everything."""
        self._core = Core(clock, settings or BrokerSettings(), access)

    def connect(self, on_ready: Callable[[], None] = _nothing) -> Connection:
        """A transport was connected: its client begins with CONNECT.

        ``on_ready`` is called when there are bytes for the client where there were none, and when
        the broker has ended the connection. It must only make a note: it may not call the broker.
        """
        return Connection(self._core, on_ready)

    def attach(self, client_id: str, on_ready: Callable[[], None] = _nothing) -> Client:
        """A client in this process connects, with a clean start, and nobody asks who it is.

        ``on_ready`` as in ``connect``.
        """
        return Client(self._core, client_id, on_ready)

    def forget_everything(self) -> None:
        """End as a killed process without persistence does, and begin again.

        All connections break, with what hasn't been taken; no will is published.
        """
        self._core.forget_everything()

    def next_due(self) -> float:
        """When ``tick`` is to be called: a time of the clock; infinity where there is none yet.

        A tick that finds nothing to do is no error, and a late one does what it missed.
        """
        return self._core.next_due()

    def tick(self) -> None:
        """End what has timed out, and publish wills whose delay is over."""
        self._core.tick()
