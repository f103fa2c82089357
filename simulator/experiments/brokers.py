"""A site's broker in virtual time, with lines to devices and a cable to its gateways."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fleet.gateway.broker import (
    MAX_INFLIGHT_MESSAGES,
    MAX_PACKET_BYTES,
    MAX_QUEUED_MESSAGES,
)
from fleet.gateway.link import Message
from simulator.broker.broker import Broker
from simulator.broker.client import Client
from simulator.broker.connection import Connection
from simulator.broker.core import BrokerSettings
from simulator.experiments.window_clock import WindowClock
from simulator.virtual.device import Arrival, Said
from simulator.virtual.line import LineEnd

_MILLISECONDS = 1000.0
_SETTINGS = BrokerSettings(
    max_inflight_messages=MAX_INFLIGHT_MESSAGES,
    max_queued_messages=MAX_QUEUED_MESSAGES,
    max_packet_size=MAX_PACKET_BYTES,
)


class VirtualBroker:
    """One broker, to which devices are connected by lines."""

    def __init__(self, clock: WindowClock, line: Callable[[int, int], LineEnd]) -> None:
        """``line`` gives the way down to a device, by its number and that of its call."""
        self._clock = clock
        self._line = line
        self.broker = Broker(lambda: clock.monotonic() * _MILLISECONDS, _SETTINGS)
        self.is_up = True
        self._calls: dict[tuple[int, int], tuple[Connection, LineEnd]] = {}
        self._ready: list[Callable[[], None]] = []
        self._flushes = False
        self._tick_at = math.inf
        self._taps: list[Callable[[], None]] = []

    # ---- devices ---------------------------------------------------------------------

    def hears(self, said: Said) -> None:
        """Something that a device has said arrives."""
        name = (said.device, said.call)
        if said.kind == "dial":
            self._answer(said)
        elif name not in self._calls:
            pass  # of a stream that has broken at this end already
        elif said.kind == "bytes":
            self._calls[name][0].receive(said.data)
        else:
            connection, _ = self._calls.pop(name)
            connection.close()
        self._watch_time()

    def _answer(self, said: Said) -> None:
        number, call = said.device, said.call
        now = self._clock.now
        line = self._line(number, call)
        at = line.arrives(now, 0)
        if not self.is_up:
            self._clock.to_device(number, Arrival(at, "refused", call))
            return
        connection = self.broker.connect(lambda: self._is_ready(lambda: self._send(number, call)))
        self._calls[number, call] = (connection, line)
        self._clock.to_device(number, Arrival(at, "carrier", call))

    def _send(self, number: int, call: int) -> None:
        if (number, call) not in self._calls:
            return
        connection, line = self._calls[number, call]
        data = connection.take()
        if data:
            at = line.arrives(self._clock.now, len(data))
            self._clock.to_device(number, Arrival(at, "bytes", call, data))
        if connection.closed:
            del self._calls[number, call]
            at = line.arrives(self._clock.now, 0)
            self._clock.to_device(number, Arrival(at, "lost", call))

    # ---- gateways --------------------------------------------------------------------

    def attach(
        self,
        name: str,
        hears: Callable[[Sequence[Message]], None],
        lost: Callable[[], None],
    ) -> Client | None:
        """A gateway connects; None while there is nobody to connect to."""
        if not self.is_up:
            return None

        def move() -> None:
            messages = client.take()
            if messages:
                hears([Message(*one) for one in messages])
            if client.closed:
                lost()

        client = self.broker.attach(name, lambda: self._is_ready(move))
        return client

    def tap(self, patterns: Sequence[str], hears: Callable[[Sequence[Message]], None]) -> None:
        """Listen to what is published in topics, from now on and whatever becomes of the broker."""

        def listen() -> None:
            client = self.attach(name, hears, lambda: None)
            if client is not None:
                for one in patterns:
                    client.subscribe(one, retain_as_published=True)

        name = f"tap-{len(self._taps)}"
        self._taps.append(listen)
        listen()

    # ---- itself ----------------------------------------------------------------------

    def kill(self, down_seconds: float = 1.0) -> None:
        """As SIGKILL does to a broker that keeps nothing on disk; started again later."""
        if self.is_up:
            self.is_up = False
            self.broker.forget_everything()
            self._clock.call_later(down_seconds, self._start)

    def _start(self) -> None:
        self.is_up = True
        for listen in self._taps:
            listen()

    def _is_ready(self, move: Callable[[], None]) -> None:
        """Something waits to be taken; it may not be in the middle of what brought it about."""
        self._ready.append(move)
        if not self._flushes:
            self._flushes = True
            self._clock.call_later(0.0, self._flush)

    def _flush(self) -> None:
        self._flushes = False
        ready, self._ready = self._ready, []
        for move in ready:
            move()
        self._watch_time()

    def _watch_time(self) -> None:
        due_milliseconds = self.broker.next_due()
        due = due_milliseconds / _MILLISECONDS
        if due * _MILLISECONDS < due_milliseconds:
            due = math.nextafter(due, math.inf)  # rounded down, the broker's clock isn't there yet
        if due < self._tick_at:
            self._tick_at = due
            self._clock.call_at(due, lambda: self._tick(due))

    def _tick(self, due: float) -> None:
        if due == self._tick_at:
            self._tick_at = math.inf
            self.broker.tick()
            self._watch_time()
