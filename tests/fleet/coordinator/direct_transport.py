"""A transport without Flower, in virtual time, for tests of what drives campaigns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fleet.campaign import Operation
from fleet.clock import VirtualClock
from fleet.coordinator.driver import CampaignDriver
from fleet.coordinator.transport import Reply, Transport, read_replies
from fleet.store import SqlStore
from tests.fleet.coordinator.plain_gateway import PlainGateway


class PowerCutError(Exception):
    """Stands for SIGKILL to the driver."""


class DirectTransport(Transport):
    """Calls gateways' own handlers in virtual time; dies before request number `dies_at`."""

    def __init__(
        self,
        gateways: Mapping[str, PlainGateway],
        dies_at: int | None = None,
        clock: VirtualClock | None = None,
    ) -> None:
        self._gateways = gateways
        self._dies_at = dies_at
        self.clock = clock or VirtualClock()
        # Between two looks for replies.
        self.pull = 0.4
        # Told of every request before it is sent.
        self.listens: Callable[[str, Operation, Mapping[str, Any]], None] | None = None
        self.sent: list[tuple[str, Operation]] = []
        self.silent: set[str] = set()
        self.rounds: dict[str, list[dict[str, Any]]] = {}
        # What a gateway says instead, by (gateway, part of the reply).
        self.lies: dict[tuple[str, str], Any] = {}
        self._replies: list[Reply] = []
        for name, one in gateways.items():
            one.now = self.clock.monotonic
            self._greet(name)

    def forget(self, name: str) -> None:
        """What a gateway has said isn't heard."""
        self._replies = [one for one in self._replies if one.gateway != name]

    def _greet(self, name: str) -> None:
        if name in self.silent:
            return
        hello = self._gateways[name]._hello({})
        hello["rounds"] = self.rounds.get(name, [])
        self._reply(name, hello)

    def _reply(self, name: str, hello: dict[str, Any], *answers: dict[str, Any]) -> None:
        for one in answers:
            one["answer"] = {**one["answer"], **self.lies.get((name, one["op"]), {})}
        hello = {**hello, **self.lies.get((name, "hello"), {})}
        self._replies += read_replies(name, {"answers": list(answers), "hello": hello})

    def gateways(self) -> frozenset[str]:
        return frozenset(self._gateways)

    def send(self, gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        if len(self.sent) == self._dies_at:
            raise PowerCutError
        if self.listens is not None:
            self.listens(gateway, operation, fields)
        self.sent.append((gateway, operation))
        if operation is Operation.HELLO:
            self._greet(gateway)
            return
        name = {"campaign": fields["campaign"], "round": fields["round"]}
        if gateway in self.silent:
            self._replies.append(Reply(gateway, (name["campaign"], name["round"]), error="away"))
            return
        answer = getattr(self._gateways[gateway], f"_{operation.value}")(dict(fields))
        hello = {**self._gateways[gateway]._hello({}), "rounds": self.rounds.get(gateway, [])}
        self._reply(gateway, hello, {"op": operation.value, **name, "answer": answer})

    def receive(self) -> list[Reply]:
        replies, self._replies = self._replies, []
        self.clock.sleep(self.pull)
        return replies


def drive(store: SqlStore, name: str, transport: DirectTransport) -> str:
    """Drive a campaign until it has ended; returns its state."""
    return CampaignDriver(store, name, transport, clock=transport.clock).run()
