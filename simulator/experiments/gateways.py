"""Gateways in virtual time: the daemon's core without its threads, and the coordinator's way to it.

Where a live deployment has Flower between the two, here a request and its answer take a constant
time each. What a gateway is asked and says is the same: the standing of a round, for example, is
told when that has ended or enough deltas have come, or after a while, as
`fleet.coordinator.gateway_call` asks for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fleet.campaign import Operation
from fleet.coordinator.pace import FlowerPace
from fleet.coordinator.transport import Reply, Transport, read_replies
from fleet.errors import GatewayError
from fleet.gateway.actions import Accept, Filter, Publish, StoreAction
from fleet.gateway.config import BrokerSettings, GatewaySettings
from fleet.gateway.core import Core, Job
from fleet.gateway.link import Message
from fleet.gateway.replies import read_request
from fleet.gateway.rounds import RoundKey
from fleet.gateway.store import RoundStore
from simulator.broker.client import Client
from simulator.experiments.brokers import VirtualBroker
from simulator.experiments.meddling import Meddler
from simulator.experiments.processes import WaitingClock
from simulator.experiments.window_clock import OwnWall, WindowClock

TURN_SECONDS = 0.001
"""Events of so long are one batch, as those are that come while a live gateway writes one."""
TICK_SECONDS = 0.5
RECONNECT_SECONDS = 0.5
WAIT_SECONDS = FlowerPace.sync_wait
"""For the end of a round, as `fleet.coordinator.pace` has it."""
ANSWER_SECONDS = FlowerPace.sync_wait + FlowerPace.answer
"""A request without an answer counts as lost then; as there, a wait and 45 s."""


class GatewayKilled(BaseException):
    """The gateway's process ends here, as SIGKILL ends it."""


class VirtualGateway:
    """One gateway of a site."""

    def __init__(
        self,
        name: str,
        fleet: str,
        folder: Path,
        serves: Mapping[str, Any],
        broker: VirtualBroker,
        meddler: Meddler,
        clock: WindowClock,
    ) -> None:
        """Connect to ``broker``; ``serves`` are settings that say which devices are its own."""
        self.name = name
        self.on_publish: Callable[[Publish], None] = lambda message: None
        """Hears of all that it publishes, before the broker does."""
        self._clock = clock
        self.own_clock = OwnWall(clock)
        """What it goes by: its machine may have another time of day than others."""
        self._broker = broker
        self._meddler = meddler
        self._steps_left: int | None = None
        self._deltas_left = 0
        self._down_seconds = 0.0
        self.settings = GatewaySettings(
            fleet=fleet,
            gateway=name,
            store=folder / f"{name}.sqlite",
            socket=folder / f"{name}.sock",
            broker=BrokerSettings(user=name, password_file=folder / "password"),
            **serves,
        )
        self._inbox: deque[Job] = deque()
        self._turn_is_due = False
        self._processes = 0
        self._waiting: list[tuple[Callable[[], bool], Callable[[], None]]] = []
        self._open()
        self._tick()

    def _open(self) -> None:
        self._processes += 1
        self.link = _Link(self, self._broker, self._meddler, self._clock)
        self.store = _MortalStore(self.settings.store, self.step)
        self.core = Core(
            self.settings,
            self.store,
            self.link,
            self.own_clock,
            self._processes,
            self._round_changed,
        )
        self.link.start()

    @property
    def is_up(self) -> bool:
        """Whether its process lives."""
        return self.link.is_alive

    def kill(self, down_seconds: float = 2.0) -> None:
        """End it as SIGKILL does; it is started again later."""
        if not self.is_up:
            return
        self.link.stop()
        self.store.close()
        self._inbox.clear()
        waiting, self._waiting = self._waiting, []
        for _, then in waiting:  # the other end notices
            self._clock.call_later(0.0, then)
        self._steps_left, self._deltas_left = None, 0
        self._clock.call_later(down_seconds, self._open)

    def kill_after(self, steps: int, down_seconds: float = 2.0, deltas: int = 0) -> None:
        """The same in the middle of its work: at the ``steps``-th step (from 1) from now.

        Or from when it has accepted so many ``deltas``.
        """
        self._steps_left, self._down_seconds, self._deltas_left = steps, down_seconds, deltas

    def step(self, action: StoreAction | None = None) -> None:
        """It is about to write or to publish; where its time has come it ends here."""
        if self._deltas_left:
            self._deltas_left -= isinstance(action, Accept)
        elif self._steps_left is not None:
            self._steps_left -= 1
            if self._steps_left <= 0:
                raise GatewayKilled

    def _work(self, batch: Sequence[Job]) -> None:
        try:
            self.core.work(batch)
        except GatewayKilled:
            self.kill(self._down_seconds)
            raise

    def close(self) -> None:
        """End it for good."""
        if self.is_up:
            self.link.stop()
            self.store.close()

    # ---- events ----------------------------------------------------------------------

    def on_connected(self) -> None:
        """See `fleet.gateway.link.Listener`."""
        self._put(self.core.connected())

    def on_messages(self, messages: Sequence[Message]) -> None:
        """See `fleet.gateway.link.Listener`."""
        for message in messages:
            self._put(self.core.arrived(*message))

    def _put(self, job: Job) -> None:
        self._inbox.append(job)
        if not self._turn_is_due:
            self._turn_is_due = True
            self._clock.call_later(TURN_SECONDS, self._turn)

    def _turn(self) -> None:
        self._turn_is_due = False
        if self.is_up:
            batch, self._inbox = list(self._inbox), deque()
            try:
                self._work(batch)
            except GatewayKilled:
                return
            if self.core.unsent and not self._turn_is_due:
                self._turn_is_due = True
                self._clock.call_later(TURN_SECONDS, self._turn)

    def _tick(self) -> None:
        if not self._turn_is_due:
            self._turn()
        self._clock.call_later(TICK_SECONDS, self._tick)

    # ---- what the coordinator asks ---------------------------------------------------

    def ask(self, operation: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request.

        Raises: GatewayError where it refuses, GatewayKilled where it dies of it.
        """
        question = read_request(self.core, operation, dict(fields))
        reply: Future[Any] = Future()
        batch, self._inbox = [*self._inbox, Job(question.work, reply)], deque()
        self._work(batch)
        return question.answer(reply.result(timeout=0))

    def watch(self, fields: Mapping[str, Any], then: Callable[[], None]) -> None:
        """Call once what a `watch` waits for is there, or after a while; or the gateway isn't."""
        is_due = read_request(self.core, "watch", dict(fields)).is_due
        if is_due():
            then()
            return
        entry = (is_due, then)
        self._waiting.append(entry)

        def give_up() -> None:
            if entry in self._waiting:
                self._waiting.remove(entry)
                then()

        self._clock.call_later(WAIT_SECONDS, give_up)

    def _round_changed(self, key: RoundKey) -> None:
        # The batch in which it changed has to end before the gateway is asked about it.
        over = [entry for entry in self._waiting if entry[0]()]
        self._waiting = [entry for entry in self._waiting if entry not in over]
        for _, then in over:
            self._clock.call_later(0.0, then)


class _MortalStore(RoundStore):
    """A gateway's store; its process may die before each change, and on both sides of a commit."""

    def __init__(self, path: Path, step: Callable[[StoreAction | None], None]) -> None:
        """Open or make it."""
        super().__init__(path, survives_power_cuts=False)
        self._step = step

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See `RoundStore`."""
        with super().transaction():
            yield
            self._step(None)
        self._step(None)

    def apply(self, action: StoreAction) -> bytes | None:
        """See `RoundStore`."""
        self._step(action)
        return super().apply(action)


class _Link:
    """A gateway's connection to its site's broker. Implements `fleet.gateway.link.Link`."""

    def __init__(
        self,
        gateway: VirtualGateway,
        broker: VirtualBroker,
        meddler: Meddler,
        clock: WindowClock,
    ) -> None:
        """Nothing is connected before ``start``."""
        self._gateway = gateway
        self._broker = broker
        self._meddler = meddler
        self._clock = clock
        self._client: Client | None = None
        self.is_alive = True

    def start(self) -> None:
        """See `Link`."""
        if not self.is_alive:
            return
        self._client = self._broker.attach(self._gateway.name, self._hears, self._lost)
        if self._client is None:
            self._clock.call_later(RECONNECT_SECONDS, self.start)
        else:
            self._gateway.on_connected()

    def stop(self) -> None:
        """See `Link`; a process that dies ends its connection in the same way."""
        self.is_alive = False
        if self._client is not None:
            self._client.close()

    def _hears(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._meddler.to_gateway(message, self._deliver)

    def _deliver(self, message: Message) -> None:
        if self.is_alive:
            self._gateway.on_messages([message])

    def _lost(self) -> None:
        self._client = None
        if self.is_alive:
            self._clock.call_later(RECONNECT_SECONDS, self.start)

    def publish(self, message: Publish) -> None:
        """See `Link`."""
        if self._client is None:
            return
        self._gateway.step()
        self._gateway.on_publish(message)
        if not self._meddler.drops(message.topic, message.qos):
            self._client.publish(
                message.topic,
                message.payload,
                qos=message.qos,
                retain=message.retain,
                expiry_seconds=message.expiry_seconds,
                response_topic=message.response_topic,
            )

    def subscribe(self, filters: Sequence[Filter]) -> None:
        """See `Link`."""
        if self._client is not None:
            for one in filters:
                self._client.subscribe(
                    one.topic,
                    no_local=one.no_local,
                    retain_as_published=one.retain_as_published,
                )

    def unsubscribe(self, topics: Sequence[str]) -> None:
        """See `Link`."""
        if self._client is not None:
            for one in topics:
                self._client.unsubscribe(one)

    @property
    def waiting(self) -> int | None:
        """See `Link`: what it is given is sent at once."""
        return None if self._client is None else 0


class Way(NamedTuple):
    """How a request gets to its gateway, and the answer back, in seconds."""

    requests: tuple[float, ...]
    """When it arrives: nowhere where empty, and more than once where it was sent again."""
    answer: float | None
    """How long the first answer takes; None: it is lost."""


@dataclass
class _Request:
    gateway: str
    operation: Operation
    fields: Mapping[str, Any]
    answer_seconds: float | None
    is_over: bool = False
    """It was answered, or counts as lost; what comes later is nobody's."""


class DirectTransport(Transport):
    """The coordinator's way to gateways, without Flower."""

    def __init__(
        self,
        gateways: Mapping[str, VirtualGateway],
        clock: WaitingClock,
        backhaul_seconds: float = 0.05,
        look_seconds: float = 0.5,
        way: Callable[[str], Way] | None = None,
    ) -> None:
        """A request takes ``backhaul_seconds``, and so does its answer.

        Else ``way`` says how the next request to a gateway fares.
        """
        self._gateways = gateways
        self._clock = clock
        self._look = look_seconds
        self._cursors: dict[str, int] = {}
        self._replies: list[Reply] = []
        self.told: Callable[[float], None] = lambda seconds: None
        self.on_start: Callable[[int], None] = lambda number: None
        as_ever = Way((backhaul_seconds,), backhaul_seconds)
        self._way = way or (lambda gateway: as_ever)
        self._started: set[int] = set()
        for name in gateways:
            self.send(name, Operation.HELLO, {})

    def gateways(self) -> frozenset[str]:
        """See `Transport`."""
        return frozenset(self._gateways)

    def send(self, gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        """See `Transport`."""
        if operation is Operation.START and fields["round"] not in self._started:
            self._started.add(fields["round"])
            self.on_start(fields["round"])
        way = self._way(gateway)
        request = _Request(gateway, operation, fields, way.answer)
        for seconds in way.requests:
            self._clock.call_later(seconds, lambda: self._arrives(request))
        self._clock.call_later(ANSWER_SECONDS, lambda: self._give_up(request))

    def receive(self) -> list[Reply]:
        """See `Transport`."""
        self._clock.wait(self._look, lambda: bool(self._replies))
        self.told(self._clock.monotonic())
        replies, self._replies = self._replies, []
        return replies

    def _arrives(self, request: _Request) -> None:
        gateway, fields = self._gateways[request.gateway], request.fields
        if not gateway.is_up:
            self._fail(request, "the gateway is down")
        elif request.operation is Operation.COLLECT and "part" not in fields:
            wanted = {fields["campaign"]: fields["arrivals"]} if "arrivals" in fields else {}
            watched = {"rounds": [[fields["campaign"], fields["round"]]], "arrivals": wanted}
            gateway.watch(watched, lambda: self._answer(request))
        else:
            self._answer(request)

    def _answer(self, request: _Request) -> None:
        name, operation, fields = request.gateway, request.operation, request.fields
        if not self._gateways[name].is_up:
            self._fail(request, "the gateway has ended")
            return
        answers = []
        try:
            if operation is not Operation.HELLO:
                about = {one: fields[one] for one in ("campaign", "round")}
                answer = self._ask(name, operation, fields)
                answers.append({"op": str(operation), **about, "answer": answer})
            hello = self._hello(name)
        except GatewayError as error:
            self._fail(request, str(error))
            return
        except GatewayKilled:
            self._fail(request, "the gateway has ended")
            return
        replies = read_replies(name, {"answers": answers, "hello": hello})
        # Whoever hears of a round's end then knows the devices as they are now.
        replies.sort(key=lambda one: one.hello is None)
        self._deliver(request, replies, hello["cursor"])

    def _ask(self, name: str, operation: Operation, fields: Mapping[str, Any]) -> dict[str, Any]:
        """One answer, all pages of reports in it."""
        answer = self._gateways[name].ask(operation.value, fields)
        reports = list(answer.get("reports", ()))
        while answer.get("more"):
            answer = self._gateways[name].ask(
                operation.value, {**fields, "cursor": answer["cursor"]}
            )
            reports += answer["reports"]
        return {**answer, "reports": reports} if reports else answer

    def _hello(self, name: str) -> dict[str, Any]:
        """What has changed since the last one that came, all pages of it."""
        cursor = self._cursors.get(name, 0)
        hello = self._gateways[name].ask("hello", {"cursor": cursor})
        while hello["more"]:
            page = self._gateways[name].ask("hello", {"cursor": hello["cursor"]})
            for part in ("devices", "rounds"):
                page[part] = [*hello[part], *page[part]]
            hello = page
        return hello

    def _give_up(self, request: _Request) -> None:
        if not request.is_over:
            request.answer_seconds = 0.0
            self._fail(request, "no answer")

    def _fail(self, request: _Request, why: str) -> None:
        replies = []
        if request.operation is not Operation.HELLO:
            round_name = (str(request.fields["campaign"]), int(request.fields["round"]))
            replies.append(Reply(request.gateway, round_name, error=why))
        self._deliver(request, replies)

    def _deliver(self, request: _Request, replies: list[Reply], cursor: int = 0) -> None:
        name, seconds = request.gateway, request.answer_seconds
        request.answer_seconds = None
        if seconds is None:
            return  # lost, or the answer to another copy of it

        def comes() -> None:
            if request.is_over:
                return
            request.is_over = True
            self._cursors[name] = max(cursor, self._cursors.get(name, 0))
            self._replies += replies
            if not replies and not self._cursors[name]:
                # Nobody has heard of it yet, and so nobody else would ask.
                self._clock.call_later(self._look, lambda: self.send(name, Operation.HELLO, {}))

        self._clock.call_later(seconds, comes)
