"""A site in virtual time: the gateway's own core and store, a broker and devices of a few lines.

All chance comes from one seed, all time from one `VirtualClock`, so two runs of one seed are equal.
Broker, gateway and devices can be killed at any instant; only the gateway's store and what a device
has in flash outlive that.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.clock import VirtualClock
from fleet.errors import StoreError
from fleet.gateway.actions import Filter, Publish
from fleet.gateway.core import Core, Job
from fleet.protocol import Announce, Delta, DeviceState, Receipt, Status, Task, topics
from fleet.protocol.chunks import GROUP_CHUNKS, chunk_count, decode_chunk
from tests.fleet.gateway.bench import KEY, ask, fast_store, settings
from tests.fleet.gateway.deltas import (
    CAMPAIGN,
    FLEET,
    GATEWAY,
    NO_CAMPAIGN,
    announcement,
    delta_chunks,
    start_fields,
)

TURN_SECONDS = 0.02
TICK_SECONDS = 0.2
RESEND_SECONDS = (30.0, 60.0, 120.0, 240.0)
PATIENCE_SECONDS = 15.0


def matches(wanted: str, topic: str) -> bool:
    """Whether a filter with ``+`` covers a topic."""
    left, right = wanted.split("/"), topic.split("/")
    return len(left) == len(right) and all(a in ("+", b) for a, b in zip(left, right, strict=True))


class Connection:
    """A client's session; ends with the connection."""

    def __init__(self, name: str, take: Callable[[str, bytes, bool], None]) -> None:
        self.name = name
        self.take = take
        self.filters: dict[str, Filter] = {}
        self.free_at = 0.0  # messages of one connection arrive in order


class Broker:
    """Retained messages and subscriptions; `kill` loses all of it."""

    def __init__(self, site: VirtualSite) -> None:
        self._site = site
        self.up = True
        self.retained: dict[str, bytes] = {}
        self.response_topics: dict[str, str] = {}
        """By the topic of the message that had one."""
        self.connections: list[Connection] = []
        self.delivered = 0
        self.on_delivery: Callable[[int], None] = lambda number: None

    def kill(self, down_seconds: float = 1.0) -> None:
        self.up = False
        self.retained.clear()
        self.connections.clear()
        self._site.clock.call_later(down_seconds, self._start)
        self._site.lost_broker()

    def _start(self) -> None:
        self.up = True

    def subscribe(self, to: Connection, one: Filter) -> None:
        self._later(to, lambda: self._subscribe(to, one))

    def _subscribe(self, to: Connection, one: Filter) -> None:
        to.filters[one.topic] = one
        for topic, payload in list(self.retained.items()):
            if matches(one.topic, topic):
                self._deliver(to, topic, payload, True)

    def unsubscribe(self, to: Connection, topic: str) -> None:
        self._later(to, lambda: to.filters.pop(topic, None))

    def publish(self, by: Connection, topic: str, payload: bytes, retain: bool, qos: int) -> None:
        if qos == 0 and self._site.random.random() < self._site.loss:
            return
        self._later(by, lambda: self._publish(by, topic, payload, retain))

    def _publish(self, by: Connection, topic: str, payload: bytes, retain: bool) -> None:
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for to in self.connections:
            for one in to.filters.values():
                if matches(one.topic, topic) and not (one.no_local and to is by):
                    self._deliver(to, topic, payload, retain and one.retain_as_published)
                    break

    def _deliver(self, to: Connection, topic: str, payload: bytes, retained: bool) -> None:
        self._later(to, lambda: self._arrives(to, topic, payload, retained))

    def _arrives(self, to: Connection, topic: str, payload: bytes, retained: bool) -> None:
        self.delivered += 1
        self.on_delivery(self.delivered)
        if to in self.connections:
            to.take(topic, payload, retained)

    def _later(self, of: Connection, action: Callable[[], None]) -> None:
        now = self._site.clock.monotonic()
        of.free_at = max(of.free_at, now + self._site.random.uniform(0.001, 0.05))

        def run() -> None:
            if of in self.connections:
                action()

        self._site.clock.call_later(of.free_at - now, run)


class VirtualLink:
    """The gateway's link (see `fleet.gateway.link.Link`)."""

    def __init__(self, site: VirtualSite) -> None:
        self._site = site
        self.connection: Connection | None = None
        self.alive = True

    def start(self) -> None:
        broker = self._site.broker
        if not self.alive or self.connection in broker.connections:
            return
        if not broker.up:
            self._site.clock.call_later(0.5, self.start)
            return
        self.connection = Connection(GATEWAY, self._site.gateway_hears)
        broker.connections.append(self.connection)
        self._site.put(self._site.core.connected())

    def stop(self) -> None:
        self.alive = False
        if self.connection in self._site.broker.connections:
            self._site.broker.connections.remove(self.connection)

    def publish(self, message: Publish) -> None:
        of = self.connection
        if message.response_topic is not None:
            self._site.broker.response_topics[message.topic] = message.response_topic
        if of in self._site.broker.connections:
            self._site.broker.publish(
                of, message.topic, message.payload, message.retain, message.qos
            )

    def subscribe(self, filters: Iterable[Filter]) -> None:
        for one in filters:
            if self.connection in self._site.broker.connections:
                self._site.broker.subscribe(self.connection, one)

    def unsubscribe(self, topics: Iterable[str]) -> None:
        for topic in topics:
            if self.connection in self._site.broker.connections:
                self._site.broker.unsubscribe(self.connection, topic)


class VirtualDevice:
    """Fetches weights group by group, trains, sends until it has a receipt.

    Flash: its lease and the chunks of the weights. `reset` loses the rest, and training again gives
    another delta.
    """

    def __init__(self, site: VirtualSite, name: str, values: int) -> None:
        self.site, self.name, self.values = site, name, values
        self.lease = 0
        self.flash: dict[int, bytes] = {}
        self.boots = 0
        self.deltas: dict[int, tuple[NDArray[np.int32], int]] = {}
        self.receipts: list[Receipt] = []
        self._connection: Connection | None = None
        self._boot()

    def _boot(self) -> None:
        self.boots += 1
        self.task: Task | None = None
        self.delta: list[Delta] = []
        self._done: set[tuple[bytes, int]] = set()
        self._sent = 0
        self._asked = ""
        self._trains = False
        self.site.clock.call_later(self.site.random.uniform(0.1, 3.0), self.connect)

    def reset(self) -> None:
        self.leave()
        self._boot()

    def leave(self) -> None:
        if self._connection in self.site.broker.connections:
            self.site.broker.connections.remove(self._connection)
        self._connection = None

    @property
    def connected(self) -> bool:
        return self._connection in self.site.broker.connections

    def connect(self) -> None:
        broker = self.site.broker
        if self.connected:
            return
        if not broker.up:
            self.site.clock.call_later(self.site.random.uniform(0.5, 3.0), self.connect)
            return
        self._asked = ""
        self._connection = Connection(self.name, self._hears)
        broker.connections.append(self._connection)
        broker.subscribe(self._connection, Filter(topics.to_device(FLEET, self.name)))
        said = self.announcement()
        self._publish(topics.announce(FLEET, self.name), said.encode(), retain=True)
        self._say()
        if self.delta:
            self._send()
        elif self.task:
            self._fetch(self.task)

    def announcement(self) -> Announce:
        """What it says about itself."""
        return announcement(lease=self.lease)

    def _publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        if self._connection is not None and self.connected:
            self.site.broker.publish(self._connection, topic, payload, retain, qos=1)

    def _say(self) -> None:
        state = DeviceState.IDLE
        campaign, number = NO_CAMPAIGN, 0
        if self.task:
            state = DeviceState.SENDING if self.delta else DeviceState.TRAINING
            campaign, number = self.task.campaign, self.task.round
        payload = Status(state, 0, campaign, number, 90).encode()
        self._publish(topics.status(FLEET, self.name), payload, retain=True)

    def _hears(self, topic: str, payload: bytes, retained: bool) -> None:
        parts = topics.parse(topic)
        if parts.kind == "blob" and self.task and payload:
            self.flash[parts.chunk] = decode_chunk(parts.chunk, payload)
            self._fetch(self.task)
        elif parts.kind == "receipt":
            receipt = Receipt.decode(payload)
            if self.task and (receipt.campaign, receipt.round) == self._key(self.task):
                self.receipts.append(receipt)
                self._finish()
        elif parts.kind == "task" and not payload:
            if not self.delta:  # a delta that was sent is worth asking for its receipt
                self.task = None
        elif parts.kind == "task":
            task = Task.decode(payload)
            if task.lease >= self.lease and self._key(task) not in self._done and not self.task:
                self.lease = task.lease
                self.task = task
                self._say()
                self._fetch(task)

    def _key(self, task: Task) -> tuple[bytes, int]:
        return task.campaign, task.round

    def _fetch(self, task: Task) -> None:
        """Ask for the next group that lacks a chunk; train when none does."""
        if self.delta or self._trains or task is not self.task or self._connection is None:
            return
        count = chunk_count(task.weights_bytes, task.chunk_bytes)
        missing = [number for number in range(count) if number not in self.flash]
        group = missing[0] // GROUP_CHUNKS if missing else -1
        wanted = topics.any_of_group(FLEET, task.weights, group) if missing else ""
        broker, boot = self.site.broker, self.boots
        if wanted != self._asked:
            if self._asked:
                broker.unsubscribe(self._connection, self._asked)
            self._asked = wanted
            if wanted:
                broker.subscribe(self._connection, Filter(wanted))
                self.site.clock.call_later(
                    PATIENCE_SECONDS, lambda: self._ask_again(task, boot, wanted)
                )
        if not missing:
            blob = b"".join(self.flash[number] for number in range(count))
            assert hashlib.sha256(blob).digest() == task.weights
            self._trains = True
            seconds = self.site.random.uniform(5.0, 40.0)
            self.site.clock.call_later(seconds, lambda: self._trained(task, boot))

    def _ask_again(self, task: Task, boot: int, asked: str) -> None:
        if boot == self.boots and task is self.task and self._asked == asked and self._connection:
            self.site.broker.unsubscribe(self._connection, asked)
            self._asked = ""
            self._fetch(task)

    def _trained(self, task: Task, boot: int) -> None:
        if boot != self.boots:
            return
        self._trains = False
        if task is not self.task:
            return
        dice = np.random.default_rng([task.seed, self.boots])
        self.delta = self.make_delta(task, dice)
        self._sent = 0
        self._say()
        self._send()

    def make_delta(self, task: Task, dice: np.random.Generator) -> list[Delta]:
        """What came of a task; which values and samples is kept."""
        values = dice.integers(-500, 500, self.values).astype(np.int32)
        samples = int(dice.integers(1, 400))
        made = delta_chunks(task, values, samples)
        self.deltas[made[0].coded_crc32] = values, samples
        return made

    def _send(self) -> None:
        if not self.delta:
            return
        for chunk in self.delta:
            self._publish(topics.delta(FLEET, GATEWAY, self.name), chunk.encode())
        wait = RESEND_SECONDS[min(self._sent, len(RESEND_SECONDS) - 1)]
        self._sent += 1
        delta, sent = self.delta, self._sent

        def again() -> None:
            if self.delta is delta and self._sent == sent:
                self._send()

        self.site.clock.call_later(wait, again)

    def _finish(self) -> None:
        assert self.task
        self._done.add(self._key(self.task))
        self.task = None
        self.delta = []
        self._say()


class VirtualSite:
    """One gateway, one broker, many devices."""

    def __init__(
        self, folder: Path, seed: int, devices: int, values: int = 50, loss: float = 0.0
    ) -> None:
        self.folder = folder
        self.values = values
        self.loss = loss
        self.random = random.Random(seed)
        self.clock = VirtualClock()
        self.trace = hashlib.sha256()
        self._inbox: deque[Job] = deque()
        self._turn_due = False
        self._processes = 0
        self.ends: list[str] = []
        """What its gateway said whenever it ended by itself."""
        self.broker = Broker(self)
        self.open_gateway()
        self._tick()
        names = [f"cow-{number}" for number in range(devices)]
        self.devices = {name: self.make_device(name) for name in names}

    def make_device(self, name: str) -> Any:
        """One of the devices; a site may have others than these."""
        return VirtualDevice(self, name, self.values)

    # ---- the gateway -----------------------------------------------------------------

    def open_gateway(self) -> None:
        self._processes += 1
        self.link = VirtualLink(self)
        self.store = fast_store(self.folder)
        self.core = Core(settings(self.folder), self.store, self.link, self.clock, self._processes)
        self.link.start()

    def kill_gateway(self, down_seconds: float = 2.0) -> None:
        if self.link.alive:
            self.link.stop()
            self.store.close()
            self._inbox.clear()
            self.clock.call_later(down_seconds, self.open_gateway)

    def gateway_hears(self, topic: str, payload: bytes, retained: bool) -> None:
        self.trace.update(f"{self.clock.monotonic()} {topic} {retained}".encode() + payload)
        self.put(self.core.arrived(topic, payload, retained))

    def put(self, job: Job) -> None:
        self._inbox.append(job)
        if not self._turn_due:
            self._turn_due = True
            self.clock.call_later(TURN_SECONDS, self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        if self.link.alive:
            batch, self._inbox = list(self._inbox), deque()
            self._work(batch)

    def _work(self, batch: list[Job]) -> None:
        """What it can't write ends a gateway; whoever keeps it running starts it again."""
        try:
            self.core.work(batch)
        except StoreError as error:
            self.ends.append(str(error))
            self.kill_gateway()

    def _tick(self) -> None:
        if self.link.alive and not self._turn_due:
            self._work([])
        self.clock.call_later(TICK_SECONDS, self._tick)

    def lost_broker(self) -> None:
        self.clock.call_later(0.5, lambda: self.link.start())
        for device in self.devices.values():
            self.clock.call_later(self.random.uniform(0.5, 5.0), device.connect)

    # ---- what a test does ------------------------------------------------------------

    def ask(self, operation: str, **fields: Any) -> dict[str, Any]:
        while not self.link.alive:
            self.clock.sleep(0.1)
        return ask(self.core, operation, **fields)

    def begin(self, **changes: Any) -> None:
        """Wait until all devices are there, then start a round with all of them."""
        while sum(one["online"] for one in self.all_devices()) < len(self.devices):
            self.clock.sleep(0.5)
        fields = start_fields(list(self.devices), values=self.values, **changes)
        assert self.ask("start", **fields) == {"state": "running", "devices": {}}

    def all_devices(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor, more = 0, True
        while more:
            reply = self.ask("hello", cursor=cursor)
            found += reply["devices"]
            cursor, more = reply["cursor"], reply["more"]
        return found

    def run_until(self, condition: Callable[[], bool], seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        while not condition():
            assert self.clock.monotonic() < end, f"not within {seconds} s"
            self.clock.sleep(1.0)

    def closed(self, seconds: float) -> dict[str, Any]:
        """The round's answer when it is over."""
        reply: dict[str, Any] = {}

        def over() -> bool:
            reply.update(self.ask("collect", campaign=CAMPAIGN, round=1))
            return bool(reply["state"] != "running")

        self.run_until(over, seconds)
        return reply

    def counted(self) -> dict[str, int]:
        """Of which delta of each device the gateway says that it has counted it."""
        while not self.link.alive:
            self.clock.sleep(0.1)
        found = {name: self.store.counted(KEY, name) for name in self.devices}
        return {name: crc32 for name, crc32 in found.items() if crc32 is not None}

    def sum_of(self, counted: Mapping[str, int]) -> tuple[NDArray[np.int64], int]:
        """What these deltas, as their devices computed them, add up to; and their weight."""
        total, weight = np.zeros(self.values, np.int64), 0
        for name, crc32 in counted.items():
            values, samples = self.devices[name].deltas[crc32]
            total += values.astype(np.int64) * samples
            weight += samples
        return total, weight

    def close(self) -> None:
        self.link.stop()
        self.store.close()
