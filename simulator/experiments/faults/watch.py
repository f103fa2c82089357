"""What has to hold in a fleet whatever happens, and who looks whether it does.

It sees what the outside world sees: what gateways publish, what passes the broker, what lies in
databases and in devices' flash. Nothing that it does changes anything.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from fleet.aggregation.mean import STALENESS_STEPS
from fleet.campaign import RoundPlan, Taken
from fleet.coordinator.rolling_back import MOST_NAMED
from fleet.errors import FleetError
from fleet.gateway.actions import Publish
from fleet.gateway.link import Message
from fleet.gateway.rounds import RoundKey
from fleet.protocol import Action, Announce, Receipt, ReceiptResult, Task, topics
from fleet.protocol.keys import DeviceKeys
from fleet.protocol.manifest import Manifest
from fleet.protocol.messages import NO_DIGEST
from fleet.store import (
    ENDED_STATES,
    CampaignRecord,
    Part,
    RoundRecord,
    RoundSummary,
    Stages,
    tables,
)
from simulator.devices.weights_slot import released_weights
from simulator.experiments.faults.scene import BOARD, Scene
from simulator.experiments.faults.sums import (
    Accepted,
    MissingDelta,
    SentDeltas,
    Share,
    mean_of,
    same_devices,
)
from simulator.experiments.fleet import VirtualFleet
from simulator.experiments.gateways import VirtualGateway
from simulator.experiments.processes import Process
from simulator.virtual.pool import LocalPool
from simulator.virtual.population import Population

SLACK_SECONDS = 30.0
"""So much longer than its deadline and grace a round may take: for looks and retries."""
OLD_DRIVER_SECONDS = 30.0
GATEWAY_SLACK_SECONDS = 3.0
_COULDNT_BE_REACHED = re.compile(r"(\d+) devices couldn't be reached to go back")
_TAPPED = "fleet/+/dev/+/announce", "fleet/+/gw/+/+/delta"


@dataclass(frozen=True)
class Violation:
    """Something that had to hold and didn't."""

    invariant: str
    at: float
    """Seconds of the fleet's time."""
    what: str

    def __str__(self) -> str:
        """For people."""
        return f"{self.invariant}, at {self.at:.3f} s: {self.what}"


class _Defects(logging.Handler):
    """Hears of what gateways log with a traceback: that is a defect, by their own word."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(logging.ERROR)
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            self._watch.broken("no defect", f"{type(error).__name__} in a gateway: {error}")


class Watch:
    """Looks at one fleet. The first thing that it finds is ``violation``."""

    def __init__(
        self,
        fleet: VirtualFleet,
        pool: LocalPool,
        population: Population,
        scene: Scene,
        site: str,
    ) -> None:
        """From now on."""
        self.violation: Violation | None = None
        self.story: list[str] = []
        self.sent = SentDeltas(
            {
                population.world.device(number).name: DeviceKeys.decode(keys)
                for number, keys in population.provisioned.keys.items()
            }
            if population.provisioned
            else {}
        )
        self.tasks: dict[str, Task] = {}
        """The newest of each device."""
        self.altered: set[str] = set()
        """Devices of whose flash a bit was turned over: what it says isn't what was written."""
        self.drivers: dict[str, list[Process]] = defaultdict(list)
        """By campaign, all that were ever started."""
        self.store_changed = False
        self.ended: set[str] = set()
        """Campaigns that ended, whatever became of them since."""
        self._records: dict[str, CampaignRecord] = {}
        self._rounds: dict[str, dict[int, RoundSummary]] = {}
        self._fleet, self._pool, self._scene = fleet, pool, scene
        self._configs = {one.identifier: one.config for one in scene.campaigns}
        self._manifest = Manifest.parse(scene.manifest)
        self._numbers = {population.world.device(one).name: one for one in population.numbers}
        self._reserved = {
            one: population.world.device(one).reserved_sram_bytes for one in population.numbers
        }
        flash = population.bundle(BOARD).manifest.flash
        self._slots = [(one.address, one.bytes) for one in (flash.slot_a, flash.slot_b)]
        self._factory = bytes.fromhex(self._manifest.weights.sha256)
        self._stages = Stages(fleet.store)
        self._released: dict[str, dict[bytes, bytes]] = defaultdict(dict)
        """By device and version, the campaign that released it last."""
        self._tasked: dict[str, set[bytes]] = defaultdict(set)
        self._holders: dict[tuple[str, int], bytes] = {}
        self._leases: dict[str, tuple[str, int]] = {}
        self._told_leases: dict[str, int] = {}
        self._receipts: dict[tuple[str, str, RoundKey], int] = {}
        self._accepted: dict[str, Accepted] = {}
        self._versions: dict[str, int] = defaultdict(int)
        self._taken: dict[tuple[str, RoundKey], Taken] = {}
        self._checked: dict[str, set[int]] = defaultdict(set)
        self._running: dict[tuple[str, str, int], float] = {}
        self._old_since: dict[str, float] = {}
        self._flash_seen: dict[int, tuple[int, bytes]] = {}
        for name, gateway in fleet.gateways.items():
            self._accepted[name] = Accepted(gateway.settings.store)
            gateway.on_publish = self._listener(gateway)
        fleet.brokers[site].tap(_TAPPED, self._tapped)
        self._defects = _Defects(self)
        logging.getLogger("fleet").addHandler(self._defects)

    def close(self) -> None:
        """Look no more."""
        logging.getLogger("fleet").removeHandler(self._defects)
        for one in self._accepted.values():
            one.close()

    @property
    def counted(self) -> int:
        """Deltas that were receipted as counted."""
        return len(self._receipts)

    @property
    def _now(self) -> float:
        return self._fleet.clock.monotonic()

    def tell(self, what: str) -> None:
        """Something happened that belongs to the story."""
        self.story.append(f"{self._now:9.3f}  {what}")

    def broken(self, invariant: str, what: str) -> None:
        """It doesn't hold."""
        if self.violation is None:
            self.violation = Violation(invariant, self._now, what)
            self.tell(f"BROKEN {invariant}: {what}")

    # ---- what gateways publish ---------------------------------------------------------

    def _listener(self, gateway: VirtualGateway) -> Callable[[Publish], None]:
        return lambda message: self._published(gateway, message)

    def _published(self, gateway: VirtualGateway, message: Publish) -> None:
        if "/to/" not in message.topic or not message.payload:
            return
        parts = topics.parse(message.topic)
        if parts.kind == "task":
            self._task(parts.device, Task.decode(message.payload))
        elif parts.kind == "receipt":
            self._receipt(gateway.name, parts.device, Receipt.decode(message.payload))

    def _task(self, device: str, task: Task) -> None:
        before = self.tasks.get(device)
        holder = self._holders.setdefault((device, task.lease), task.campaign)
        if holder != task.campaign:
            self.broken(
                "no lease held twice",
                f"{device} has tasks of campaigns {holder.hex()} and {task.campaign.hex()} with "
                f"lease {task.lease}",
            )
        if before is not None and task.lease < before.lease:
            self.broken(
                "leases only grow", f"{device} has a task with {task.lease} after {before.lease}"
            )
        if before is None or (before.campaign, before.round) != (task.campaign, task.round):
            kind = Action(task.action).name.lower()
            self.tell(
                f"{device}: task to {kind}, round {task.round} of {task.campaign.hex()[-4:]}, "
                f"lease {task.lease}, weights {task.weights.hex()[:8]}"
            )
        self.tasks[device] = task
        self._tasked[device].add(task.weights)
        if task.action == Action.RELEASE:
            self._released[device][task.weights] = task.campaign

    def _receipt(self, gateway: str, device: str, receipt: Receipt) -> None:
        key = RoundKey(receipt.campaign, receipt.round)
        result = ReceiptResult(receipt.result).name.lower()
        self.tell(f"{gateway}: receipt of {device}, {result}, round {receipt.round}")
        if receipt.result != ReceiptResult.COUNTED:
            return
        self._receipts[gateway, device, key] = receipt.coded_crc32
        self._is_counted(gateway, device, key)

    def _is_counted(self, gateway: str, device: str, key: RoundKey) -> None:
        crc32 = self._receipts[gateway, device, key]
        rows = [row for row in self._accepted[gateway].rows(key) if row.device == device]
        if [row.crc32 for row in rows] != [crc32]:
            self.broken(
                "a receipt means counted",
                f"{gateway} told {device} that {crc32:08x} was counted in {key}; on disk there is "
                f"{[f'{row.crc32:08x}' for row in rows] or 'nothing'}",
            )

    # ---- what devices say --------------------------------------------------------------

    def _tapped(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if message.topic.endswith("/delta"):
                if message.payload:
                    self.sent.hears(message)
            else:
                self._announced(message)

    def _announced(self, message: Message) -> None:
        device = topics.parse(message.topic).device
        try:
            announce = Announce.decode(message.payload)
        except FleetError:
            return  # somebody else's
        self.tell(
            f"{device}: announces current {announce.current.hex()[:8]}, "
            f"candidate {announce.candidate.hex()[:8]}, lease {announce.lease}"
        )
        self._has_weights(device, announce.current, announce.candidate)
        if announce.lease < self._told_leases.get(device, 0) and device not in self.altered:
            self.broken(
                "leases only grow",
                f"{device} announces lease {announce.lease} after {self._told_leases[device]}",
            )
        self._told_leases[device] = announce.lease

    def _has_weights(self, device: str, current: bytes, candidate: bytes) -> None:
        if current != self._factory and current not in self._released[device]:
            self.broken(
                "current was released",
                f"{device} has current {current.hex()[:16]}, which nothing released to it",
            )
        if candidate not in self._tasked[device] | {NO_DIGEST, self._factory}:
            self.broken(
                "versions aren't torn",
                f"{device} has candidate {candidate.hex()[:16]}, for which it never had a task",
            )

    # ---- now and then ------------------------------------------------------------------

    def look(self) -> None:
        """At everything that doesn't tell of itself."""
        for device, number in self._numbers.items():
            self._look_at_device(device, number)
        for gateway in self._fleet.gateways.values():
            if gateway.is_up:
                self._look_at_gateway(gateway)
        if self.store_changed:
            self.store_changed = False
            self._read_store()
            self._look_at_leases()
            for campaign in self.drivers:
                self._look_at_rounds(campaign)
                if self._configs[campaign].asynchronous is not None:
                    self._look_at_arrivals(campaign)
        self._look_at_drivers()
        self._look_for_late_rounds()

    def _read_store(self) -> None:
        store = self._fleet.store
        self._records = {one.id: one for one in store.campaigns()}
        for one in self.drivers:
            known = self._rounds.setdefault(one, {})
            since = max((of.revision for of in known.values()), default=0)
            known.update((of.number, of) for of in store.round_summaries(one, since))
        self.ended |= {one.id for one in self._records.values() if one.state in ENDED_STATES}

    def record(self, campaign: str) -> CampaignRecord:
        """As it was when somebody last looked."""
        return self._records[campaign]

    def _look_at_device(self, device: str, number: int) -> None:
        machine = self._pool.devices[number].machine
        reserved = self._reserved[number]
        if machine.end_of_pool(reserved).count(0) != reserved:
            self.broken("SRAM is enough", f"{device} has written into memory that isn't its own")
        if not machine.device_state:
            return  # it doesn't run
        current, candidate = machine.current_weights(), machine.candidate_weights()
        self._has_weights(device, current, candidate)
        seen = (machine.flash_operations, current)
        if device in self.altered or self._flash_seen.get(number) == seen:
            return
        self._flash_seen[number] = seen
        if current != self._factory:
            slots = [machine.read_memory(*one) for one in self._slots]
            size = self._manifest.weights.bytes
            content = released_weights(slots, self._manifest.model.digest, size)
            if content is None or hashlib.sha256(content).digest() != current:
                self.broken(
                    "versions aren't torn",
                    f"{device} says that {current.hex()[:16]} is current; its flash has another",
                )

    def _look_at_gateway(self, gateway: VirtualGateway) -> None:
        for key, one in gateway.core.logic.rounds.items():
            if one.open and self._now > one.deadline + GATEWAY_SLACK_SECONDS:
                self.broken("every round ends", f"{key} is open at {gateway.name} for too long")

    def _look_at_leases(self) -> None:
        table = tables.leases
        with self._fleet.store.reading() as connection:
            rows = connection.execute(sa.select(table.c.device, table.c.campaign, table.c.number))
            found = {device: (campaign, int(number)) for device, campaign, number in rows}
        for device, (campaign, number) in found.items():
            before, least = self._leases.get(device, ("", 0))
            if number < least or (number == least and before not in ("", campaign)):
                self.broken(
                    "leases only grow",
                    f"{device}: lease {number} of {campaign} after {least} of {before}",
                )
            # A campaign that is rolled back after its end has to lease its devices anew.
            if before not in ("", campaign, *self.ended):
                state = self._records[before].state
                self.broken(
                    "no lease held twice",
                    f"{campaign} has {device}, which {before} ({state}) hasn't let go of",
                )
        self._leases.update(found)

    def _look_at_drivers(self) -> None:
        for campaign, processes in self.drivers.items():
            alive = [one for one in processes if one.lives]
            for one in alive[:-1]:
                since = self._old_since.setdefault(one.name, self._now)
                if self._now > since + OLD_DRIVER_SECONDS:
                    self.broken(
                        "one driver",
                        f"{one.name} of {campaign} goes on beside {alive[-1].name}",
                    )

    def _look_at_rounds(self, campaign: str) -> None:
        for _, one in sorted(self._rounds[campaign].items()):
            if one.state == "done" and one.number not in self._checked[campaign]:
                self._checked[campaign].add(one.number)
                record = self._fleet.store.round(campaign, one.number)
                self._look_at_round(campaign, record)

    def _look_for_late_rounds(self) -> None:
        """Under one driver none goes on for longer than it may."""
        for campaign, rounds in self._rounds.items():
            config, driver = self._configs[campaign], self.drivers[campaign][-1]
            for one in rounds.values():
                if one.state != "running" or not driver.lives:
                    continue
                name = (driver.name, campaign, one.number)
                since = self._running.setdefault(name, self._now)
                most = config.deadline_seconds + config.gateway_grace_seconds
                if config.masking is not None:
                    most += config.masking.patience_seconds
                if config.asynchronous is not None:
                    most *= 2  # its last deltas are taken with those of the round after it
                most += SLACK_SECONDS
                if self._now > since + most:
                    self.broken(
                        "every round ends",
                        f"round {one.number} of {campaign} runs since {since:.1f} s",
                    )

    # ---- rounds that are done ----------------------------------------------------------

    def _look_at_round(self, campaign: str, record: RoundRecord) -> None:
        plan, result = RoundPlan.from_json(record.plan), record.result
        key = RoundKey(bytes.fromhex(campaign), record.number)
        self.tell(
            f"coordinator: round {record.number} of {campaign[-4:]} ({record.kind}) is done: "
            f"{result['accepted']} of {result['asked']}, lost {sorted(result['lost'])}"
        )
        rows = {
            name: self._accepted[name].rows(key)
            for name in plan.gateways()
            if name not in result["lost"]
        }
        reported = [one["device"] for one in self._fleet.store.reports(campaign, record.number)]
        why = same_devices(rows, reported)
        if why or result["accepted"] != len(reported):
            why = why or f"{result['accepted']} accepted, {len(reported)} reported"
            self.broken("a delta counts once", f"{key}: {why}")
        shares = [Share(row, key) for of in rows.values() for row in of]
        if plan.masks is not None:
            self.sent.masks[key] = plan.masks
            shares = self._unmasked(plan, result["sets"], shares)
        if "weights_after" in result:
            self._began_with(campaign, plan, self._versions[campaign], str(key))
            self._look_at_version(campaign, shares)

    def _unmasked(
        self, plan: RoundPlan, sets: Sequence[Mapping[str, Any]], shares: Sequence[Share]
    ) -> list[Share]:
        """Those of sets that were unmasked: of enough devices, and of all that were counted."""
        assert plan.masks is not None
        part_of = {one.device: one.part for one in plan.assignments}
        members: dict[tuple[str, int], list[Share]] = defaultdict(list)
        for one in shares:
            if one.row.train_samples:
                members[one.row.plan, part_of[one.row.device]].append(one)
        found: list[Share] = []
        for one_set in sets:
            mine = members[one_set["plan"], one_set["part"]]
            self.tell(f"coordinator: a set of {one_set['devices']}: {one_set['why'] or 'unmasked'}")
            if len(mine) != one_set["devices"]:
                self.broken(
                    "a set is whom gateways counted",
                    f"round {plan.number}: {one_set['devices']} devices, counted {len(mine)}",
                )
            if one_set["counted"]:
                if len(mine) < plan.masks.parameters.least_devices:
                    self.broken("nobody stands alone", f"a set of {len(mine)} was unmasked")
                found += mine
        return found

    # ---- versions ----------------------------------------------------------------------

    def _look_at_version(self, campaign: str, shares: Sequence[Share]) -> None:
        """The next one is made of these deltas."""
        number = self._versions[campaign] = self._versions[campaign] + 1
        before = self._fleet.store.weights(campaign, number - 1)
        after = self._fleet.store.weights(campaign, number)
        config, name = self._configs[campaign], f"version {number} of {campaign}"
        try:
            wanted = mean_of(
                shares,
                self.sent,
                self._manifest,
                config.weighting == "uniform",
                np.frombuffer(before.master, "<f8"),
            )
        except MissingDelta as error:
            self.broken("a delta counts once", f"{name}: {error} never sent what was counted")
            return
        stored = np.frombuffer(after.master, "<f8")
        if not np.array_equal(stored, wanted):
            differ = int(np.count_nonzero(stored != wanted))
            self.broken(
                "the sum is exact",
                f"{name}: {differ} of {stored.size} weights aren't the mean of what was accepted",
            )
        if hashlib.sha256(after.blob).hexdigest() != after.sha256:
            self.broken("versions aren't torn", f"{campaign} stores {after.sha256[:16]} torn")

    def _began_with(self, campaign: str, plan: RoundPlan, number: int, name: str) -> None:
        """What devices trained from is the version that deltas are added to, or known to be."""
        if plan.weights != self._fleet.store.weights(campaign, number).sha256:
            self.broken(
                "versions in order", f"{name}, began with {plan.weights[:16]}, not version {number}"
            )

    def _look_at_arrivals(self, campaign: str) -> None:
        """New versions of a campaign that makes them while devices train."""
        for number, parts in enumerate(self._parts_of_versions(campaign), 1):
            if number <= self._versions[campaign]:
                continue
            shares = [share for part in parts for share in self._shares(campaign, number, part)]
            self.tell(f"coordinator: version {number} of {campaign[-4:]}, {len(shares)} deltas")
            self._look_at_version(campaign, shares)

    def _parts_of_versions(self, campaign: str) -> list[list[Part]]:
        """What each version was made of, from version 1 on."""
        weights, parts = tables.weights, tables.parts
        with self._fleet.store.reading() as connection:
            query = sa.select(sa.func.max(weights.c.version)).where(weights.c.campaign == campaign)
            made: list[list[Part]] = [[] for _ in range(connection.execute(query).scalar_one())]
            chosen = sa.select(
                parts.c.version, parts.c.round, parts.c.gateway, parts.c.part, parts.c.through
            )
            for version, *part in connection.execute(chosen.where(parts.c.campaign == campaign)):
                made[version - 1].append(Part(*part))
        return made

    def _shares(self, campaign: str, number: int, part: Part) -> list[Share]:
        """What the deltas of a part have in version ``number``."""
        key = RoundKey(bytes.fromhex(campaign), part.round)
        taken = self._taken.setdefault((part.gateway, key), Taken())
        rows = self._accepted[part.gateway].rows(key)
        name = f"part {part.part} of {part.gateway}, {key}"
        if part.part != taken.parts or not taken.deltas <= part.through <= len(rows):
            self.broken(
                "a delta counts once",
                f"{name}, has deltas up to number {part.through} of {len(rows)}; before it "
                f"{taken.deltas} were taken in {taken.parts} parts",
            )
        self._taken[part.gateway, key] = Taken(taken.parts + 1, part.through)
        config = self._configs[campaign]
        plan = RoundPlan.from_json(self._fleet.store.round(campaign, part.round).plan)
        begun_with = plan.stage * config.rounds + plan.training_round - 1
        staleness = number - 1 - begun_with
        self._began_with(campaign, plan, begun_with, name)
        if staleness < 0:
            self.broken("versions in order", f"{name}, is in version {number} of before it began")
        how = config.asynchronous
        assert how is not None
        scale = STALENESS_STEPS * (1 + staleness) ** -how.staleness_exponent
        steps = max(1, round(scale)) if staleness <= how.most_stale else 0
        return [Share(row, key, steps) for row in rows[taken.deltas : part.through]]

    # ---- in the end --------------------------------------------------------------------

    def look_at_end(self) -> None:
        """Time enough has passed for everything to come to its end."""
        self.store_changed = True
        self.look()
        for name, device, key in self._receipts:
            self._is_counted(name, device, key)
        for planned in self._scene.campaigns:
            if planned.identifier not in self.drivers:
                self.broken("every round ends", f"campaign {planned.identifier} never began")
                continue
            record = self.record(planned.identifier)
            rounds = self._rounds[planned.identifier]
            running = [one.number for one in rounds.values() if one.state == "running"]
            if record.state not in ENDED_STATES or running:
                self.broken(
                    "every round ends",
                    f"campaign {planned.identifier} is {record.state}, rounds {running} run",
                )
            elif record.state == "rolled-back":
                self._look_at_roll_back(planned.identifier, record.reason)

    def _look_at_roll_back(self, campaign: str, reason: str) -> None:
        """Whoever has its weights still was told of: by name, where they aren't many."""
        left = {}
        for device, member in self._stages.members(campaign).items():
            machine = self._pool.devices[self._numbers[device]].machine
            if device in self.altered or not machine.device_state:
                continue
            current = machine.current_weights()
            by = self._released[device].get(current)
            if by == bytes.fromhex(campaign) and current.hex() != member.before:
                left[device] = (
                    f"has {current.hex()[:16]} of {campaign}, before {member.before[:16]}"
                )
        found = _COULDNT_BE_REACHED.search(reason)
        told = int(found[1]) if found else 0
        unnamed = [one for one in left if one not in reason]
        if unnamed and (len(left) > told or told <= MOST_NAMED):
            self.broken("rolled back", f"{unnamed[0]} {left[unnamed[0]]}")
