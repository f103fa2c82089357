"""Training rounds beside each other: a version whenever enough deltas have arrived.

Buffered asynchronous aggregation (FedBuff, arXiv 2106.06639). Each training step of the schedule
makes one version, and begins one round on the version before it, with the devices that are free.
Which parts of which rounds a version was made of is stored with it, and before the next is begun,
so that a driver that was killed counts nothing twice and leaves nothing out.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from fleet.campaign import OpenRound, RoundKind, RoundPlan, Step, Taken
from fleet.campaign.config import Asynchronous
from fleet.coordinator.blobs import Blobs
from fleet.coordinator.closing import close_round, next_weights, parts_of_gateway
from fleet.coordinator.membership import Membership
from fleet.coordinator.round_runner import Context, RoundRunner
from fleet.coordinator.transport import Reply
from fleet.store import Events, Part

logger = logging.getLogger(__name__)

Begin = Callable[[Step, Mapping[str, str], bool], RoundPlan | None]
"""Begins a step's round beside devices at work, waiting for others where it is told to; None where
there are none."""


@dataclass(frozen=True)
class _Open:
    """A round that runs, or of which something is left to take."""

    plan: RoundPlan
    machine: OpenRound
    blobs: Mapping[str, bytes]


class _Source(NamedTuple):
    """A round at a gateway."""

    of: _Open
    gateway: str

    @property
    def arrived(self) -> int:
        return self.of.machine.untaken(self.gateway)


class OpenTraining:
    """The asynchronous training of one campaign."""

    def __init__(
        self,
        context: Context,
        runner: RoundRunner,
        membership: Membership,
        blobs: Blobs,
        begin: Begin,
        is_stopped: Callable[[], bool],
    ) -> None:
        """Nothing is read or sent before the first `run`."""
        self._context = context
        self._runner = runner
        self._membership = membership
        self._blobs = blobs
        self._begin = begin
        self._is_stopped = is_stopped
        self._open: dict[int, _Open] | None = None

    def run(self, step: Step) -> bool:
        """Make a step's version, if it isn't there; False where the operator stopped the campaign.

        After a stage's last one no round is left open.
        """
        rounds = self._rounds()
        newest = self._context.store.latest_weights(self._context.campaign).version
        if newest < self._version(step) and not self._make(step):
            return False
        if step.training_round == self._context.config.rounds:
            self._close(rounds)
        return True

    @property
    def _settings(self) -> Asynchronous:
        settings = self._context.config.asynchronous
        assert settings is not None, "only asynchronous campaigns come here"
        return settings

    def _version(self, step: Step | RoundPlan) -> int:
        """Number of the version that a step makes; its round begins with the one before."""
        return step.stage * self._context.config.rounds + step.training_round

    # Rounds

    def _rounds(self) -> dict[int, _Open]:
        """Those that are open, of a driver before this one as well."""
        if self._open is None:
            self._open = {}
            store, campaign = self._context.store, self._context.campaign
            taken: dict[int, dict[str, Taken]] = {}
            for part in store.parts(campaign):
                taken.setdefault(part.round, {})[part.gateway] = Taken(part.part + 1, part.through)
            for one in store.round_summaries(campaign):
                if one.kind == RoundKind.TRAIN.value and one.state == "running":
                    plan = RoundPlan.from_json(store.round(campaign, one.number).plan)
                    self._add(plan, taken.get(one.number, {}))
            self._context.listener.on_round = self._hear
        return self._open

    def _add(self, plan: RoundPlan, taken: Mapping[str, Taken]) -> None:
        config = self._context.config
        machine = OpenRound(
            plan.gateways(),
            self._context.clock.monotonic(),
            plan.seconds(config.deadline_seconds),
            config.gateway_grace_seconds,
            self._context.pace.retry,
            taken,
        )
        self._rounds()[plan.number] = _Open(plan, machine, self._blobs.of(plan))

    def _is_begun(self, step: Step) -> bool:
        if step.number in self._rounds():
            return True
        summaries = self._context.store.round_summaries(self._context.campaign)
        return any(one.number == step.number for one in summaries)

    def _try_to_begin(self, step: Step) -> bool:
        waits = not any(one.machine.runs for one in self._rounds().values())
        plan = self._begin(step, self._busy(), waits)
        if plan is not None:
            self._add(plan, {})
        return plan is not None

    def _busy(self) -> dict[str, str]:
        """Devices that may be at work, with what for."""
        return {
            one.device: f"at work in round {number}"
            for number, of in self._rounds().items()
            for one in of.plan.assignments
            if of.machine.keeps(one.gateway, one.device)
        }

    # What gateways say

    def _hear(self, reply: Reply) -> None:
        assert reply.round is not None
        for found in self._rounds().values():
            if found.plan.on_wire == reply.round[1]:
                self._runner.hand_over(found.plan, found.machine, reply)

    def _go_on(self) -> None:
        """Ask, listen, and close the rounds of which nothing is left."""
        arrivals = self._arrivals()
        for one in self._rounds().values():
            self._runner.send(one.plan, one.machine, one.blobs, arrivals)
        self._context.listener.receive()
        for one in list(self._rounds().values()):
            self._runner.show(one.plan, one.machine)
            if one.machine.finished:
                self._finish(one)

    def _finish(self, one: _Open) -> None:
        context = self._context
        begun_with = context.store.weights(context.campaign, self._version(one.plan) - 1)
        result = close_round(
            context.store,
            context.campaign,
            context.driver,
            context.config,
            context.manifests,
            one.plan,
            one.machine.outcome(),
            begun_with,
        )
        context.traces.ended(one.plan, result)
        self._membership.note_failures(one.plan, result)
        del self._rounds()[one.plan.number]

    def _sources(self) -> list[_Source]:
        return [
            _Source(one, gateway)
            for _, one in sorted(self._rounds().items())
            for gateway in one.plan.gateways()
        ]

    def _arrivals(self) -> dict[str, int]:
        """How many deltas each gateway is to have before it tells: its share of what is missing."""
        arrived: Counter[str] = Counter()
        for source in self._sources():
            arrived[source.gateway] += source.arrived
        missing = self._settings.buffer - arrived.total()
        share = max(1, math.ceil(missing / max(1, len(arrived))))
        return {gateway: count + share for gateway, count in arrived.items()}

    # Versions

    def _make(self, step: Step) -> bool:
        is_begun = self._is_begun(step)
        asked: list[_Source] = []
        while not self._is_stopped():
            is_begun = is_begun or self._try_to_begin(step)
            self._go_on()
            if not asked:
                asked = self._enough()
                for source in asked:
                    source.of.machine.take(source.gateway, self._context.clock.monotonic())
                is_over = is_begun and not any(one.machine.runs for one in self._rounds().values())
                if is_over and not asked:
                    self._store_version([])
                    return True
            elif not any(one.of.machine.is_asked(one.gateway) for one in asked):
                told = [one for one in asked if one.of.machine.taken(one.gateway) is not None]
                asked = []
                if told:
                    self._store_version(told)
                    return True
        return False

    def _enough(self) -> list[_Source]:
        """Whom to ask for what has arrived; nobody where that is too little and more may come."""
        now = self._context.clock.monotonic()
        found = [
            source
            for source in self._sources()
            if source.arrived and source.of.machine.is_free(source.gateway, now)
        ]
        if sum(source.arrived for source in found) >= self._settings.buffer:
            return found
        return [] if any(one.machine.runs for one in self._rounds().values()) else found

    def _store_version(self, told: list[_Source]) -> None:
        """Make the next version of parts that gateways have told."""
        context = self._context
        before = context.store.latest_weights(context.campaign)
        sums, parts = [], []
        staleness: Counter[int] = Counter()
        for of, gateway in told:
            answer = of.machine.taken(gateway)
            assert answer is not None
            assert answer.part is not None
            behind = before.version - (self._version(of.plan) - 1)
            staleness[behind] += answer.accepted
            parts.append(Part(of.plan.number, gateway, answer.part, answer.through))
            scale = self._settings.scale(behind)
            if scale:
                (found,) = parts_of_gateway(
                    context.config, context.manifests, of.plan, gateway, answer
                )
                sums += [replace(one, scale=scale) for one in found]
        made = {"version": before.version + 1, "deltas": staleness.total()}
        with context.traces.applying({of.plan.number for of, _ in told}, made):
            new = next_weights(context.config, context.manifests, [sums], before)
            context.store.make_version(context.campaign, context.driver, new, parts)
        for of, gateway in told:
            of.machine.keep(gateway)
        data = {
            "version": new.version,
            "deltas": staleness.total(),
            "staleness": {str(behind): count for behind, count in sorted(staleness.items())},
        }
        Events(context.store).add("version", context.campaign, data)
        about = {"campaign": context.campaign}
        logger.info("version %(version)d of %(deltas)d deltas", data, extra=about)

    def _close(self, rounds: Mapping[int, _Open]) -> None:
        """End the rounds that are open; what devices still bring is late."""
        for one in rounds.values():
            one.machine.stop(self._context.clock.monotonic())
        while rounds:
            self._is_stopped()  # says that the driver lives; a stop changes nothing here
            self._go_on()
