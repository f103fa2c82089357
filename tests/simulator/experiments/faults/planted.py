"""Faults of the product that are planted on purpose, one for each thing that has to hold."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fleet.campaign.config import Asynchronous
from fleet.coordinator import closing, unmasking
from fleet.coordinator.membership import Membership
from fleet.coordinator.round_planner import RoundPlanner
from fleet.coordinator.round_runner import RoundRunner
from fleet.gateway.actions import Publish
from fleet.gateway.core import Core
from fleet.gateway.round_logic import RoundLogic
from fleet.gateway.sums import Sums
from fleet.store import Lease, SqlStore
from fleet.unmasker import logic
from simulator.experiments.faults import run
from simulator.machines.host import HostMachine
from simulator.virtual.population import Population

Plant = Callable[[pytest.MonkeyPatch], None]

_COMMIT_AT, _RELEASED_AT, _PAYLOAD_AT = 60, 64, 4096
_COMMITTED, _RELEASED = 0x54494D43, 0x534C4552
_ERASED = 0xFFFFFFFF


def a_gateway_adds_a_delta_twice(patch: pytest.MonkeyPatch) -> None:
    add = Sums.add

    def twice(self: Sums, *delta: Any) -> None:
        *place, device, weight, values, coded = delta
        add(self, *place, device, weight, values + values, coded)

    patch.setattr(Sums, "add", twice)
    # It would be beyond what devices can send now and then, which the coordinator notices.
    patch.setattr(closing, "_problem_with", lambda *_: "")


def a_restarted_gateway_begins_its_sums_anew(patch: pytest.MonkeyPatch) -> None:
    load = Sums._load

    def without(self: Sums, place: Any) -> Any:
        found = load(self, place)
        found.total[:] = 0
        return found

    patch.setattr(Sums, "_load", without)


def the_coordinator_drops_a_gateways_sum(patch: pytest.MonkeyPatch) -> None:
    parts_of_gateway = closing.parts_of_gateway

    def without_the_second(*about: Any) -> Any:
        parts = parts_of_gateway(*about)
        return [[] for _ in parts] if about[3] == "site-2" else parts

    patch.setattr(closing, "parts_of_gateway", without_the_second)


def the_coordinator_forgets_a_report(patch: pytest.MonkeyPatch) -> None:
    finish_round = SqlStore.finish_round

    def with_fewer(self: Any, *about: Any) -> bool:
        *most, reports, weights = about
        return finish_round(self, *most, reports[:-1] if len(reports) > 1 else reports, weights)

    patch.setattr(SqlStore, "finish_round", with_fewer)


def a_receipt_goes_out_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    store = Core._store

    def at_once(self: Core, actions: list[Any], now: Any) -> list[Any]:
        rest = store(self, actions, now)
        for action in rest:
            if isinstance(action, Publish) and action.topic.endswith("/receipt"):
                self._publish(action)
        return rest

    patch.setattr(Core, "_store", at_once)


def a_lease_goes_to_whoever_asks(patch: pytest.MonkeyPatch) -> None:
    def take_leases(self: Any, campaign: str, driver: str, devices: Any) -> dict[str, Lease]:
        return {name: Lease(campaign, max(1, seen)) for name, seen in devices.items()}

    patch.setattr(SqlStore, "take_leases", take_leases)


def _at_power_on(patch: pytest.MonkeyPatch, act: Callable[[HostMachine], None]) -> None:
    power_on = HostMachine.power_on

    def and_more(self: HostMachine, **options: bool) -> None:
        act(self)
        power_on(self, **options)

    patch.setattr(HostMachine, "power_on", and_more)


def _write(machine: HostMachine, address: int, data: bytes) -> None:
    ctypes.memmove(machine._place_of(address, len(data)), data, len(data))


def a_reset_device_forgets_its_lease(patch: pytest.MonkeyPatch) -> None:
    def erase(machine: HostMachine) -> None:
        journal = machine._setup.regions.journal
        _write(machine, journal.address, b"\xff" * journal.bytes)

    _at_power_on(patch, erase)


def a_reset_device_makes_its_candidate_current(patch: pytest.MonkeyPatch) -> None:
    def release(machine: HostMachine) -> None:
        for slot in machine._setup.regions.slots:
            commit, released = struct.unpack(
                "<II", machine.read_memory(slot.address + _COMMIT_AT, 8)
            )
            if (commit, released) == (_COMMITTED, _ERASED):
                _write(machine, slot.address + _RELEASED_AT, struct.pack("<I", _RELEASED))

    _at_power_on(patch, release)


def a_device_writes_into_the_slot_it_works_with(patch: pytest.MonkeyPatch) -> None:
    receive = HostMachine.receive

    def and_write(self: HostMachine, data: bytes) -> int:
        for slot in self._setup.regions.slots:
            released = self.read_memory(slot.address + _RELEASED_AT, 4)
            if released == struct.pack("<I", _RELEASED):
                _write(self, slot.address + _PAYLOAD_AT, b"torn")
        return receive(self, data)

    patch.setattr(HostMachine, "receive", and_write)


def a_device_trains_where_its_application_is(patch: pytest.MonkeyPatch) -> None:
    spec = Population.spec

    def with_all_sram(self: Population, number: int) -> Any:
        return replace(spec(self, number), reserved_sram_bytes=0)

    patch.setattr(Population, "spec", with_all_sram)


def a_gateway_never_looks_at_the_deadline(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RoundLogic, "_close_due", lambda self, now: [])


def nobody_is_rolled_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Membership, "to_roll_back", lambda self, devices: {})


def an_old_driver_goes_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        SqlStore,
        "check_driver",
        lambda self, connection, campaign, _: self.locked(connection, campaign),
    )


def a_driver_stumbles_over_a_gateway_that_is_away(patch: pytest.MonkeyPatch) -> None:
    hand_over = RoundRunner.hand_over

    def stumble(self: RoundRunner, plan: Any, machine: Any, reply: Any) -> None:
        if reply.error:
            raise KeyError(reply.gateway)
        hand_over(self, plan, machine, reply)

    patch.setattr(RoundRunner, "hand_over", stumble)


def a_gateway_stumbles_over_a_second_delta(patch: pytest.MonkeyPatch) -> None:
    refuse = RoundLogic._refuse

    def stumble(self: RoundLogic, device: str, delta: Any, why: Any, now: Any) -> Any:
        if why.kind == "duplicate":
            raise IndexError(device)
        return refuse(self, device, delta, why, now)

    patch.setattr(RoundLogic, "_refuse", stumble)


# ---- asynchronous campaigns --------------------------------------------------------------


def a_part_has_what_the_part_before_had(patch: pytest.MonkeyPatch) -> None:
    of_part, told = Sums.of_part, {}

    def with_before(self: Sums, round_id: int, part: int) -> Any:
        found = of_part(self, round_id, part)
        for plan, (one,) in found.items():
            values = np.frombuffer(one["values"], "<i8")
            before = told.get((self._db, round_id, plan, part - 1), np.zeros_like(values))
            told[self._db, round_id, plan, part] = values
            one["values"] = (values + before).tobytes()
        return found

    patch.setattr(Sums, "of_part", with_before)
    patch.setattr(closing, "_problem_with", lambda *_: "")


def a_version_forgets_a_part_that_it_has(patch: pytest.MonkeyPatch) -> None:
    make_version = SqlStore.make_version

    def with_fewer(self: SqlStore, *about: Any) -> None:
        *most, parts = about
        make_version(self, *most, parts[:-1])

    patch.setattr(SqlStore, "make_version", with_fewer)


def stale_deltas_weigh_what_fresh_ones_do(patch: pytest.MonkeyPatch) -> None:
    scale = Asynchronous.scale
    patch.setattr(
        Asynchronous, "scale", lambda self, staleness: min(1.0, 2**30 * scale(self, staleness))
    )


def what_is_too_stale_counts(patch: pytest.MonkeyPatch) -> None:
    scale = Asynchronous.scale

    def whatever(self: Asynchronous, staleness: int) -> float:
        return scale(self.model_copy(update={"most_stale": staleness}), staleness)

    patch.setattr(Asynchronous, "scale", whatever)


def rounds_begin_with_the_first_version(patch: pytest.MonkeyPatch) -> None:
    plan = RoundPlanner.plan

    def with_the_first(self: RoundPlanner, step: Any, weights: str, *about: Any) -> Any:
        if step.training_round:
            weights = self._context.store.weights(self._context.campaign, 0).sha256
        return plan(self, step, weights, *about)

    patch.setattr(RoundPlanner, "plan", with_the_first)


# ---- masked campaigns ----------------------------------------------------------------------


def an_unmaskers_sum_is_off_by_one(patch: pytest.MonkeyPatch) -> None:
    made = unmasking.unmasked

    def off_by_one(of: Any, masks: Any, parameters: Any) -> Any:
        # A whole stream too much would be beyond what devices can have, which is noticed.
        return made(of, [*masks, np.ones_like(masks[0])], parameters)

    patch.setattr(unmasking, "unmasked", off_by_one)


def sets_of_few_are_unmasked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(unmasking, "has_too_few", lambda of, parameters: not of.members)
    patch.setattr(logic, "require_enough", lambda request, least: None)


def a_set_forgets_a_member(patch: pytest.MonkeyPatch) -> None:
    masked_sets = unmasking.masked_sets

    def with_fewer(plan: Any, answers: Any) -> Any:
        return [replace(one, members=one.members[1:]) for one in masked_sets(plan, answers)]

    patch.setattr(unmasking, "masked_sets", with_fewer)


# ---- stories without an end --------------------------------------------------------------


def a_driver_goes_round_in_circles(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run, "MOST_EVENTS", 50_000)
    hand_over = RoundRunner.hand_over

    def for_ever(self: RoundRunner, plan: Any, machine: Any, reply: Any) -> None:
        while reply.error:
            self._context.clock.sleep(0.0)
        hand_over(self, plan, machine, reply)

    patch.setattr(RoundRunner, "hand_over", for_ever)
