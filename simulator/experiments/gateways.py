"""Gateways in virtual time: the daemon's core without its threads, and the coordinator's way to it.

Where a live deployment has Flower between the two, here a request and its answer take a constant
time each. What a gateway is asked and says is the same: the standing of a round, for example, is
told when that has ended, or after a while, as `fleet.coordinator.gateway_call` asks for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from fleet.campaign import Operation
from fleet.coordinator.transport import Reply, Transport, read_replies
from fleet.errors import GatewayError
from fleet.gateway.actions import Filter, Publish
from fleet.gateway.config import BrokerSettings, GatewaySettings
from fleet.gateway.core import Core, Job
from fleet.gateway.link import Message
from fleet.gateway.replies import read_request
from fleet.gateway.rounds import RoundKey, RoundState
from fleet.gateway.store import RoundStore
from simulator.broker.client import Client
from simulator.experiments.brokers import VirtualBroker
from simulator.experiments.meddling import Meddler
from simulator.experiments.window_clock import WindowClock

TURN_SECONDS = 0.001
"""Events of so long are one batch, as those are that come while a live gateway writes one."""
TICK_SECONDS = 0.5
RECONNECT_SECONDS = 0.5
WAIT_SECONDS = 20.0
"""For the end of a round, as `fleet.coordinator.pace` has it."""


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
        self._clock = clock
        self._broker = broker
        self._meddler = meddler
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
        self._waiting: list[tuple[RoundKey, Callable[[], None]]] = []
        self._open()
        self._tick()

    def _open(self) -> None:
        self._processes += 1
        self.link = _Link(self, self._broker, self._meddler, self._clock)
        self.store = RoundStore(self.settings.store, survives_power_cuts=False)
        self.core = Core(
            self.settings,
            self.store,
            self.link,
            self._clock,
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
        self._waiting.clear()
        self._clock.call_later(down_seconds, self._open)

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
            self.core.work(batch)
            if self.core.unsent and not self._turn_is_due:
                self._turn_is_due = True
                self._clock.call_later(TURN_SECONDS, self._turn)

    def _tick(self) -> None:
        if not self._turn_is_due:
            self._turn()
        self._clock.call_later(TICK_SECONDS, self._tick)

    # ---- what the coordinator asks ---------------------------------------------------

    def ask(self, operation: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request. Raises GatewayError where it refuses."""
        question = read_request(self.core, operation, dict(fields))
        reply: Future[Any] = Future()
        self.core.work([*self._inbox, Job(question.work, reply)])
        self._inbox.clear()
        return question.answer(reply.result(timeout=0))

    def when_ended(self, key: RoundKey, then: Callable[[], None]) -> None:
        """Call once a round doesn't run (any more), at once where that is so, or after a while."""
        if self.core.logic.state(key) is not RoundState.RUNNING:
            then()
            return
        entry = (key, then)
        self._waiting.append(entry)

        def give_up() -> None:
            if entry in self._waiting:
                self._waiting.remove(entry)
                then()

        self._clock.call_later(WAIT_SECONDS, give_up)

    def _round_changed(self, key: RoundKey) -> None:
        # The batch in which it changed has to end before the gateway is asked about it.
        over = [entry for entry in self._waiting if entry[0] == key]
        self._waiting = [entry for entry in self._waiting if entry[0] != key]
        for _, then in over:
            self._clock.call_later(0.0, then)


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
        if self._client is not None and not self._meddler.drops(message.topic, message.qos):
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


class DirectTransport(Transport):
    """The coordinator's way to gateways, without Flower."""

    def __init__(
        self,
        gateways: Mapping[str, VirtualGateway],
        clock: WindowClock,
        backhaul_seconds: float = 0.05,
        look_seconds: float = 0.5,
    ) -> None:
        """A request takes ``backhaul_seconds``, and so does its answer."""
        self._gateways = gateways
        self._clock = clock
        self._backhaul = backhaul_seconds
        self._look = look_seconds
        self._cursors: dict[str, int] = {}
        self._replies: list[Reply] = []
        self.messages = 0
        self.told: Callable[[float], None] = lambda seconds: None
        self.on_start: Callable[[int], None] = lambda number: None
        self._started = -1
        for name in gateways:
            self.send(name, Operation.HELLO, {})

    def gateways(self) -> frozenset[str]:
        """See `Transport`."""
        return frozenset(self._gateways)

    def send(self, gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        """See `Transport`."""
        self.messages += 1
        if operation is Operation.START and fields["round"] != self._started:
            self._started = fields["round"]
            self.on_start(self._started)
        self._clock.call_later(self._backhaul, lambda: self._arrives(gateway, operation, fields))

    def receive(self) -> list[Reply]:
        """See `Transport`."""
        self._clock.wait(self._look, lambda: bool(self._replies))
        self.told(self._clock.monotonic())
        replies, self._replies = self._replies, []
        return replies

    def _arrives(self, name: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        gateway = self._gateways[name]
        if not gateway.is_up:
            self._fail(name, operation, fields, "the gateway is down")
        elif operation is Operation.COLLECT:
            key = RoundKey(bytes.fromhex(fields["campaign"]), int(fields["round"]))
            gateway.when_ended(key, lambda: self._answer(name, operation, fields))
        else:
            self._answer(name, operation, fields)

    def _answer(self, name: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        answers = []
        try:
            if operation is not Operation.HELLO:
                about = {one: fields[one] for one in ("campaign", "round")}
                answer = self._ask(name, operation, fields)
                answers.append({"op": str(operation), **about, "answer": answer})
            hello = self._hello(name)
        except GatewayError as error:
            self._fail(name, operation, fields, str(error))
            return
        replies = read_replies(name, {"answers": answers, "hello": hello})
        # Whoever hears of a round's end then knows the devices as they are now.
        replies.sort(key=lambda one: one.hello is None)
        self._deliver(replies)

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
        """What has changed since the last one, all pages of it."""
        cursor = self._cursors.get(name, 0)
        hello = self._gateways[name].ask("hello", {"cursor": cursor})
        while hello["more"]:
            page = self._gateways[name].ask("hello", {"cursor": hello["cursor"]})
            for part in ("devices", "rounds"):
                page[part] = [*hello[part], *page[part]]
            hello = page
        self._cursors[name] = hello["cursor"]
        return hello

    def _fail(self, name: str, operation: Operation, fields: Mapping[str, Any], why: str) -> None:
        if operation is not Operation.HELLO:
            round_name = (str(fields["campaign"]), int(fields["round"]))
            self._deliver([Reply(name, round_name, error=why)])

    def _deliver(self, replies: list[Reply]) -> None:
        self._clock.call_later(self._backhaul, lambda: self._replies.extend(replies))
