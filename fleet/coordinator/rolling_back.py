"""The way back: devices of a campaign get the weights that they had before it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from fleet.campaign import Members, Operation, RoundKind, RoundOutcome, RoundPlan, Step
from fleet.coordinator.blobs import Blobs
from fleet.coordinator.membership import Membership
from fleet.coordinator.round_runner import Context, RoundRunner
from fleet.errors import CampaignError
from fleet.store import RoundSummary, WeightsVersion

logger = logging.getLogger(__name__)

ROLL_BACK_ROUNDS = 3
"""So often devices are asked to go back; each time waits for a round's deadline."""
MOST_NAMED = 5
"""Devices in a reason; of more there is the number."""


class _Plan(Protocol):
    def __call__(self, step: Step, weights: str, members: Members) -> RoundPlan: ...


class RoundSteps(NamedTuple):
    """What is done about a round, by whoever drives the campaign."""

    begun: Callable[[], Mapping[int, RoundSummary]]
    """The rounds that there are."""
    plan: _Plan
    begin: Callable[[RoundPlan], RoundPlan]
    close: Callable[[RoundPlan, RoundOutcome, WeightsVersion], None]
    cancel: Callable[[RoundPlan], None]


class RollingBack:
    """Rolls one campaign back."""

    def __init__(
        self,
        context: Context,
        runner: RoundRunner,
        membership: Membership,
        blobs: Blobs,
        steps: RoundSteps,
        is_stopped: Callable[[], bool],
        idle: Callable[[], None],
    ) -> None:
        """Nothing is sent before `run`; `idle` lets some time pass."""
        self._context = context
        self._runner = runner
        self._membership = membership
        self._blobs = blobs
        self._steps = steps
        self._is_stopped = is_stopped
        self._idle = idle

    def run(self) -> str:
        """Ask devices to go back; what to say of those that couldn't be reached, if any."""
        self._wait_for_released()
        for _ in range(ROLL_BACK_ROUNDS):
            if not self._round():
                break
        missing = sorted(self._membership.to_roll_back(self._context.listener.devices()))
        if not missing:
            return ""
        named = ", ".join(missing[:MOST_NAMED]) + (", …" if len(missing) > MOST_NAMED else "")
        return f"; {len(missing)} devices couldn't be reached to go back: {named}"

    def _wait_for_released(self) -> None:
        """A driver that has just begun doesn't know yet what devices have."""
        listener, transport = self._context.listener, self._context.transport
        end = self._context.clock.monotonic() + self._context.config.wait_for_devices_seconds
        released, asked = self._membership.released(), set(listener.quarantined)
        while not self._is_stopped() and self._context.clock.monotonic() < end:
            if released <= {one.device for one in listener.devices()}:
                return
            for gateway in transport.gateways() - asked:
                asked.add(gateway)
                transport.send(gateway, Operation.HELLO, {})
            listener.receive()

    def _round(self) -> bool:
        """One round of it; False where nobody is left, or nobody can be reached."""
        store, campaign = self._context.store, self._context.campaign
        version = store.weights(campaign, 0)
        running = [
            one.number
            for one in self._steps.begun().values()
            if one.state == "running" and one.kind == RoundKind.ROLL_BACK.value
        ]
        if running:
            plan = RoundPlan.from_json(store.round(campaign, running[0]).plan)
        else:
            planned = self._plan(version.sha256)
            if planned is None:
                return False
            plan = self._steps.begin(planned)
        outcome = self._runner.run(plan, self._blobs.of(plan), self._is_stopped)
        if outcome.cancelled:
            self._steps.cancel(plan)
            return False
        self._steps.close(plan, outcome, version)
        self._context.listener.hear_news(self._context.pace.news)
        return True

    def _plan(self, weights: str) -> RoundPlan | None:
        """Who goes back next; those that other campaigns have, or that are away, are waited for."""
        listener, config = self._context.listener, self._context.config
        deadline = self._context.clock.monotonic() + config.wait_for_devices_seconds
        listener.hear_news(self._context.pace.news)
        step = Step(
            1 + max(self._steps.begun(), default=0), RoundKind.ROLL_BACK, len(config.stages) - 1
        )
        while True:
            back = self._membership.to_roll_back(listener.devices())
            there = {one for one in set(back.values()) if self._blobs.has(one)}
            back = {name: before for name, before in back.items() if before in there}
            if not back:
                return None
            try:
                return self._steps.plan(step, weights, Members(frozenset(back), back))
            except CampaignError as error:
                if self._is_stopped() or self._context.clock.monotonic() > deadline:
                    about = {"campaign": self._context.campaign, "round": step.number}
                    logger.warning("campaign %s: %s", self._context.campaign, error, extra=about)
                    return None
            self._idle()
