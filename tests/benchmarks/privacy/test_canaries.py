"""A run never shows more than its ledger says; and where something is wrong, it does."""

from __future__ import annotations

import pytest

from benchmarks.privacy.canaries import Audit, audit_campaign, audit_sums
from benchmarks.privacy.protection import Fault, private
from benchmarks.privacy.victims import Victim

EPSILON = 3.0
ROUNDS = 2


def played(fault: Fault, sets: int) -> Audit:
    protection = private(EPSILON, ROUNDS, clip=200, value_bound=30_000)
    return audit_sums(protection, sets, devices=8, rounds=ROUNDS, seed=1, fault=fault)


def test_a_sound_run_shows_less_than_the_ledger_says_and_is_estimated_near_it() -> None:
    found = played(Fault.NONE, sets=1000)
    assert 0.2 * found.claimed < found.shown < found.claimed
    assert found.estimated == pytest.approx(found.claimed, rel=0.1)


@pytest.mark.parametrize(
    ("fault", "sets"),
    [(Fault.NOISE_HALVED, 2000), (Fault.CLIPPING_OFF, 300), (Fault.SEED_REUSED, 300)],
)
def test_a_run_with_a_fault_shows_more_than_the_ledger_says(fault: Fault, sets: int) -> None:
    found = played(fault, sets)
    assert not found.holds


def test_a_campaign_shows_less_than_its_ledger_says(demo: Victim) -> None:
    found = audit_campaign(demo, "small", private(EPSILON, 1, clip=200), rounds=1, seed=1)
    assert found.canaries == 232
    assert found.holds
    assert found.estimated == pytest.approx(found.claimed, rel=0.3)
