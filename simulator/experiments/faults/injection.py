"""Lets happen to a fleet what a schedule says; what befalls devices they know themselves."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fleet.errors import FleetError, UnmaskerError
from fleet.gateway.value_forms import ValueForm
from fleet.protocol import Coding, Delta, Task, delta_coding, topics
from fleet.protocol.manifest import Manifest
from fleet.protocol.mask_requests import MaskRequest, UnmaskerFacts
from fleet.protocol.masking import Words
from fleet.store import ENDED_STATES
from fleet.unmasker import Unmasker
from simulator.experiments.brokers import VirtualBroker
from simulator.experiments.faults.scene import BEFALLS_DEVICES, SITE, Scene
from simulator.experiments.faults.schedule import Fault
from simulator.experiments.faults.watch import Watch
from simulator.experiments.fleet import VirtualFleet
from simulator.experiments.gateways import Way
from simulator.experiments.setting import FLEET
from simulator.virtual.population import Population
from simulator.world.draws import generator

BACKHAUL_SECONDS = 0.05
LATE_SECONDS = 100.0
"""A copy of a request, or a late one, takes so long at most."""
RESTART_SECONDS = 2.0


class Coordinator:
    """Keeps a driver running for each campaign that hasn't ended, as a service does."""

    def __init__(self, fleet: VirtualFleet, watch: Watch) -> None:
        """Of ``fleet``; ``watch`` hears of each driver."""
        self._fleet, self._watch = fleet, watch
        self.ways: dict[str, Callable[[], Way]] = {}
        """How requests to gateways fare for now."""
        self._restart_at: dict[str, float] = {}

    def way(self, gateway: str) -> Way:
        """Of the next request."""
        made = self.ways.get(gateway)
        return made() if made else Way((BACKHAUL_SECONDS,), BACKHAUL_SECONDS)

    def start(self, campaign: str) -> None:
        """One more driver, whoever drives it now."""
        of = self._watch.drivers[campaign]
        name = f"driver-{campaign[-2:]}-{len(of) + 1}"
        of.append(self._fleet.start_driver(campaign, name, self.way))
        self._watch.tell(f"coordinator: {name} begins")

    def stays_down(self, campaign: str, seconds: float) -> None:
        """The next driver that is missing is started so much later."""
        self._restart_at[campaign] = self._fleet.clock.monotonic() + seconds

    def look(self) -> None:
        """Start what is missing."""
        now = self._fleet.clock.monotonic()
        for campaign, drivers in self._watch.drivers.items():
            for one in drivers:
                if one.error is not None and not isinstance(one.error, FleetError):
                    error = f"{type(one.error).__name__}: {one.error}"
                    self._watch.broken("no defect", f"{one.name} ends with {error}")
            if any(one.lives for one in drivers):
                continue
            if self._watch.record(campaign).state in ENDED_STATES:
                continue
            due = self._restart_at.setdefault(campaign, now + RESTART_SECONDS)
            if now >= due:
                del self._restart_at[campaign]
                self.start(campaign)


class MortalUnmasker:
    """An unmasker that is killed at some requests, before or after it has recorded their sets."""

    def __init__(self, inner: Unmasker) -> None:
        """It lives."""
        self._inner = inner
        self._requests, self._has_recorded = 0, False

    def dies(self, requests: int, has_recorded: bool) -> None:
        """At each of the next so many requests."""
        self._requests, self._has_recorded = requests, has_recorded

    def masks(self, request: MaskRequest) -> Words:
        """See `Unmasker`."""
        if self._requests:
            self._requests -= 1
            if self._has_recorded:
                self._inner.masks(request)
            raise UnmaskerError("the unmasker was killed")
        return self._inner.masks(request)

    def facts(self) -> UnmaskerFacts:
        """See `Unmasker`."""
        return self._inner.facts()


class Injection:
    """The faults of one seed."""

    def __init__(
        self,
        fleet: VirtualFleet,
        population: Population,
        scene: Scene,
        coordinator: Coordinator,
        watch: Watch,
    ) -> None:
        """Nothing happens yet."""
        self._fleet, self._scene, self._watch = fleet, scene, watch
        self._coordinator = coordinator
        self._broker: VirtualBroker = fleet.brokers[SITE]
        self._names = [population.world.device(one).name for one in population.numbers]
        self._manifest = Manifest.parse(scene.manifest)
        self._unmaskers = [MortalUnmasker(one) for one in fleet.protection.unmaskers.values()]
        keys = fleet.protection.unmaskers.keys()
        fleet.protection = replace(
            fleet.protection, unmaskers=dict(zip(keys, self._unmaskers, strict=True))
        )
        self._acts: dict[str, Callable[[Fault], None]] = {
            "flash bit flip": self._flash_bit_flip,
            "gateway killed": self._gateway_killed,
            "broker killed": lambda fault: self._broker.kill(fault.values["seconds"]),
            "driver killed": self._driver_killed,
            "second driver": lambda fault: self._on_campaign(fault, coordinator.start),
            "requests": self._requests,
            "unmasker killed": self._unmasker_killed,
            "wall clock": self._wall_clock,
            "forged": self._forged,
            "operator": self._operator,
        }

    def plan(self, faults: Sequence[Fault]) -> None:
        """All of them happen in their time."""
        for fault in faults:
            self._fleet.clock.call_at(fault.at, lambda fault=fault: self._happens(fault))  # type: ignore[misc]

    def _happens(self, fault: Fault) -> None:
        self._watch.tell(str(fault))
        act = self._acts.get(fault.kind)
        if act is not None:
            act(fault)
        elif fault.kind not in BEFALLS_DEVICES:
            raise AssertionError(f"nothing here makes a {fault.kind} happen")

    def _flash_bit_flip(self, fault: Fault) -> None:
        self._watch.altered.add(self._names[fault.values["device"]])

    def _gateway_killed(self, fault: Fault) -> None:
        values = fault.values
        gateway = self._fleet.gateways[values["gateway"]]
        gateway.kill_after(values["steps"], values["seconds"], values["deltas"])

    def _on_campaign(self, fault: Fault, act: Callable[[str], None]) -> None:
        campaign = self._scene.campaigns[fault.values["campaign"]].identifier
        if campaign in self._watch.drivers:
            act(campaign)

    def _driver_killed(self, fault: Fault) -> None:
        def kill(campaign: str) -> None:
            self._watch.drivers[campaign][-1].kill_after(fault.values["steps"])
            self._coordinator.stays_down(campaign, fault.values["seconds"])

        self._on_campaign(fault, kill)

    def _requests(self, fault: Fault) -> None:
        gateway, how = fault.values["gateway"], fault.values["how"]
        random = generator(self._scene.seed, "requests", fault.number)

        def late() -> float:
            return float(LATE_SECONDS ** random.random())

        def way() -> Way:
            match how:
                case "lost":
                    return Way((), None)
                case "answer lost":
                    return Way((BACKHAUL_SECONDS,), None)
                case "twice":
                    return Way((BACKHAUL_SECONDS, late()), BACKHAUL_SECONDS)
            return Way((late(),), late())

        ways = self._coordinator.ways
        ways[gateway] = way

        def over() -> None:
            if ways.get(gateway) is way:
                del ways[gateway]

        self._fleet.clock.call_later(fault.values["seconds"], over)

    def _unmasker_killed(self, fault: Fault) -> None:
        for one in self._unmaskers:
            one.dies(fault.values["requests"], fault.values["has_recorded"])

    def _wall_clock(self, fault: Fault) -> None:
        whose, seconds = fault.values["whose"], fault.values["seconds"]
        if whose == "all":
            self._fleet.clock.step_wall(seconds)
        else:
            self._fleet.gateways[whose].own_clock.step_wall(seconds)

    def _operator(self, fault: Fault) -> None:
        wish, store = fault.values["wish"], self._fleet.store

        def ask(campaign: str) -> None:
            try:
                if wish == "roll-back" and store.campaign(campaign).state in ENDED_STATES:
                    # Whoever looks once a second may have missed that it had ended.
                    self._watch.ended.add(campaign)
                    store.reopen(campaign)
                else:
                    store.ask(campaign, wish)
            except FleetError as error:
                self._watch.tell(f"operator: {error}")

        self._on_campaign(fault, ask)
        if wish == "pause":
            self._fleet.clock.call_later(
                fault.values["seconds"], lambda: self._on_campaign(fault, self._go_on)
            )

    def _go_on(self, campaign: str) -> None:
        record = self._fleet.store.campaign(campaign)
        if record.state not in ENDED_STATES and record.wish == "pause":
            self._fleet.store.ask(campaign, "")

    # ---- messages in a device's name ---------------------------------------------------

    def _forged(self, fault: Fault) -> None:
        """What somebody can say who has the device's password."""
        if not self._broker.is_up:
            return
        device = self._names[fault.values["device"]]
        random = generator(self._scene.seed, "forged", fault.number)
        client = self._broker.broker.attach(f"forger-{fault.number}")
        for topic, payload in self._forgeries(fault.values["what"], device, random):
            client.publish(topic, payload, retain=fault.values["what"] == "retained")
        client.close()

    def _forgeries(
        self, what: str, device: str, random: np.random.Generator
    ) -> list[tuple[str, bytes]]:
        fleet = FLEET
        said = self._watch.sent.messages.get(device, [])
        task = self._watch.tasks.get(device)
        deltas = [topics.delta(fleet, name, device) for name in self._fleet.gateways]
        if what == "garbage":
            bodies = [random.bytes(int(random.integers(0, 300))) for _ in range(6)]
            bodies += [b"\x93\x02\x9f", b"\xa0", b""]
            own = (topics.announce(fleet, device), topics.status(fleet, device), *deltas)
            return [(topic, body) for topic in own for body in bodies if body]
        if what == "all sent again":
            return [(one.topic, one.payload) for one in said]
        if what == "cut off":
            return [
                (one.topic, one.payload[: int(random.integers(len(one.payload)))])
                for one in said[-3:]
            ]
        if task is None:
            return []
        made = self._delta(what, task, random)
        return [(topic, made.encode()) for topic in deltas]

    def _delta(self, what: str, task: Task, random: np.random.Generator) -> Delta:
        """One that looks like an answer to a task, but for ``what``."""
        plan = self._manifest.plan(task.plan.hex())
        values = random.integers(-8, 8, plan.delta_values).astype(np.int32)
        if what == "beyond bounds":
            values[random.integers(values.size, size=5)] = 2**31 - 1
        samples = 4
        if not task.epochs:
            values, samples = values[:0], 0
        coded = delta_coding.encode(values)
        if task.coding == Coding.MASKED and samples:
            # Nobody but the device can seal for the unmasker.
            form = ValueForm(task.mask_bits, len(self._unmaskers))
            coded = random.bytes(form.max_coded_bytes(plan.delta_values))
        made = Delta(
            lease=task.lease,
            campaign=task.campaign,
            round=task.round,
            plan=task.plan[:8],
            weights=task.weights[:8],
            coding=task.coding,
            weighting=task.weighting,
            chunk=0,
            chunks=1,
            coded_bytes=len(coded),
            coded_crc32=zlib.crc32(coded),
            train_samples=samples,
            train_steps=samples * task.epochs,
            held_out_samples=2,
            correct_before=1,
            correct_after=1,
            loss_before_thousandths=1000,
            loss_after_thousandths=900,
            correct_local=0,
            kept=0,
            coded=coded,
        )
        match what:
            case "another lease":
                return replace(made, lease=max(0, task.lease + int(random.integers(-1, 2)) * 2 - 1))
            case "another plan":
                return replace(made, plan=random.bytes(8))
            case "another round":
                return replace(made, round=task.round + 1 + int(random.integers(3)))
        return made
