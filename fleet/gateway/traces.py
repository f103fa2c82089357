"""A gateway's spans of a round (docs/howto/traces.md), made of the actions that are done.

    gateway.round      from the round's start to its end here
    ├── publish        until the last task is at the broker
    ├── deltas         from the first delta in a sum to the last
    └── device         of a few devices: from the task to the receipt
        ├── task       until the delta begins to come: the device fetches, trains and sends
        ├── delta      until all of it is there and stored
        └── receipt    until the receipt is at the broker
    sum                the coordinator asks for the sums

All is written at the round's end, below the span that the coordinator has named by then: a gateway
that was killed goes on with the round, and hears of that span with the next message about it.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fleet.clock import Clock
from fleet.gateway import actions as act
from fleet.gateway.actions import Action
from fleet.gateway.round_logic import KEPT_ROUNDS
from fleet.gateway.rounds import Report, Round, RoundKey, RoundSpec
from fleet.tracing import Place, Span, Traces, read_traceparent

_RECEIPT = "/receipt"


@dataclass
class _Device:
    task: float
    delta: float | None = None
    accepted: float | None = None
    receipt: float | None = None
    report: Report | None = None


@dataclass
class _Round:
    """What was seen of a round; times are Unix time."""

    begin: float
    asked: int
    devices: dict[str, _Device]
    is_resumed: bool
    tasks: int = 0
    published: float = 0.0
    accepted: int = 0
    first: float = 0.0
    last: float = 0.0
    refused: int = 0
    state: str = ""
    end: float = 0.0
    waiting: dict[str, _Device] = field(default_factory=dict)
    """Of the devices, those whose receipt is still to go out."""


class GatewayTraces:
    """Watches a gateway's core; for any thread."""

    def __init__(self, traces: Traces, gateway: str, devices: int, clock: Clock) -> None:
        """`devices`: of so many of a round there are spans."""
        self._traces = traces
        self._gateway = gateway
        self._sampled = devices
        self._clock = clock
        self._lock = threading.Lock()
        self._rounds: dict[RoundKey, _Round] = {}
        self._parents: dict[RoundKey, Place | None] = {}

    # ---- what happens ----------------------------------------------------------------

    def resume(self, rounds: Iterable[Round], now: float, since: float) -> None:
        """Rounds of a process before this one go on; `now` is on their clock, `since` the same
        moment in Unix time."""
        for one in rounds:
            if one.open:
                begin = since - (now - (one.deadline - one.spec.seconds))
                self._begin(one.spec, begin, is_resumed=True)

    def watch(self, action: Action) -> None:
        """An action is done; see `Core`."""
        match action:
            case act.SaveRound():
                self._begin(action.spec, action.started)
            case act.PublishTask(key, device):
                self._task(key, device)
            case act.KeepChunk(key, device):
                self._delta(key, device)
            case act.Accept():
                self._accept(action.key, action.report)
            case act.Publish() if action.topic.endswith(_RECEIPT):
                self._receipt(action.topic.split("/")[-2])
            case act.Count(key=RoundKey() as key):
                with self._lock:
                    if key in self._rounds:
                        self._rounds[key].refused += 1
            case act.SetState(key, state, now):
                with self._lock:
                    if key in self._rounds:
                        self._rounds[key].state, self._rounds[key].end = str(state), now

    def _begin(self, spec: RoundSpec, begin: float, is_resumed: bool = False) -> None:
        # The same whoever draws, so that a gateway that was killed goes on with them.
        dice = random.Random(f"{spec.key.campaign.hex()}/{spec.key.round}")
        few = dice.sample(sorted(spec.tasks), min(self._sampled, len(spec.tasks)))
        devices = {name: _Device(begin + spec.tasks[name].delay_seconds) for name in few}
        with self._lock:
            self._rounds[spec.key] = _Round(begin, len(spec.tasks), devices, is_resumed)
            while len(self._rounds) > KEPT_ROUNDS:
                del self._rounds[next(iter(self._rounds))]

    def _task(self, key: RoundKey, device: str) -> None:
        with self._lock:
            found = self._rounds.get(key)
            if found is None:
                return
            found.tasks += 1
            found.published = self._clock.wall()
            known = found.devices.get(device)
            if known is not None and known.delta is None and not found.is_resumed:
                known.task = found.published

    def _delta(self, key: RoundKey, device: str) -> None:
        with self._lock:
            found = self._rounds.get(key)
            known = found.devices.get(device) if found else None
            if known is not None and known.delta is None:
                known.delta = self._clock.wall()

    def _accept(self, key: RoundKey, report: Report) -> None:
        with self._lock:
            found = self._rounds.get(key)
            if found is None:
                return
            now = self._clock.wall()
            found.accepted += 1
            found.first, found.last = found.first or now, now
            known = found.devices.get(report.device)
            if known is not None:
                known.delta = known.delta or now
                known.accepted, known.report = now, report
                found.waiting[report.device] = known

    def _receipt(self, device: str) -> None:
        with self._lock:
            for found in self._rounds.values():
                known = found.waiting.pop(device, None)
                if known is not None:
                    known.receipt = self._clock.wall()

    def told(self, key: RoundKey, traceparent: str) -> None:
        """The coordinator says which span of its own a round belongs to."""
        parent = read_traceparent(traceparent)
        with self._lock:
            self._parents[key] = parent
            while len(self._parents) > 2 * KEPT_ROUNDS:
                del self._parents[next(iter(self._parents))]

    def summed(self, key: RoundKey, part: int | None, begin: float) -> None:
        """Sums that were asked for at `begin` (Unix time) have just been told."""
        with self._lock:
            parent = self._parents.get(key)
        if parent is not None:
            name = "" if part is None else str(part)
            about = {**self._about(key), **({} if part is None else {"part": part})}
            place = parent.below("sum", name, f"{begin:.6f}")
            self._traces.write(Span("sum", place, parent, begin, self._clock.wall(), about))

    # ---- what is written -------------------------------------------------------------

    def step(self) -> None:
        """Write the rounds that have ended and whose place is known; on the logic's thread, when a
        batch is done."""
        with self._lock:
            done = [
                (key, found, parent)
                for key, found in self._rounds.items()
                if found.state and (parent := self._parents.get(key)) is not None
            ]
            for key, _, _ in done:
                del self._rounds[key]
        for key, found, parent in done:
            for span in self._spans(key, found, parent):
                self._traces.write(span)

    def close(self) -> None:
        """Write what can be written, and send it."""
        self.step()
        self._traces.close()

    def _about(self, key: RoundKey) -> dict[str, Any]:
        return {**key.about, "gateway": self._gateway}

    def _spans(self, key: RoundKey, found: _Round, parent: Place) -> Iterable[Span]:
        mine, about = parent.below("gateway.round"), self._about(key)
        sent = [one.receipt for one in found.devices.values() if one.receipt is not None]
        whole = {
            **about,
            "state": found.state,
            "asked": found.asked,
            "accepted": found.accepted,
            "refused": found.refused,
            "resumed": found.is_resumed,
        }
        end = max([found.end, found.published, found.last, *sent])
        yield Span("gateway.round", mine, parent, found.begin, end, whole)
        if found.tasks and not found.is_resumed:
            tasks = {**about, "tasks": found.tasks}
            place = mine.below("publish")
            yield Span("publish", place, mine, found.begin, found.published, tasks)
        if found.accepted:
            deltas = {**about, "accepted": found.accepted}
            yield Span("deltas", mine.below("deltas"), mine, found.first, found.last, deltas)
        for name, one in sorted(found.devices.items()):
            yield from self._of_device(name, one, mine, about, found.end)

    def _of_device(
        self, name: str, one: _Device, mine: Place, about: dict[str, Any], ended: float
    ) -> Iterable[Span]:
        place, about = mine.below("device", name), {**about, "device": name}
        if one.delta is None or one.accepted is None or one.report is None:
            error = "no delta was accepted while this gateway watched"
            yield Span("device", place, mine, min(one.task, ended), ended, about, error)
            return
        end = one.receipt or one.accepted
        said = {"train_samples": one.report.train_samples, "train_steps": one.report.train_steps}
        size = {"payload_bytes": one.report.payload_bytes}
        yield Span("device", place, mine, one.task, end, {**about, **said, **size})
        steps = [("task", one.task, one.delta), ("delta", one.delta, one.accepted)]
        if one.receipt is not None:
            steps.append(("receipt", one.accepted, one.receipt))
        for step, begin, until in steps:
            yield Span(step, place.below(step), place, begin, until, about)
