"""What guesses about canaries prove, on games whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binom

from benchmarks.privacy.audit import Guesses, estimated_mu, guesses, is_refuted, least_mu

CANARIES = 2000
MADE = 200


def played(mu: float, seed: int, canaries: int = CANARIES) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a mechanism that is exactly μ-GDP for each canary, and who is in."""
    random = np.random.default_rng(seed)
    members = random.integers(0, 2, canaries) == 1
    return mu * members + random.normal(size=canaries), members


@pytest.mark.parametrize("mu", [0.3, 1.0, 3.0])
def test_no_run_shows_more_than_there_is(mu: float) -> None:
    for seed in range(30):
        scores, members = played(mu, seed)
        assert least_mu(guesses(scores, mu / 2, members, MADE)) < mu


@pytest.mark.parametrize("mu", [0.3, 1.0, 3.0])
def test_what_a_mechanism_does_with_some_probability_is_not_refuted_at_that_probability(
    mu: float,
) -> None:
    """Independent canaries, all guessed: right guesses are binomial, with the best chance at μ."""
    canaries = 20
    for right in range(canaries + 1):
        chance = float(binom.sf(right - 1, canaries, ndtr(mu / 2)))
        assert not is_refuted(Guesses(canaries, canaries, right), mu, chance * (1 - 1e-9))


def test_a_run_that_hides_nothing_shows_ever_more_with_more_canaries() -> None:
    shown = [least_mu(Guesses(canaries, canaries, canaries)) for canaries in (10, 100, 1000)]
    assert 0 < shown[0] < shown[1] < shown[2]


def test_guesses_that_are_half_right_show_nothing() -> None:
    assert least_mu(Guesses(CANARIES, MADE, MADE // 2)) < 1e-6


def test_what_is_refuted_is_refuted_for_every_smaller_claim_and_every_further_right_guess() -> None:
    for right in range(MADE // 2, MADE, 10):
        found = [is_refuted(Guesses(CANARIES, MADE, right), mu, 0.001) for mu in (0.1, 0.5, 1, 2)]
        assert found == sorted(found, reverse=True)
        if found[0]:
            assert is_refuted(Guesses(CANARIES, MADE, right + 1), 0.1, 0.001)


def test_without_noise_in_the_count_the_refuted_claim_is_that_of_one_canary() -> None:
    """One canary, one guess: right with probability p refutes μ just where p > Φ(μ/2)."""
    for mu in (0.2, 1.0, 2.0):
        right = Guesses(1, 1, 1)
        limit = float(ndtr(mu / 2))
        assert is_refuted(right, mu, limit + 1e-6)
        assert not is_refuted(right, mu, limit - 1e-6)


def test_the_estimate_is_near_the_truth() -> None:
    scores, members = played(1.0, seed=1, canaries=20_000)
    assert estimated_mu(scores, members) == pytest.approx(1.0, abs=0.05)
