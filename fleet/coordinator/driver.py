"""Runs a stored campaign over whatever carries messages to the gateways.

The driver is disposable: all it knows is in the store, so that a new one goes on where a
killed one was. It owns no socket and no Flower; `Transport` and `Clock` are its only seams.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fleet.aggregation import master_from_blob
from fleet.campaign import (
    CampaignConfig,
    DeviceInfo,
    Operation,
    RoundKind,
    RoundMachine,
    RoundOutcome,
    RoundPlan,
    eligible,
    plan_round,
    schedule,
    start_request,
)
from fleet.campaign.answers import RoundCounters
from fleet.clock import Clock, SystemClock
from fleet.coordinator.closing import close_round, parts_of_gateway
from fleet.coordinator.scores import add_counts
from fleet.coordinator.transport import Reply, Transport
from fleet.errors import AggregationError, AnswerError, CampaignError
from fleet.protocol.manifest import Manifest
from fleet.store import ENDED_STATES, Store, SupersededError, WeightsVersion

logger = logging.getLogger(__name__)

_NAMED = 3
"""Tensors that a message names."""


@dataclass(frozen=True)
class Pace:
    """Waiting times of the driver, in seconds."""

    stop_check: float = 2.0
    retry: float = 2.0
    hello: float = 3.0


class CampaignDriver:
    """Drives one campaign to its end, or until somebody else takes it over."""

    def __init__(
        self,
        store: Store,
        campaign: str,
        transport: Transport,
        pace: Pace | None = None,
        driver: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Nothing is claimed or sent before `run`; `driver` is the name to claim under."""
        self._store = store
        self._campaign = campaign
        self._transport = transport
        self._pace = pace or Pace()
        self._driver = driver or uuid.uuid4().hex
        self._clock = clock or SystemClock()
        self._devices: dict[str, dict[str, DeviceInfo]] = {}
        self._heard: dict[str, float] = {}
        self._quarantined: dict[str, str] = dict(store.quarantined(campaign))
        self._counters: dict[int, dict[str, RoundCounters]] = {}
        self._stop_checked = float("-inf")
        record = store.campaign(campaign)
        self._config = CampaignConfig.parse(record.config)
        self._manifests = {
            bundle: Manifest.parse(text, f"manifest of bundle {bundle[:16]}")
            for bundle, text in store.manifests(campaign).items()
        }

    def run(self) -> str:
        """Run all rounds that the store doesn't have yet; returns the campaign's state.

        A campaign that can't go on ends as `failed` with its reason in the store.
        """
        record = self._store.claim(self._campaign, self._driver)
        if record.state in ENDED_STATES:
            return record.state
        try:
            for number, kind in schedule(self._config):
                if self._stopped(at_once=True) or not self._run_round(number, kind):
                    self._cancel_rounds()
                    self._end("cancelled", "stopped by the operator")
                    return "cancelled"
            self._end("finished", "")
        except SupersededError as error:
            logger.warning("this driver ends: %s", error)
        except (CampaignError, AggregationError) as error:
            logger.error("campaign %s failed: %s", self._campaign, error)
            self._cancel_rounds()
            self._end("failed", str(error))
        return self._store.campaign(self._campaign).state

    def _end(self, state: str, reason: str) -> None:
        self._store.end_campaign(self._campaign, self._driver, state, reason)

    def _cancel_rounds(self) -> None:
        """Let no round go on that nobody will collect, also one of a driver that was killed."""
        for one in self._store.round_summaries(self._campaign):
            if one.state == "running":
                plan = RoundPlan.from_json(self._store.round(self._campaign, one.number).plan)
                self._drive(plan, b"", cancel=True)
                self._store_cancelled(one.number)

    def _store_cancelled(self, number: int) -> None:
        self._store.finish_round(self._campaign, self._driver, number, "cancelled", {}, [], None)

    def _run_round(self, number: int, kind: RoundKind) -> bool:
        """Run a round that hasn't ended; False where the operator stopped the campaign."""
        known = {one.number: one.state for one in self._store.round_summaries(self._campaign)}
        state = known.get(number)
        if state not in (None, "running"):
            return True
        version = self._store.latest_weights(self._campaign)
        if state == "running":
            plan = RoundPlan.from_json(self._store.round(self._campaign, number).plan)
            logger.info("resuming round %d", number)
        else:
            self._check_for_empty_rounds()
            devices = self.wait_for_devices()
            if not devices:
                return False
            plan = self.plan_round(number, kind, devices, version.sha256)
            record = self._store.begin_round(
                self._campaign, self._driver, number, kind.value, plan.to_json()
            )
            plan = RoundPlan.from_json(record.plan)
        if plan.weights != version.sha256:
            raise CampaignError(
                f"round {number} was begun with weights {plan.weights[:16]}… but the newest "
                f"version is {version.sha256[:16]}…: the store was changed by hand"
            )
        outcome = self._drive(plan, version.blob)
        if outcome.cancelled:
            self._store_cancelled(number)
            return False
        close_round(
            self._store,
            self._campaign,
            self._driver,
            self._config,
            self._manifests,
            plan,
            outcome,
            version,
        )
        return True

    def plan_round(
        self, number: int, kind: RoundKind, devices: Sequence[DeviceInfo], weights: str
    ) -> RoundPlan:
        """The next round over those of `devices` that this campaign may lease."""
        ready, _ = eligible(self._config, devices, self._manifests)
        seen = {one.device: one.lease for one in devices if one.device in ready}
        leases = self._store.take_leases(self._campaign, self._driver, seen)
        mine = {
            device: lease.number
            for device, lease in leases.items()
            if lease.campaign == self._campaign
        }
        return plan_round(self._config, number, kind, devices, self._manifests, weights, mine)

    def _check_for_empty_rounds(self) -> None:
        trained = [
            one
            for one in self._store.round_summaries(self._campaign)
            if one.kind == RoundKind.TRAIN.value and one.state == "done"
        ]
        last = trained[-self._config.max_empty_rounds :]
        if len(last) == self._config.max_empty_rounds and not any(one.accepted for one in last):
            result = self._store.round(self._campaign, last[-1].number).result
            why = {key: result.get(key) for key in ("refused", "declined", "lost", "not_started")}
            raise CampaignError(
                f"no delta was accepted in {len(last)} rounds; the last one says {why}"
            )

    # Devices

    def wait_for_devices(self) -> list[DeviceInfo]:
        """What is known of devices, when enough can take part; empty where the user stops.

        Raises `CampaignError` where they aren't there in time.
        """
        deadline = self._clock.monotonic() + self._config.wait_for_devices_seconds
        while True:
            devices = [one for known in self._devices.values() for one in known.values()]
            ready, skipped = eligible(self._config, devices, self._manifests)
            if len(ready) >= self._config.min_devices:
                return devices
            if self._stopped():
                return []
            now = self._clock.monotonic()
            if now > deadline:
                raise self._too_few(len(ready), skipped)
            for gateway in self._transport.gateways() - self._quarantined.keys():
                if now - self._heard.get(gateway, now) >= self._pace.hello:
                    self._heard[gateway] = now
                    self._transport.send(gateway, Operation.HELLO, {})
            self._receive()

    def _too_few(self, ready: int, skipped: Mapping[str, str]) -> CampaignError:
        whys = [f"{name}: {why}" for name, why in list(skipped.items())[:5]]
        whys += [f"gateway {name}: {why}" for name, why in self._quarantined.items()]
        return CampaignError(
            f"{ready} of at least {self._config.min_devices} devices are ready "
            f"after {self._config.wait_for_devices_seconds:.0f} s, at gateways "
            f"{sorted(self._transport.gateways()) or 'none'} "
            f"({'; '.join(whys) or 'none announced'})"
        )

    def _receive(self) -> list[Reply]:
        """Replies of gateways that aren't in quarantine; what devices there are is noted."""
        usable = []
        for reply in self._transport.receive():
            if reply.is_odd:
                self._quarantine(reply.gateway, reply.error)
            if reply.gateway in self._quarantined:
                continue
            usable.append(reply)
            if reply.hello is not None:
                self._heard[reply.gateway] = self._clock.monotonic()
                known = self._devices.setdefault(reply.gateway, {})
                changed = {
                    one.device: DeviceInfo(gateway=reply.gateway, **dict(one))
                    for one in reply.hello.devices
                }
                known.update(changed)
                if changed:
                    self._store.save_devices(
                        self._campaign, {name: dict(one) for name, one in changed.items()}
                    )
                self._note_counters(reply.gateway, reply.hello.rounds)
        return usable

    def _quarantine(self, gateway: str, reason: str) -> None:
        """Go on without a gateway whose answers can't be used, in this campaign."""
        if gateway not in self._quarantined:
            logger.error("gateway %s is in quarantine from now on: %s", gateway, reason)
            self._store.quarantine(self._campaign, self._driver, gateway, reason)
            self._quarantined[gateway] = reason
            self._devices.pop(gateway, None)

    def _note_counters(self, gateway: str, rounds: Sequence[RoundCounters]) -> None:
        """Bring the results of rounds that are over up to date with what came late."""
        for one in rounds:
            if one.campaign != self._campaign:
                continue
            known = self._counters.setdefault(one.round, {})
            if known.get(gateway) == one:
                continue
            known[gateway] = one
            total = add_counts(dict(counters) for counters in known.values())
            if not self._store.raise_counters(
                self._campaign,
                self._driver,
                one.round,
                {name: total[name] for name in ("late", "duplicate", "refused")},
            ):
                del known[gateway]

    def _stopped(self, at_once: bool = False) -> bool:
        now = self._clock.monotonic()
        if not at_once and now - self._stop_checked < self._pace.stop_check:
            return False
        self._stop_checked = now
        record = self._store.driver_lives(self._campaign, self._driver, self._clock.wall())
        return record.stop_requested

    # One round

    def _drive(self, plan: RoundPlan, blob: bytes, cancel: bool = False) -> RoundOutcome:
        """Run a stored round to its end, or cancel it at all its gateways."""
        clock = self._clock
        machine = RoundMachine(
            plan.gateways(),
            clock.monotonic(),
            self._config.deadline_seconds,
            self._config.gateway_grace_seconds,
            self._pace.retry,
        )
        if cancel:
            machine.stop(clock.monotonic())
        shown = 0
        while True:
            for gateway in plan.gateways():
                if gateway in self._quarantined:
                    machine.give_up(gateway, self._quarantined[gateway])
            for gateway, operation in machine.requests(clock.monotonic()):
                self._transport.send(
                    gateway, operation, self._fields(plan, gateway, operation, machine, blob)
                )
            if machine.finished:
                return machine.outcome()
            for reply in self._receive():
                if reply.gateway in plan.gateways():
                    self._tell(machine, plan, reply)
            accepted = sum(machine.accepted.values())
            if accepted != shown:
                shown = accepted
                self._store.note_progress(self._campaign, self._driver, plan.number, accepted)
            if self._stopped():
                machine.stop(clock.monotonic())

    def _fields(
        self,
        plan: RoundPlan,
        gateway: str,
        operation: Operation,
        machine: RoundMachine,
        blob: bytes,
    ) -> dict[str, Any]:
        if operation is Operation.START:
            return start_request(self._config, self._campaign, plan, gateway, self._manifests, blob)
        key = {"campaign": self._campaign, "round": plan.number}
        if operation is Operation.COLLECT:
            return {**key, "cursor": machine.cursor(gateway)}
        return key

    def _tell(self, machine: RoundMachine, plan: RoundPlan, reply: Reply) -> None:
        """Hand a gateway's reply to the round; what can't be its round's puts it in quarantine."""
        now = self._clock.monotonic()
        if reply.error:
            logger.warning("gateway %s: %s", reply.gateway, reply.error)
            machine.failed(reply.gateway, reply.error, now)
        if reply.started is not None:
            machine.started(reply.gateway, reply.started, now)
        if reply.cancelled is not None:
            machine.cancelled(reply.gateway, reply.cancelled, now)
        if reply.collected is not None:
            machine.collected(reply.gateway, reply.collected, now)
            answer = machine.answer(reply.gateway)
            if answer is not None:
                try:
                    parts_of_gateway(self._config, self._manifests, plan, reply.gateway, answer)
                except AnswerError as error:
                    machine.reject(reply.gateway, str(error))
                    self._quarantine(reply.gateway, str(error))


def new_campaign(
    store: Store, config: CampaignConfig, manifests: Mapping[str, str], blob: bytes
) -> str:
    """Store a new campaign over bundles of one model; returns its id (16 hex digits).

    `manifests` are the bundles' manifest.json texts in any keys, `blob` their weights.
    Raises `CampaignError` where the bundles don't hold the same model and weights, or a
    plan that the configuration names is in none of them.
    """
    parsed = [Manifest.parse(text, f"manifest of {name}") for name, text in manifests.items()]
    if not parsed:
        raise CampaignError("a campaign needs at least one bundle")
    digest = hashlib.sha256(blob).hexdigest()
    for one in parsed:
        _check_published(one, parsed[0])
        if one.model.digest != parsed[0].model.digest:
            raise CampaignError(
                f"bundles {one.bundle_id[:16]} and {parsed[0].bundle_id[:16]} are of different "
                f"models ({one.model.digest[:16]}… and {parsed[0].model.digest[:16]}…): weights of "
                "one mean something else to the other, be it for the values of tensors that are "
                "frozen; compile them from one model with the same calibration"
            )
        if one.tensors != parsed[0].tensors:
            raise CampaignError(
                f"bundles {one.bundle_id[:16]} and {parsed[0].bundle_id[:16]} hold different "
                "tensors: compile them with one version of tinyfleet"
            )
        if one.weights.sha256 != digest:
            raise CampaignError(
                f"bundle {one.bundle_id[:16]} was built with weights {one.weights.sha256[:16]}…, "
                f"not {digest[:16]}…: compile all bundles from one model"
            )
    known = {name for one in parsed for plan in one.plans for name in (plan.id, plan.name)}
    for name in config.plans:
        if name not in known:
            raise CampaignError(f"no bundle has a plan {name}; they have {sorted(known)}")
    campaign = uuid.uuid4().hex[:16]
    master = master_from_blob(parsed[0].tensors, blob)
    store.create_campaign(
        campaign,
        config.model_dump_json(),
        {one.bundle_id: text for one, text in zip(parsed, manifests.values(), strict=True)},
        WeightsVersion(0, digest, blob, master.astype("<f8").tobytes()),
    )
    return campaign


def _check_published(one: Manifest, other: Manifest) -> None:
    """Raises `CampaignError` where a version of one bundle's weights isn't all of the other's."""
    tensors = {tensor.name for tensor in one.tensors}
    others = {tensor.name for tensor in other.tensors}
    for has, lacks, extra in ((one, other, tensors - others), (other, one, others - tensors)):
        if not extra:
            continue
        named = ", ".join(sorted(extra)[:_NAMED])
        if len(extra) > _NAMED:
            named += f" and {len(extra) - _NAMED} more"
        raise CampaignError(
            f"bundle {has.bundle_id[:16]} publishes {named}, which bundle {lacks.bundle_id[:16]} "
            "has frozen: compile both with the same plans, or name plans that only other boards "
            "have with --publish"
        )
