"""Rounds as a coordinator runs them, and whether the sums are what the devices sent."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gateway.deltas import ANNOUNCED_SAMPLES, PLAN, WEIGHTS, WEIGHTS_DATA, Deltas
from benchmarks.gateway.site import Site, Usage
from fleet.errors import GatewayError
from fleet.protocol import ReceiptResult

CAMPAIGN = "00112233445566aa"
# As the coordinator asks.
HELLO_SECONDS = 3.0
COLLECT_WAIT_SECONDS = 2.0
PATIENCE_SECONDS = 600
DEADLINE_SECONDS = 1800
DOWN_SECONDS = 1.0


@dataclass
class Result:
    """What rounds have taken and brought."""

    deltas: int = 0
    seconds: float = 0.0
    usage: dict[str, Usage] = field(default_factory=dict)
    lost: int = 0
    """Deltas that a receipt says are counted and that aren't, or that never were."""
    doubled: int = 0
    late: int = 0
    duplicate: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    wrong_sums: int = 0
    """Rounds whose sum isn't, bit for bit, that of the deltas it says it has."""


class Coordinator:
    """Asks a gateway for rounds of all its devices."""

    def __init__(self, site: Site, deltas: Deltas) -> None:
        """Nothing is asked yet."""
        self._site = site
        self._deltas = deltas
        self._hello_cursor = 0
        self._hello_at = 0.0
        self._known = 0
        self.result = Result()

    def wait_for_devices(self) -> float:
        """Until all are connected and known; returns how long that took."""
        begun = time.monotonic()
        count = len(self._site.names)
        self._until(lambda: self._site.state().connected == count, "all devices are connected")
        while self._known < count:
            if time.monotonic() > begun + PATIENCE_SECONDS:
                raise SystemExit(f"the gateway knows {self._known} of {count} devices")
            self._hello()
        self._until(lambda: not self._site.state().busy, "all devices are at rest")
        return time.monotonic() - begun

    def _hello(self) -> None:
        more = True
        while more:
            reply = self._site.ask("hello", cursor=self._hello_cursor)
            self._hello_cursor, more = reply["cursor"], reply["more"]
            self._known += len(reply["devices"])
        self._hello_at = time.monotonic() + HELLO_SECONDS

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > end:
                raise SystemExit(f"waited {PATIENCE_SECONDS} s until {what}: {self._site.state()}")
            time.sleep(0.1)

    def run(self, round: int, kill: Callable[[], None] | None = None) -> None:
        """One round; ``kill`` is called once, when half of its deltas are counted."""
        site, result = self._site, self.result
        before, begun = site.usage(), time.monotonic()
        self._start(round)
        reply, reports = self._collect(round, kill)
        self._until(lambda: not site.state().busy, "every device has its receipt and is at rest")
        result.seconds += time.monotonic() - begun
        for process, usage in site.usage().items():
            spent = usage - before[process]
            result.usage[process] = result.usage.get(process, Usage()) + spent
        self._check(round, reply, reports)

    def _start(self, round: int) -> None:
        plan, weights = PLAN.hex(), WEIGHTS.hex()
        devices = {name: [round, 2 * ANNOUNCED_SAMPLES] for name in self._site.names}
        limit = [[self._site.values, 1 << 16]]
        reply = self._site.ask(
            "start",
            campaign=CAMPAIGN,
            round=round,
            action="train",
            blobs=[{"sha256": weights, "data": WEIGHTS_DATA}] if round == 1 else [],
            tasks=[{"plan": plan, "weights": weights, "devices": devices}],
            plans={plan: {"values": self._site.values, "bounds": limit}},
            epochs=1,
            learning_rate=0.01,
            seed=round,
            deadline_seconds=DEADLINE_SECONDS,
            target=len(self._site.names),
        )
        if reply["devices"]:
            raise SystemExit(f"not all devices get a task: {Counter(reply['devices'].values())}")

    def _collect(
        self, round: int, kill: Callable[[], None] | None
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Until it is closed; its last reply and all reports."""
        reports: list[dict[str, Any]] = []
        cursor = 0
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            wait = COLLECT_WAIT_SECONDS if kill is None else 0.0
            try:
                self._site.ask("watch", rounds=[[CAMPAIGN, round]], wait_seconds=wait)
                reply = self._site.ask("collect", campaign=CAMPAIGN, round=round, cursor=cursor)
                if time.monotonic() > self._hello_at:
                    self._hello()
            except GatewayError:
                time.sleep(0.2)
                continue
            cursor = reply["cursor"]
            reports += reply["reports"]
            if reply["state"] == "closed" and not reply["more"]:
                if kill is not None:
                    raise SystemExit(f"round {round} was over before anything could be killed")
                return reply, reports
            if kill is not None:
                if 2 * reply["accepted"] >= len(self._site.names):
                    kill()
                    kill = None
                else:
                    time.sleep(0.05)
        raise SystemExit(f"round {round} isn't closed after {PATIENCE_SECONDS} s: {reply}")

    def _check(self, round: int, reply: dict[str, Any], reports: list[dict[str, Any]]) -> None:
        result, names = self.result, self._site.names
        number = {name: index for index, name in enumerate(names)}
        counted = Counter(report["device"] for report in reports)
        told = {
            name
            for name, of in self._site.told(round).items()
            if of is not None and of.result == ReceiptResult.COUNTED
        }
        result.deltas += len(counted)
        result.lost += len(set(names) - counted.keys()) + len(told - counted.keys())
        result.doubled += counted.total() - len(counted)
        result.late += reply["late"]
        result.duplicate += reply["duplicate"]
        result.refused += Counter(reply["refused"])
        (part,) = reply["sums"][PLAN.hex()]
        values, weight = self._deltas.sum((number[name] for name in counted), round)
        wanted = {"values": values, "weight": weight, "devices": len(counted)}
        if part != wanted:
            result.wrong_sums += 1
            result.doubled += max(0, part["devices"] - len(counted))
            result.lost += max(0, len(counted) - part["devices"])


def kill_gateway(site: Site) -> None:
    """Kill it and start it again."""
    site.kill_gateway()
    time.sleep(DOWN_SECONDS)
    site.start_gateway()


def kill_broker(site: Site) -> None:
    """Kill it, and with it all that it has: it keeps nothing on disk. Start it again."""
    site.kill_broker()
    time.sleep(DOWN_SECONDS)
    site.broker.start()
