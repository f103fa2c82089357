"""Costs beside closed forms, numbers from the field's own package, and what has to hold of them."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.privacy import (
    LEAST_VARIANCE,
    Noise,
    epsilon,
    noise_multiplier,
    promise,
    rho_within,
    sensitivity_squared,
    share_variance,
)
from tests.conftest import examples

DELTAS = st.floats(1e-9, 0.1)
COSTS = st.floats(1e-6, 1e3)


def test_a_central_sum_costs_the_square_of_its_sensitivity_over_twice_the_variance() -> None:
    assert sensitivity_squared(30, 40) == 2500
    assert Noise(1250).rho(2500, 10_000) == 1.0
    assert Noise(0).rho(2500, 10_000) == math.inf
    assert Noise(1250, 0).rho(2500, 10_000) == math.inf


def test_shares_of_devices_cost_what_one_noise_of_their_sum_would() -> None:
    for devices, variance in ((2, LEAST_VARIANCE), (20, 50), (256, 1000)):
        shared = Noise(variance, devices).rho(10_000, 100_000)
        whole = Noise(variance * devices).rho(10_000, 100_000)
        assert whole <= shared < whole * (1 + 1e-6)


def exact_divergence(variance: int, shares: int, moved: int, order: float) -> float:
    """Rényi divergence of a sum of discrete Gaussians from the same sum moved by ``moved``."""
    reach = 60
    values = np.arange(-reach, reach + 1, dtype=np.float64)
    one = np.exp(-(values**2) / (2 * variance))
    one /= one.sum()
    total = one
    for _ in range(shares - 1):
        total = np.convolve(total, one)
    p, q = total[moved:], total[: total.size - moved]
    kept = (p > 1e-290) & (q > 1e-290)
    ratios = order * np.log(p[kept]) + (1 - order) * np.log(q[kept])
    return float(np.log(np.exp(ratios).sum()) / (order - 1))


@pytest.mark.parametrize(("shares", "moved"), [(1, 1), (2, 1), (2, 3), (5, 2)])
def test_small_shares_are_further_from_one_gaussian_and_the_cost_says_so(
    shares: int, moved: int
) -> None:
    # Variance 1 is below what devices are told; there the difference can be seen at all.
    cost = Noise(1, shares).rho(moved**2, 1)
    for order in (1.5, 2.0, 4.0, 8.0):
        assert exact_divergence(1, shares, moved, order) <= order * cost * (1 + 1e-9)


@examples(60)
@given(COSTS, DELTAS)
def test_epsilon_lies_between_what_a_gaussian_has_and_the_textbooks_bound(
    rho: float, delta: float
) -> None:
    found = epsilon(rho, delta)
    # A Gaussian has its rho exactly, and a smaller ε than all that has this rho.
    gaussian = dp_accounting.get_epsilon_gaussian(1 / math.sqrt(2 * rho), delta)
    textbook = rho + 2 * math.sqrt(rho * math.log(1 / delta))  # Bun, Steinke, proposition 1.3
    assert gaussian <= found * (1 + 1e-6) + 1e-9
    assert found <= textbook * 1.001


def test_epsilon_is_that_of_the_package_where_its_own_orders_are_fine_enough() -> None:
    accountant = dp_accounting.rdp.RdpAccountant()
    accountant.compose(dp_accounting.ZCDpEvent(0.05), 4)
    assert epsilon(4 * 0.05, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=2e-3)


@examples(60)
@given(
    st.floats(0.05, 100),
    st.integers(1, 10_000),
    st.integers(1, 256),
    st.integers(1, 100),
    DELTAS,
)
def test_privacy_gets_worse_with_rounds_and_clip_and_better_with_noise_and_devices(
    multiplier: float, clip: int, devices: int, rounds: int, delta: float
) -> None:
    sensitivity = sensitivity_squared(clip, 5)
    variance = share_variance(multiplier, sensitivity, devices)
    rho = Noise(variance, devices).rho(sensitivity, 1000)
    assert rho <= 1 / (2 * multiplier**2) * (1 + 1e-6)
    assert Noise(variance + 1, devices).rho(sensitivity, 1000) < rho
    assert Noise(variance, devices + 1).rho(sensitivity, 1000) < rho * (1 + 1e-9)
    assert Noise(variance, devices).rho(sensitivity_squared(clip + 1, 5), 1000) > rho
    assert epsilon((rounds + 1) * rho, delta) >= epsilon(rounds * rho, delta)


@examples(60)
@given(st.floats(0.01, 50), DELTAS, st.integers(1, 1000))
def test_the_noise_for_a_wanted_epsilon_costs_just_that(
    wanted: float, delta: float, rounds: int
) -> None:
    within = rho_within(wanted, delta)
    assert wanted * (1 - 1e-3) <= epsilon(within, delta) <= wanted
    multiplier = noise_multiplier(wanted, delta, rounds)
    assert epsilon(rounds / (2 * multiplier**2), delta) <= wanted * (1 + 1e-5)


def test_what_makes_no_sense_is_refused() -> None:
    assert epsilon(0.0, 0.1) == 0.0
    assert epsilon(math.inf, 0.1) == math.inf
    assert rho_within(0.0, 0.1) == 0.0
    assert noise_multiplier(0.0, 0.1, 3) == math.inf
    for rho, delta in ((-1.0, 0.1), (1.0, 0.0), (1.0, 1.0)):
        with pytest.raises(ValueError, match=r"rho|delta"):
            epsilon(rho, delta)


def test_no_promise_is_without_what_it_doesnt_cover() -> None:
    for noise in ("devices", "coordinator"):
        words = promise(7.95, 1e-5, noise, 20)
        assert "e^7.95" in words
        assert "scores" in words.split("Not covered")[1]
    assert "sees sums without noise" in promise(1.0, 1e-5, "coordinator", 20)
