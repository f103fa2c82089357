"""How long messages to gateways should wait there: rounds in virtual time, over the real transport.

    python -m benchmarks.syncs [--campaigns C] [--gateways G] [--json]

`fleet.coordinator.flower_adapter` decides when a gateway gets a message and how long that waits.
Here it does so against a model of Flower: a SuperNode has one message at a time, in a process that
takes a while to start; it looks for the next at once when one is answered, and every three seconds
where there was none. What this says in seconds is checked by `benchmarks.campaigns`, which runs all
of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import cbor2
from flwr.app import ConfigRecord, RecordDict

from benchmarks.campaigns.rounds import spread
from fleet.campaign import RoundMachine
from fleet.cli._output import console, table
from fleet.clock import VirtualClock
from fleet.coordinator import flower_adapter
from fleet.coordinator.flower_adapter import GridTransport
from fleet.coordinator.gateway_call import RECORD
from fleet.coordinator.pace import FlowerPace
from fleet.gateway.frames import SOCKET_VERSION

LOOK_SECONDS = 3.0
"""A SuperNode without a message sleeps so long."""
PROCESS_SECONDS, PROCESS_CPU_SECONDS = 1.0, 1.5
"""Until a ClientApp talks to its gateway on a machine that is otherwise idle; and all it takes."""
REPLY_SECONDS = 0.2
CLOSING_SECONDS = (0.5, 2.0)
"""From a round's last reply to the next one's row in the store; 1.4 s with 1,000 devices each."""

RoundName = tuple[str, int]


@dataclass
class Gateway:
    """A gateway's daemon and its SuperNode."""

    name: str
    clock: VirtualClock
    replies: dict[str, Any]
    seconds_of: Callable[[RoundName, str], float]
    queue: deque[Any] = field(default_factory=deque)
    open: set[RoundName] = field(default_factory=set)
    closed: set[RoundName] = field(default_factory=set)
    messages: int = 0
    _busy: bool = False
    _waits: Callable[[], None] | None = None

    def look(self) -> None:
        """Take the next message, where there is one."""
        if not self.queue:
            self.clock.call_later(LOOK_SECONDS, self.look)
            return
        message = self.queue.popleft()
        self.messages += 1
        self.clock.call_later(PROCESS_SECONDS, lambda: self._begin(message))

    def _begin(self, message: Any) -> None:
        request = cbor2.loads(message.content.config_records[RECORD]["payload"])
        started = [(one["campaign"], one["round"]) for one in request.get("starts", ())]
        for name in started:
            if name not in self.open | self.closed:
                self.open.add(name)
                self.clock.call_later(self.seconds_of(name, self.name), self._closes(name))
        watched = [(one["campaign"], one["round"]) for one in request.get("rounds", ())]
        wait, linger = float(request["wait_seconds"]), float(request.get("linger_seconds", 0.0))
        if wait <= 0.0:
            self._answer(message, started, watched)
            return
        watched = [*watched, *(name for name in started if name not in watched)]
        done: list[bool] = []

        def end() -> None:
            if not done:
                done.append(True)
                self._waits = None
                self._answer(message, started, watched)

        def look() -> None:
            if self.closed.issuperset(watched):
                end()
            elif not self.closed.isdisjoint(watched):
                self.clock.call_later(linger, end)

        self._waits = look
        self.clock.call_later(wait, end)
        look()

    def _closes(self, name: RoundName) -> Callable[[], None]:
        def close() -> None:
            self.open.discard(name)
            self.closed.add(name)
            if self._waits is not None:
                self._waits()

        return close

    def _answer(
        self, message: Any, started: Iterable[RoundName], watched: Iterable[RoundName]
    ) -> None:
        def one(operation: str, name: RoundName) -> dict[str, Any]:
            state = "closed" if name in self.closed else "running"
            answer: dict[str, Any] = {"state": state}
            if operation == "collect":
                answer |= {"cursor": 0, "more": False}
                answer |= {"sums": {}} if state == "closed" else {}
            return {"op": operation, "campaign": name[0], "round": name[1], "answer": answer}

        answers = [one("start", name) for name in started]
        answers += [one("collect", name) for name in watched]
        hello = {"version": SOCKET_VERSION, "gateway": self.name, "devices": [], "rounds": []}
        payload = cbor2.dumps(
            {"ok": True, "gateway": self.name, "answers": answers, "hello": hello}
        )
        reply = SimpleNamespace(
            metadata=SimpleNamespace(reply_to_message_id=message.identifier),
            has_error=lambda: False,
            content=RecordDict({RECORD: ConfigRecord({"payload": payload})}),
        )
        self.clock.call_later(
            REPLY_SECONDS, lambda: self.replies.__setitem__(message.identifier, reply)
        )
        # It looks at once, and what is answered in the next moment comes too late.
        self.clock.call_later(REPLY_SECONDS, self.look)


class Grid:
    """What the transport asks of Flower."""

    def __init__(
        self, names: Sequence[str], clock: VirtualClock, seconds_of: Callable[..., float]
    ) -> None:
        """Every gateway's SuperNode begins to look at a moment of its own."""
        self.replies: dict[str, Any] = {}
        self.nodes = {
            number: Gateway(name, clock, self.replies, seconds_of)
            for number, name in enumerate(names, 1)
        }
        self._numbers = itertools.count()
        for number, node in self.nodes.items():
            clock.call_later(0.7 * number, node.look)

    def get_node_ids(self) -> list[int]:
        """All of them."""
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        """Queue them."""
        identifiers = []
        for message in messages:
            message.identifier = str(next(self._numbers))
            identifiers.append(message.identifier)
            self.nodes[message.dst_node_id].queue.append(message)
        return identifiers

    def pull_messages(self, identifiers: Sequence[str]) -> list[Any]:
        """Those of the replies that are there."""
        return [self.replies.pop(one) for one in identifiers if one in self.replies]


def _message(content: RecordDict, *, dst_node_id: int, **_: object) -> SimpleNamespace:
    """A Flower message can be made inside of a ServerApp only."""
    return SimpleNamespace(content=content, dst_node_id=dst_node_id)


@dataclass
class Campaign:
    """Rounds, one after the other, as a driver does them."""

    name: str
    rounds: int
    gateways: Sequence[str]
    clock: VirtualClock
    number: int = 0
    began: list[float] = field(default_factory=list)
    machine: RoundMachine | None = None
    next_at: float = 0.0

    def step(self, transport: GridTransport) -> None:
        """Begin a round when it is time, and send what is due."""
        now = self.clock.monotonic()
        if self.machine is None and now >= self.next_at and len(self.began) <= self.rounds:
            self.began.append(now)
            self.number += 1
            self.machine = RoundMachine(self.gateways, now, 3600.0, 90.0)
        if self.machine is not None and len(self.began) <= self.rounds:
            for gateway, operation in self.machine.requests(now):
                fields = {"campaign": self.name, "round": self.number, "cursor": 0}
                transport.send(gateway, operation, fields)

    def take(self, reply: Any) -> None:
        """A gateway's reply."""
        if self.machine is None or reply.round != (self.name, self.number):
            return
        now = self.clock.monotonic()
        if reply.started is not None:
            self.machine.started(reply.gateway, reply.started, now)
        if reply.collected is not None:
            self.machine.collected(reply.gateway, reply.collected, now)
        if self.machine.finished:
            self.machine = None
            closing = random.Random(f"{self.name}/{self.number}").uniform(*CLOSING_SECONDS)
            self.next_at = now + closing

    @property
    def is_over(self) -> bool:
        """Whether the row of one more round is there."""
        return len(self.began) > self.rounds


def run(
    pace: FlowerPace,
    campaigns: int = 3,
    gateways: int = 2,
    rounds: int = 20,
    least: float = 3.8,
    most: float = 4.0,
    stagger: float = 2.0,
) -> dict[str, Any]:
    """Overheads and messages of campaigns whose rounds take a gateway ``least`` to ``most``.

    Each is begun so many seconds (``stagger``) after the one before.
    """
    clock = VirtualClock()
    names = [f"gateway-{number}" for number in range(gateways)]

    def seconds_of(name: RoundName, gateway: str) -> float:
        return random.Random(f"{name}/{gateway}").uniform(least, most)

    grid = Grid(names, clock, seconds_of)
    with mock.patch.object(flower_adapter, "Message", _message):
        transport = GridTransport(grid, pace, clock)  # type: ignore[arg-type]
        while len(transport.gateways()) < gateways:
            transport.receive()
        for node in grid.nodes.values():
            node.messages = 0
        begun = clock.monotonic()
        under_way = [
            Campaign(f"{one:016x}", rounds, names, clock, next_at=begun + one * stagger)
            for one in range(campaigns)
        ]
        while not all(one.is_over for one in under_way):
            for one in under_way:
                one.step(transport)
            for reply in transport.receive():
                for one in under_way:
                    one.take(reply)
    overheads = [
        after - before - max(seconds_of((one.name, number), name) for name in names)
        for one in under_way
        for number, (before, after) in enumerate(itertools.pairwise(one.began), 1)
    ]
    messages = sum(node.messages for node in grid.nodes.values())
    seconds = clock.monotonic() - begun
    return {
        "overhead_seconds": spread(overheads),
        "messages_per_round_and_gateway": round(messages / (campaigns * rounds * gateways), 2),
        "clientapps_percent_of_a_core": round(
            100 * messages * PROCESS_CPU_SECONDS / gateways / seconds, 1
        ),
    }


WORLDS: Mapping[str, tuple[float, float]] = {"4 s": (3.8, 4.0), "20 to 60 s": (20.0, 60.0)}
PACES = tuple(
    FlowerPace(sync_wait=wait, expecting_wait=expecting)
    for wait, expecting in ((10.0, 2.0), (20.0, 2.0), (20.0, 3.0), (20.0, 6.0), (30.0, 3.0))
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--campaigns", type=int, default=3)
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = [
        {
            "rounds_take": world,
            "sync_wait": pace.sync_wait,
            "expecting_wait": pace.expecting_wait,
            **run(pace, options.campaigns, options.gateways, 20, *times),
        }
        for world, times in WORLDS.items()
        for pace in PACES
    ]
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    rows = [
        [
            one["rounds_take"],
            f"{one['sync_wait']:g}",
            f"{one['expecting_wait']:g}",
            f"{one['overhead_seconds']['median']:.1f}",
            f"{one['overhead_seconds']['p90']:.1f}",
            f"{one['messages_per_round_and_gateway']:.1f}",
            f"{one['clientapps_percent_of_a_core']:.0f} %",
        ]
        for one in found
    ]
    heads = ["rounds take", "wait", "expecting", "overhead, s", "p90", "messages", "core"]
    console().print(
        table(f"{options.campaigns} campaigns, {options.gateways} gateways", heads, rows)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
