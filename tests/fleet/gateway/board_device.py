"""A device of a virtual site that is the firmware's own C: client, storage and engine.

It speaks MQTT over its serial line; what it says to the broker at the other end of that line is
handed on to the broker of the site, and the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fleet.gateway.actions import Filter
from fleet.protocol import Delta
from simulator.machines.protocol import Machine, StopReason
from tests.device_runtime.host_device import FakeBroker, Publication
from tests.fleet.gateway.virtual_site import Connection, VirtualSite

LONGEST_REST_SECONDS = 60.0


@dataclass
class _LineEnd(FakeBroker):
    """The broker's end of one device's line."""

    on_request: Callable[[bool, str], None] = lambda is_subscription, wanted: None
    on_publication: Callable[[Publication], None] = lambda publication: None

    def hand_over(self, publication: Publication) -> None:
        """What the site's broker sends, which also keeps what is retained."""
        self._queue.append(publication)

    def _take_request(self, is_subscription: bool, body: bytes) -> None:
        super()._take_request(is_subscription, body)
        self.on_request(is_subscription, self.requests[-1][1])

    def _take_publication(self, first: int, body: bytes) -> None:
        super()._take_publication(first, body)
        self.on_publication(self.published.pop())


class BoardDevice:
    """A machine at a site's broker; its clock is the site's."""

    def __init__(self, site: VirtualSite, name: str, machine: Machine) -> None:
        self.site, self.name, self.machine = site, name, machine
        self.sent: list[Delta] = []
        self.cuts = 0
        self._line = _LineEnd(on_request=self._asks, on_publication=self._publishes)
        self._connection: Connection | None = None
        self._turn_at = float("inf")
        self._wake(site.random.uniform(1.0, 3.0))  # once the gateway listens

    def connect(self) -> None:
        """Look whether the broker is still, or again, there."""
        self._wake(0.0)

    def cut_line(self) -> None:
        """The modem loses its stream."""
        self.cuts += self.connected
        self._leave()
        self._wake(0.0)

    @property
    def connected(self) -> bool:
        return self._connection in self.site.broker.connections

    def _leave(self) -> None:
        if self.connected:
            self.site.broker.connections.remove(self._connection)

    def _wake(self, seconds: float) -> None:
        at = self.site.clock.monotonic() + seconds
        if at < self._turn_at:
            self._turn_at = at
            self.site.clock.call_later(seconds, lambda: self._turn(at))

    def _turn(self, at: float) -> None:
        if at != self._turn_at:
            return  # an earlier one has taken its place
        self._turn_at = float("inf")
        self._look_at_line()
        reason = self.machine.run(1000.0)
        assert reason in (StopReason.IDLE, StopReason.SLICE_OVER), self.machine.fault
        self._carry()
        busy = reason is StopReason.SLICE_OVER
        rest = min(self.machine.tick_milliseconds / 1000.0, LONGEST_REST_SECONDS)
        # The clock has to go on for whoever waits for it to.
        self._wake(0.001 if busy else max(0.001, rest))

    def _look_at_line(self) -> None:
        wants, broker = self.machine.data_terminal_ready, self.site.broker
        if self._connection is not None and (not wants or not self.connected):
            self._carry()
            self._leave()
            self._connection = None
            self.machine.set_data_carrier_detect(False)
        elif wants and self._connection is None and broker.up:
            self._connection = Connection(self.name, self._hears)
            broker.connections.append(self._connection)
            self._line.connection_begins()
            self.machine.set_data_carrier_detect(True)

    def _carry(self) -> None:
        """What both sides have to say to each other now."""
        while said := self.machine.take_transmitted():
            if self.connected:
                self._line.receive(said)
        if self.connected and (data := self._line.take()):
            assert self.machine.receive(data) == len(data), "the receive ring overflowed"
            self._wake(0.001)

    def _hears(self, topic: str, payload: bytes, retained: bool) -> None:
        response = self.site.broker.response_topics.get(topic, "")
        self._line.hand_over(Publication(topic, payload, retained, response))
        self._wake(0.0)

    def _asks(self, is_subscription: bool, wanted: str) -> None:
        assert self._connection is not None
        if is_subscription:
            self.site.broker.subscribe(self._connection, Filter(wanted))
        else:
            self.site.broker.unsubscribe(self._connection, wanted)

    def _publishes(self, publication: Publication) -> None:
        assert self._connection is not None
        topic, payload = publication.topic, publication.payload
        if topic.endswith("/delta"):
            self.sent.append(Delta.decode(payload))
        self.site.broker.publish(self._connection, topic, payload, publication.retained, qos=1)
