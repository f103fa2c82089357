"""Whom a round asks: enough devices are waited for, leased, and told what the plan says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from fleet.campaign import (
    Members,
    RoundKind,
    RoundPlan,
    Step,
    eligible,
    hide,
    most_at_once,
    plan_round,
)
from fleet.coordinator.blobs import Blobs
from fleet.coordinator.key_holders import KeyHolders
from fleet.coordinator.membership import Membership
from fleet.coordinator.private_rounds import PrivateRounds
from fleet.coordinator.round_runner import Context
from fleet.errors import BudgetSpentError, CampaignError
from fleet.store import Gateways


class RoundPlanner:
    """Plans rounds of one campaign over the devices that there are."""

    def __init__(
        self,
        context: Context,
        membership: Membership,
        private: PrivateRounds,
        blobs: Blobs,
        holders: KeyHolders,
        is_stopped: Callable[[], bool],
    ) -> None:
        """`holders` know whom devices of a masked round seal for."""
        self._context = context
        self._membership = membership
        self._private = private
        self._blobs = blobs
        self._holders = holders
        self._is_stopped = is_stopped

    def wait_for_devices(self, step: Step) -> Members | None:
        """Who may take part in a step's round, when enough devices can; None where the user stops.

        One of its stage's can, too; where all of them wait to be asked again, that is waited for.
        Raises `CampaignError` where they aren't there in time, `BudgetSpentError` where they are,
        and too few have privacy left to spend.
        """
        context = self._context
        deadline = context.clock.monotonic() + context.config.wait_for_devices_seconds
        looked, is_news = float("-inf"), True
        while True:
            now = context.clock.monotonic()
            if is_news or now - looked >= context.pace.stop_check:
                looked = now
                devices = context.listener.devices()
                targets = self._membership.targets(devices)
                everybody = Members(frozenset(targets))
                ready, skipped = eligible(
                    context.config, targets.values(), context.manifests, everybody, step.kind
                )
                spent = self._private.spent(step, ready)
                least = context.config.least_ready(step.kind is RoundKind.TRAIN)
                if len(ready) >= least and self._private.are_enough(len(ready), len(spent)):
                    members = self._membership.of(step, targets, devices, self._blobs.has)
                    if members.names & ready.keys() - members.waiting.keys():
                        return members
                    if now > deadline and not self._membership.backs_off():
                        return members
                elif now > deadline:
                    if len(ready) >= least:
                        raise BudgetSpentError(step.number, len(ready) - len(spent), len(spent))
                    raise context.listener.too_few(context.config, least, len(ready), skipped)
            if self._is_stopped():
                return None
            context.listener.ask_for_news(context.pace.hello)
            is_news = any(one.hello is not None for one in context.listener.receive())

    def plan(
        self, step: Step, weights: str, members: Members, busy: Mapping[str, str] | None = None
    ) -> RoundPlan:
        """The next round over those of the members that this campaign may lease, and that aren't
        `busy`: with what is told of them."""
        context = self._context
        devices = context.listener.devices()
        ready, _ = eligible(context.config, devices, context.manifests, members, step.kind)
        room = None
        if busy:
            room = most_at_once(context.config, len(ready)) - len(busy)
            if room < 1:
                raise CampaignError(f"round {step.number}: {len(busy)} devices are at work")
            members = replace(members, waiting={**members.waiting, **busy})
        seen = {one.device: one.lease for one in devices if one.device in ready}
        leases = context.store.take_leases(context.campaign, context.driver, seen)
        mine = {name: of.number for name, of in leases.items() if of.campaign == context.campaign}
        # While they were waited for, whoever had them may have spent what they had left.
        spent = self._private.spent(step, mine)
        members = replace(members, waiting={**members.waiting, **spent})
        plan = plan_round(
            context.config,
            *(step.number, step.kind),
            devices,
            context.manifests,
            weights,
            mine,
            members,
            *(step.stage, step.training_round),
            Gateways(context.store).sites(),
            room,
            context.store.round_offset(),
        )
        plan = self._private.laid_on(plan)
        trains = step.kind is RoundKind.TRAIN
        keys = self._holders.sealed_for(context.config) if trains else ()
        return hide(context.config, plan, devices, context.manifests, keys, plan.protection)
