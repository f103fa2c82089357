"""Runs a stored campaign over whatever carries messages to the gateways.

The driver is disposable: all it knows is in the store, so that a new one goes on where a
killed one was. It owns no socket and no Flower; `Transport` is its only seam.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
from fleet.coordinator.closing import close_round
from fleet.coordinator.scores import add_counts
from fleet.errors import AggregationError, CampaignError
from fleet.protocol.manifest import Manifest
from fleet.store import ENDED_STATES, RoundRecord, Store, SupersededError, WeightsVersion

logger = logging.getLogger(__name__)

_NAMED = 3
"""Tensors that a message names."""


@dataclass(frozen=True)
class Reply:
    """What came back: `answer` of a request, or an error.

    `devices` and `rounds` are those of a `hello`, where the gateway told them.
    """

    gateway: str
    answer: dict[str, Any]
    devices: list[dict[str, Any]] | None = None
    rounds: list[dict[str, Any]] | None = None
    error: str = ""


class Transport(ABC):
    """Carries requests to gateways. One request per gateway is under way at a time."""

    @abstractmethod
    def gateways(self) -> frozenset[str]:
        """Names of the gateways that have been reached."""

    @abstractmethod
    def send(self, gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        """Send a request; its reply comes from `receive`, an error where it can't be sent."""

    @abstractmethod
    def receive(self) -> list[Reply]:
        """What came since; waits a moment where nothing did. Also greets new gateways."""


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
    ) -> None:
        """Nothing is claimed or sent before `run`; `driver` is the name to claim under."""
        self._store = store
        self._campaign = campaign
        self._transport = transport
        self._pace = pace or Pace()
        self._driver = driver or uuid.uuid4().hex
        self._devices: dict[str, list[DeviceInfo]] = {}
        self._heard: dict[str, float] = {}
        self._counters: dict[int, dict[str, Mapping[str, Any]]] = {}
        self._stop_checked = 0.0
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
                    self._end("cancelled", "stopped by the operator")
                    return "cancelled"
            self._end("finished", "")
        except SupersededError as error:
            logger.warning("this driver ends: %s", error)
        except (CampaignError, AggregationError) as error:
            logger.error("campaign %s failed: %s", self._campaign, error)
            self._end("failed", str(error))
        return self._store.campaign(self._campaign).state

    def _end(self, state: str, reason: str) -> None:
        self._store.end_campaign(self._campaign, self._driver, state, reason)

    def _run_round(self, number: int, kind: RoundKind) -> bool:
        stored = {one.number: one for one in self._store.rounds(self._campaign)}
        if number in stored and stored[number].state != "running":
            return True
        self._check_for_empty_rounds(tuple(stored.values()))
        version = self._store.latest_weights(self._campaign)
        if number in stored:
            plan = RoundPlan.from_json(stored[number].plan)
            logger.info("resuming round %d", number)
        else:
            devices = self.wait_for_devices()
            if not devices:
                return False
            plan = plan_round(self._config, number, kind, devices, self._manifests, version.sha256)
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
            self._store.finish_round(
                self._campaign, self._driver, number, "cancelled", {}, [], None
            )
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

    def _check_for_empty_rounds(self, rounds: tuple[RoundRecord, ...]) -> None:
        trained = [one for one in rounds if one.kind == RoundKind.TRAIN.value]
        last = [one for one in trained if one.state == "done"][-self._config.max_empty_rounds :]
        if len(last) == self._config.max_empty_rounds and all(
            one.result.get("accepted") == 0 for one in last
        ):
            why = {key: last[-1].result.get(key) for key in ("refused", "declined", "lost")}
            raise CampaignError(
                f"no delta was accepted in {len(last)} rounds; the last one says {why}"
            )

    # Devices

    def wait_for_devices(self) -> list[DeviceInfo]:
        """What is known of devices, when enough can take part; empty where the user stops.

        Raises `CampaignError` where they aren't there in time.
        """
        deadline = time.monotonic() + self._config.wait_for_devices_seconds
        while True:
            devices = [one for known in self._devices.values() for one in known]
            ready, skipped = eligible(self._config, devices, self._manifests)
            if len(ready) >= self._config.min_devices:
                return devices
            if self._stopped():
                return []
            if time.monotonic() > deadline:
                why = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:5])
                raise CampaignError(
                    f"{len(ready)} of at least {self._config.min_devices} devices are ready "
                    f"after {self._config.wait_for_devices_seconds:.0f} s, at gateways "
                    f"{sorted(self._transport.gateways()) or 'none'} ({why or 'none announced'})"
                )
            now = time.monotonic()
            for gateway in self._transport.gateways():
                if now - self._heard.get(gateway, now) >= self._pace.hello:
                    self._heard[gateway] = now
                    self._transport.send(gateway, Operation.HELLO, {})
            self._receive()

    def _receive(self) -> list[Reply]:
        replies = self._transport.receive()
        for reply in replies:
            if reply.devices is not None:
                known = [DeviceInfo.from_hello(reply.gateway, one) for one in reply.devices]
                self._devices[reply.gateway] = known
                self._heard[reply.gateway] = time.monotonic()
                self._store.save_devices(self._campaign, {one.device: asdict(one) for one in known})
            if reply.rounds is not None:
                self._note_counters(reply.gateway, reply.rounds)
        return replies

    def _note_counters(self, gateway: str, rounds: Sequence[Mapping[str, Any]]) -> None:
        """Bring the results of rounds that are over up to date with what came late."""
        for one in rounds:
            if one["campaign"] != self._campaign:
                continue
            known = self._counters.setdefault(int(one["round"]), {})
            if known.get(gateway) == one:
                continue
            known[gateway] = one
            total = add_counts(known.values())
            if not self._store.raise_counters(
                self._campaign,
                self._driver,
                int(one["round"]),
                {name: total[name] for name in ("late", "duplicate", "refused")},
            ):
                del known[gateway]

    def _stopped(self, at_once: bool = False) -> bool:
        now = time.monotonic()
        if not at_once and now - self._stop_checked < self._pace.stop_check:
            return False
        self._stop_checked = now
        record = self._store.driver_lives(self._campaign, self._driver, time.time())
        return record.stop_requested

    # One round

    def _drive(self, plan: RoundPlan, blob: bytes) -> RoundOutcome:
        machine = RoundMachine(
            plan.gateways(),
            time.monotonic(),
            self._config.deadline_seconds,
            self._config.gateway_grace_seconds,
            self._pace.retry,
        )
        shown: dict[str, int] = {}
        key = {"campaign": self._campaign, "round": plan.number}
        while not machine.finished:
            for gateway, operation in machine.requests(time.monotonic()):
                fields: dict[str, Any] = key
                if operation is Operation.START:
                    fields = start_request(
                        self._config, self._campaign, plan, gateway, self._manifests, blob
                    )
                self._transport.send(gateway, operation, fields)
            if machine.finished:
                break
            for reply in self._receive():
                if reply.gateway not in plan.gateways() or not (reply.answer or reply.error):
                    continue
                if reply.error:
                    logger.warning("gateway %s: %s", reply.gateway, reply.error)
                    machine.failed(reply.gateway, reply.error, time.monotonic())
                else:
                    machine.answered(reply.gateway, reply.answer, time.monotonic())
            if machine.accepted != shown:
                shown = machine.accepted
                self._store.note_progress(
                    self._campaign, self._driver, plan.number, {"accepted": shown}
                )
            if self._stopped():
                machine.stop(time.monotonic())
        return machine.outcome()


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
