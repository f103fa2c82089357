"""The fault search finds nothing in what ships, and each kind of fault that is planted."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from codegen.host_toolchain import Source, host_toolchain
from simulator.errors import ExperimentError
from simulator.experiments.cli import experiment
from simulator.experiments.faults import command
from simulator.experiments.faults.command import numbers_of, seeds_of
from simulator.experiments.faults.run import Outcome, faults_of, run_seed
from simulator.experiments.faults.scene import Scene
from simulator.experiments.faults.schedule import KINDS, MOST, OF_MASKED
from simulator.experiments.faults.search import CRASH, HANG, Finding, search, shrunk
from simulator.virtual.population import Firmware
from tests.simulator.experiments.faults import planted

FEW = 6
"""Faults of a seed in which one is planted, so that they are soon fewer."""


@pytest.mark.parametrize("seed", [1, 6, 18, 24])
def test_whatever_happens_to_a_fleet_what_has_to_hold_does(firmware: Firmware, seed: int) -> None:
    outcome = run_seed(seed, firmware)
    assert outcome.violation is None, "\n".join(outcome.story)
    assert outcome.states


@pytest.mark.slow
def test_forty_seeds_break_nothing(firmware: Firmware) -> None:
    found = list(search(range(100, 140), firmware, MOST, workers=2))
    assert [one.command for one in found if isinstance(one, Finding)] == []
    assert len(found) == 40


@pytest.mark.long
def test_a_nights_seeds_break_nothing(firmware: Firmware) -> None:
    found = search(range(10_000, 20_000), firmware, MOST, workers=2)
    assert [one.command for one in found if isinstance(one, Finding)] == []


FOUND = [
    (1011, {4, 7, 14}),
    (2004, {4}),
    (104, {11, 16}),
    (10048, {2, 13}),
    (11243, {1, 6, 8}),
    (11425, {9, 18}),
    (11515, {1}),
    (21076, {1, 4, 8, 9, 10, 13, 18}),
    (38358, {0, 11}),
]
"""What the search has found and still tells: docs/results/faults.md."""


@pytest.mark.parametrize(("seed", "numbers"), FOUND)
def test_what_was_found_once_happens_no_more(
    firmware: Firmware, seed: int, numbers: set[int]
) -> None:
    outcome = run_seed(seed, firmware, only=numbers)
    assert {one.number for one in outcome.faults} == numbers
    assert outcome.violation is None, "\n".join(outcome.story)


def test_two_runs_of_a_seed_tell_the_same_story(firmware: Firmware) -> None:
    first, second = run_seed(10, firmware), run_seed(10, firmware)
    assert first == second
    assert len(first.story) > 20


def test_a_fault_that_is_left_out_changes_no_other(firmware: Firmware) -> None:
    scene = Scene(6, firmware)
    whole = faults_of(scene, MOST, None)
    assert len(whole) > 3
    assert faults_of(scene, MOST, {one.number for one in whole[1::2]}) == whole[1::2]


def test_every_kind_of_fault_is_drawn_in_some_seed(firmware: Firmware) -> None:
    drawn = (faults_of(Scene(seed, firmware), MOST, None) for seed in range(1, 100))
    assert {one.kind for faults in drawn for one in faults} == {*KINDS, *OF_MASKED}


PLANTED = [
    (planted.a_gateway_adds_a_delta_twice, 1, "the sum is exact"),
    (planted.a_restarted_gateway_begins_its_sums_anew, 9, "the sum is exact"),
    (planted.the_coordinator_drops_a_gateways_sum, 1, "the sum is exact"),
    (planted.the_coordinator_forgets_a_report, 1, "a delta counts once"),
    (planted.a_receipt_goes_out_before_the_commit, 1, "a receipt means counted"),
    (planted.a_lease_goes_to_whoever_asks, 1, "no lease held twice"),
    (planted.a_reset_device_forgets_its_lease, 1, "leases only grow"),
    (planted.a_reset_device_makes_its_candidate_current, 5, "current was released"),
    (planted.a_device_writes_into_the_slot_it_works_with, 1, "versions aren't torn"),
    (planted.a_device_trains_where_its_application_is, 1, "SRAM is enough"),
    (planted.a_gateway_never_looks_at_the_deadline, 1, "every round ends"),
    (planted.nobody_is_rolled_back, 49, "rolled back"),
    (planted.an_old_driver_goes_on, 6, "one driver"),
    (planted.a_driver_stumbles_over_a_gateway_that_is_away, 9, "no defect"),
    (planted.a_gateway_stumbles_over_a_second_delta, 1, "no defect"),
    (planted.a_part_has_what_the_part_before_had, 8, "the sum is exact"),
    (planted.a_version_forgets_a_part_that_it_has, 2, "the sum is exact"),
    (planted.stale_deltas_weigh_what_fresh_ones_do, 5, "the sum is exact"),
    (planted.what_is_too_stale_counts, 12, "the sum is exact"),
    (planted.rounds_begin_with_the_first_version, 2, "versions in order"),
    (planted.a_driver_goes_round_in_circles, 9, "every round ends"),
    (planted.an_unmaskers_sum_is_off_by_one, 4, "the sum is exact"),
    (planted.sets_of_few_are_unmasked, 11, "nobody stands alone"),
    (planted.a_set_forgets_a_member, 4, "a set is whom gateways counted"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("plant", "seed", "invariant"), PLANTED)
def test_a_planted_fault_is_found_and_its_story_is_short(
    firmware: Firmware,
    monkeypatch: pytest.MonkeyPatch,
    plant: planted.Plant,
    seed: int,
    invariant: str,
) -> None:
    assert run_seed(seed, firmware, FEW).violation is None
    plant(monkeypatch)
    outcome = run_seed(seed, firmware, FEW)
    assert outcome.violation is not None
    assert outcome.violation.invariant == invariant

    def run(number: int, only: Collection[int] | None) -> Outcome:
        return run_seed(number, firmware, FEW, only)

    finding = shrunk(outcome, FEW, run)
    assert finding.violation.invariant == invariant
    assert len(finding.outcome.faults) <= 2 < finding.of
    numbers = {one.number for one in finding.outcome.faults}
    assert run(seed, numbers).violation == finding.violation
    only = ",".join(str(one) for one in sorted(numbers)) or "none"
    assert finding.command.endswith(f"--seeds {seed}..{seed} --events {FEW} --only {only}")


def test_seeds_run_in_processes_as_they_do_here(firmware: Firmware) -> None:
    seeds = range(3, 5)
    found = [one for one in search(seeds, firmware, FEW, workers=2) if isinstance(one, Outcome)]
    here = [run_seed(seed, firmware, FEW) for seed in seeds]
    assert sorted(found, key=lambda one: one.seed) == here


def _library_that(does: str, folder: Path) -> Path:
    """Whoever loads it has to do that."""
    code = (
        f"#include <stdlib.h>\n__attribute__((constructor)) static void begin(void) {{ {does} }}\n"
    )
    (folder / "begin.c").write_text(code)
    library = folder / "begin.so"
    source = Source(folder / "begin.c")
    host_toolchain().build_host([source], include_dirs=[], output=library, defines=())
    return library


def test_a_crash_of_the_devices_library_is_found(firmware: Firmware, tmp_path: Path) -> None:
    library = _library_that("abort();", tmp_path)
    (found,) = search([1], replace(firmware, library=library), FEW, workers=1)
    assert isinstance(found, Finding)
    assert (found.violation.invariant, found.outcome.faults) == (CRASH, ())


def test_a_process_that_is_heard_of_no_more_is_ended(
    firmware: Firmware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulator.experiments.faults.search.HANG_SECONDS", 1.0)
    library = _library_that("for (;;) {}", tmp_path)
    (found,) = search([1], replace(firmware, library=library), FEW, workers=1)
    assert isinstance(found, Finding)
    assert found.violation.invariant == HANG
    assert len(found.outcome.faults) == found.of > 0


def test_the_command_tells_the_story_of_one_seed(firmware: Firmware) -> None:
    build = firmware.bundle.parent.parent
    options = ["--seeds", "3..3", "--events", "6", "--only", "none", "--build", str(build)]
    told = CliRunner().invoke(experiment, ["faults", *options])
    assert told.exit_code == 0, told.output
    assert "coordinator: round 1" in told.output
    assert "1 seeds" in told.output
    assert "0 failed" in told.output


def test_programs_are_told_what_was_found(
    firmware: Firmware, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search_here(seeds: range, *about: Any) -> Iterator[Outcome | Finding]:
        for outcome in (run_seed(seed, firmware, FEW) for seed in seeds):
            yield outcome if outcome.violation is None else Finding(outcome, FEW, FEW)

    monkeypatch.setattr(command, "firmware_for_search", lambda *_: firmware)
    monkeypatch.setattr(command, "search", search_here)
    planted.the_coordinator_forgets_a_report(monkeypatch)
    told = CliRunner().invoke(experiment, ["faults", "--seeds", "1..1", "--events", "6", "--json"])
    assert told.exit_code == 1, told.output
    facts = json.loads(told.stdout)
    (found,) = facts["failed"]
    assert (facts["seeds"], found["seed"], found["invariant"]) == (1, 1, "a delta counts once")
    assert facts["accepted"] > 0
    assert any("BROKEN" in line for line in found["story"])
    assert found["command"].startswith("tinyfleet experiment faults --seeds 1..1 --events 6 --only")


@pytest.mark.parametrize("text", ["", "a..b", "5..3", "-1..3"])
def test_seeds_are_said_as_a_range(text: str) -> None:
    with pytest.raises(ExperimentError, match=r"--seeds"):
        seeds_of(text)


def test_numbers_of_faults_are_said_with_commas() -> None:
    assert seeds_of("7") == seeds_of("7..7") == range(7, 8)
    assert (numbers_of(""), numbers_of("none"), numbers_of("3,17")) == (None, set(), {3, 17})
    with pytest.raises(ExperimentError, match=r"--only"):
        numbers_of("3;17")
