"""A gateway's core without threads and without a broker, in virtual time."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.clock import VirtualClock
from fleet.gateway.actions import Filter, Publish
from fleet.gateway.config import BrokerSettings, GatewaySettings
from fleet.gateway.core import Core, Job
from fleet.gateway.replies import read_request
from fleet.gateway.rounds import Round, RoundKey
from fleet.gateway.store import RoundStore
from fleet.protocol import Delta, DeviceState, Reason, Receipt, Status, Task, topics
from tests.fleet.gateway.deltas import (
    BLOB,
    CAMPAIGN,
    FLEET,
    GATEWAY,
    PLAN,
    announcement,
    start_fields,
)

KEY = RoundKey(bytes.fromhex(CAMPAIGN), 1)
FOREIGN = "foreign"


def settings(folder: Path) -> GatewaySettings:
    """Of a gateway that serves every device but `FOREIGN`."""
    return GatewaySettings(
        fleet=FLEET,
        gateway=GATEWAY,
        store=folder / "store.sqlite",
        socket=folder / "gw.sock",
        devices=("a", "b", "c", "d", "e"),
        device_prefix="cow-",
        broker=BrokerSettings(user=GATEWAY, password_file=folder / "password"),
    )


def fast_store(folder: Path) -> RoundStore:
    """The store that ships, but for waiting for the disk: tests kill processes, not machines."""
    return RoundStore(folder / "store.sqlite", survives_power_cuts=False)


def ask(core: Core, operation: str, **fields: Any) -> dict[str, Any]:
    """What the socket would answer, without waiting; GatewayError where it refuses."""
    question = read_request(core, operation, fields)
    reply: Future[Any] = Future()
    core.work([Job(question.work, reply)])
    return question.answer(reply.result(timeout=0))


class RecordingLink:
    """A link that keeps what it is told."""

    def __init__(self) -> None:
        self.published: list[Publish] = []
        self.filters: list[Filter] = []
        self.ended: list[str] = []

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def publish(self, message: Publish) -> None:
        self.published.append(message)

    def subscribe(self, filters: Any) -> None:
        self.filters += filters

    def unsubscribe(self, topics: Any) -> None:
        self.ended += topics


class Bench:
    """Core, store and a link that records; `crash` loses all that isn't in the store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = VirtualClock()
        self._processes = 0
        self.open()

    def open(self) -> None:
        self._processes += 1
        self.link = RecordingLink()
        self.store = fast_store(self.folder)
        self.core = Core(settings(self.folder), self.store, self.link, self.clock, self._processes)
        self.logic = self.core.logic

    def crash(self) -> None:
        self.store.close()
        self.open()

    def run(self, *jobs: Job) -> list[Publish]:
        """Do jobs, one batch; returns what was published."""
        before = len(self.link.published)
        self.core.work(jobs)
        while self.core.unsent:
            self.core.work([])
        return self.link.published[before:]

    def arrives(self, topic: str, payload: bytes, retained: bool = False) -> list[Publish]:
        return self.run(self.core.arrived(topic, payload, retained))

    def ask(self, operation: str, **fields: Any) -> dict[str, Any]:
        reply = ask(self.core, operation, **fields)
        self.run()
        return reply

    def pass_time(self, seconds: float) -> list[Publish]:
        self.clock.sleep(seconds)
        return self.run()

    # ---- what happens at a site ------------------------------------------------------

    def announce(self, *devices: str, retained: bool = False, **changes: Any) -> None:
        payload = announcement(**changes).encode()
        self.run(
            *(
                self.core.arrived(topics.announce(FLEET, device), payload, retained)
                for device in devices
            )
        )

    def status(
        self,
        device: str,
        state: DeviceState,
        reason: Reason = Reason.NONE,
        retained: bool = False,
    ) -> list[Publish]:
        payload = Status(state, reason, *KEY, 50).encode()
        return self.arrives(topics.status(FLEET, device), payload, retained)

    def start(self, **changes: Any) -> dict[str, Any]:
        names = changes.pop("names", ["a", "b", "c"])
        return self.ask("start", **start_fields(names, **changes))

    def chunk(self, device: str, delta: Delta, retained: bool = False) -> list[Publish]:
        return self.arrives(topics.delta(FLEET, GATEWAY, device), delta.encode(), retained)

    def send(self, device: str, deltas: list[Delta]) -> Receipt | None:
        """All chunks; returns the receipt that came of them."""
        published = [one for delta in deltas for one in self.chunk(device, delta)]
        return self.receipt_in(published, device)

    def receipt_in(self, published: list[Publish], device: str) -> Receipt | None:
        found = [one for one in published if one.topic == topics.receipt(FLEET, device)]
        # The chunk that completes a delta and the last one that comes may each bring one.
        assert len({one.payload for one in found}) <= 1
        assert all(one.qos == 0 and not one.retain for one in found)
        return Receipt.decode(found[0].payload) if found else None

    # ---- what came of it -------------------------------------------------------------

    @property
    def round(self) -> Round:
        return self.logic.rounds[KEY]

    def task(self, device: str) -> Task:
        return self.round.spec.task(device, len(BLOB), 0)

    def collect(self, **fields: Any) -> dict[str, Any]:
        return self.ask("collect", campaign=CAMPAIGN, round=1, **fields)

    def refused(self) -> dict[str, int]:
        reply = self.collect()
        counted = {**reply["refused"], "late": reply["late"], "duplicate": reply["duplicate"]}
        return {kind: n for kind, n in counted.items() if n}

    def closed(self) -> dict[str, Any]:
        """The answer once the round is over, at its deadline at the latest."""
        if self.round.open:
            self.pass_time(self.round.deadline - self.clock.monotonic())
        reply = self.collect()
        assert reply["state"] == "closed"
        return reply

    def sum(self, plan: str = PLAN, part: int = 0) -> NDArray[np.int64]:
        return np.frombuffer(self.closed()["sums"][plan][part]["values"], "<i8")
