"""Brings a stored round to its end: what its machine wants goes out, what gateways say goes in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fleet.campaign import (
    CampaignConfig,
    OpenRound,
    Operation,
    RoundMachine,
    RoundOutcome,
    RoundPlan,
    start_request,
)
from fleet.clock import Clock
from fleet.coordinator.closing import check_answer
from fleet.coordinator.listener import Listener
from fleet.coordinator.pace import Pace
from fleet.coordinator.progress import progress_of
from fleet.coordinator.traces import CampaignTraces
from fleet.coordinator.transport import Reply, Transport
from fleet.errors import AnswerError
from fleet.protocol.keys import TaskKeys
from fleet.protocol.manifest import Manifest
from fleet.store import SqlStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Context:
    """What rounds of one campaign are run with; `driver` is the name that it was claimed under."""

    store: SqlStore
    campaign: str
    driver: str
    config: CampaignConfig
    manifests: Mapping[str, Manifest]
    transport: Transport
    listener: Listener
    clock: Clock
    pace: Pace
    traces: CampaignTraces
    keys: TaskKeys | None = None
    """What tasks are signed with."""


class RoundRunner:
    """Runs rounds of one campaign."""

    def __init__(self, context: Context) -> None:
        """Nothing is sent yet."""
        self._context = context
        self._shown: dict[int, tuple[int, int]] = {}

    def run(
        self,
        plan: RoundPlan,
        blobs: Mapping[str, bytes],
        is_stopped: Callable[[], bool],
        cancel: bool = False,
    ) -> RoundOutcome:
        """Run a stored round to its end, or cancel it at all its gateways."""
        machine = RoundMachine(
            plan.gateways(),
            self._context.clock.monotonic(),
            plan.seconds(self._context.config.deadline_seconds),
            self._context.config.gateway_grace_seconds,
            self._context.pace.retry,
        )
        if cancel:
            machine.stop(self._context.clock.monotonic())
        while True:
            self.send(plan, machine, blobs)
            if machine.finished:
                return machine.outcome()
            for reply in self._context.listener.receive():
                if reply.round == (self._context.campaign, plan.on_wire):
                    self.hand_over(plan, machine, reply)
            self.show(plan, machine)
            if is_stopped():
                machine.stop(self._context.clock.monotonic())

    def send(
        self,
        plan: RoundPlan,
        machine: RoundMachine,
        blobs: Mapping[str, bytes],
        arrivals: Mapping[str, int] | None = None,
    ) -> None:
        """Send what is due; `arrivals`: of how many deltas of the campaign a gateway is to tell."""
        for gateway in plan.gateways():
            if gateway in self._context.listener.quarantined:
                machine.give_up(gateway, self._context.listener.quarantined[gateway])
        for gateway, operation in machine.requests(self._context.clock.monotonic()):
            fields: dict[str, Any] = {"campaign": self._context.campaign, "round": plan.on_wire}
            if operation is Operation.START:
                fields = start_request(
                    self._context.config,
                    self._context.campaign,
                    plan,
                    gateway,
                    self._context.manifests,
                    blobs,
                    self._context.keys,
                )
            elif operation is Operation.COLLECT:
                fields["cursor"] = machine.cursor(gateway)
                part = machine.part(gateway) if isinstance(machine, OpenRound) else None
                if part is not None:
                    fields["part"] = part
                elif arrivals is not None:
                    fields["arrivals"] = arrivals[gateway]
            if operation is not Operation.CANCEL and (
                traceparent := self._context.traces.asks(plan.number, gateway)
            ):
                fields["traceparent"] = traceparent
            self._context.transport.send(gateway, operation, fields)

    def show(self, plan: RoundPlan, machine: RoundMachine) -> None:
        """Let onlookers see what has come."""
        accepted = sum(machine.accepted.values())
        came = (accepted, sum(sum(one.declined.values()) for one in machine.told))
        if came != self._shown.get(plan.number, (0, 0)):
            self._shown[plan.number] = came
            self._context.store.note_progress(
                self._context.campaign,
                self._context.driver,
                plan.number,
                accepted,
                progress_of(plan, machine),
            )

    def hand_over(self, plan: RoundPlan, machine: RoundMachine, reply: Reply) -> None:
        """Hand a gateway's reply to its round; one that can't be right puts it in quarantine."""
        now = self._context.clock.monotonic()
        self._context.traces.hears(plan.number, reply.gateway)
        if reply.error:
            about = {
                "campaign": self._context.campaign,
                "round": plan.number,
                "gateway": reply.gateway,
            }
            logger.warning("gateway %s: %s", reply.gateway, reply.error, extra=about)
            machine.failed(reply.gateway, reply.error, now)
        if reply.started is not None:
            machine.started(reply.gateway, reply.started, now)
        if reply.cancelled is not None:
            machine.cancelled(reply.gateway, reply.cancelled, now)
        if reply.collected is not None:
            machine.collected(reply.gateway, reply.collected, now)
            answer = (
                machine.taken(reply.gateway)
                if isinstance(machine, OpenRound)
                else machine.answer(reply.gateway)
            )
            if answer is not None:
                try:
                    check_answer(
                        self._context.config, self._context.manifests, plan, reply.gateway, answer
                    )
                except AnswerError as error:
                    machine.reject(reply.gateway, str(error))
                    self._context.listener.quarantine(reply.gateway, str(error))
