"""The fault search finds nothing in what ships, and each kind of fault that is planted."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from simulator.experiments.faults.run import Outcome, run_seed
from simulator.experiments.faults.schedule import KINDS, MOST
from simulator.experiments.faults.search import Finding, search, shrunk
from simulator.virtual.population import Firmware
from tests.simulator.experiments.faults import planted

SEEDS = range(1, 9)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_to_a_fleet_what_has_to_hold_does(firmware: Firmware, seed: int) -> None:
    outcome = run_seed(seed, firmware)
    assert outcome.violation is None, "\n".join(outcome.story)
    assert outcome.states


def test_two_runs_of_a_seed_tell_the_same_story(firmware: Firmware) -> None:
    first, second = run_seed(10, firmware), run_seed(10, firmware)
    assert first == second
    assert len(first.story) > 20


def test_a_fault_that_is_left_out_changes_no_other(firmware: Firmware) -> None:
    whole = run_seed(6, firmware).faults
    without = run_seed(6, firmware, only={one.number for one in whole[1::2]}).faults
    assert without == whole[1::2]


def test_the_seeds_of_a_night_have_every_kind_of_fault(firmware: Firmware) -> None:
    from simulator.experiments.faults.run import faults_of
    from simulator.experiments.faults.scene import Scene

    seen = {
        one.kind for seed in range(1, 40) for one in faults_of(Scene(seed, firmware), MOST, None)
    }
    assert seen == set(KINDS)


PLANTED = [
    (planted.a_gateway_adds_a_delta_twice, 1, "the sum is exact"),
    (planted.the_coordinator_drops_a_gateways_sum, 1, "the sum is exact"),
]


@pytest.mark.parametrize(("plant", "seed", "invariant"), PLANTED)
def test_a_planted_fault_is_found_and_its_story_is_short(
    firmware: Firmware,
    monkeypatch: pytest.MonkeyPatch,
    plant: planted.Plant,
    seed: int,
    invariant: str,
) -> None:
    plant(monkeypatch)
    outcome = run_seed(seed, firmware)
    assert outcome.violation is not None
    assert outcome.violation.invariant == invariant

    def run(number: int, only: Collection[int] | None) -> Outcome:
        return run_seed(number, firmware, only=only)

    finding = shrunk(outcome, MOST, run)
    assert finding.violation.invariant == invariant
    assert len(finding.outcome.faults) <= 2 < finding.of
    numbers = {one.number for one in finding.outcome.faults}
    assert run(seed, numbers).violation == finding.violation
    only = ",".join(str(one) for one in sorted(numbers)) or "none"
    assert finding.command.endswith(f"--seeds {seed}..{seed} --events {MOST} --only {only}")


def test_seeds_run_in_processes_as_they_do_here(firmware: Firmware) -> None:
    found = list(search(range(1, 4), firmware, MOST, workers=2))
    assert not [one for one in found if isinstance(one, Finding)]
    assert sorted(found, key=lambda one: one.seed) == [  # type: ignore[union-attr]
        run_seed(seed, firmware) for seed in range(1, 4)
    ]
