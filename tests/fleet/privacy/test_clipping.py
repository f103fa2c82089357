"""The clip that follows a quantile."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.privacy import ClipState, next_clip
from fleet.privacy.discrete_gaussian import discrete_gaussian


@pytest.mark.parametrize("quantile", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("first", [10.0, 100_000.0])
def test_the_clip_finds_the_quantile_of_the_norms(quantile: float, first: float) -> None:
    drawn = np.random.default_rng(0)
    norms = np.exp(drawn.normal(math.log(1000), 0.5, 100))
    share, state = 100, ClipState(first)
    noise = discrete_gaussian(bytes(32), 300**2, 120)  # ± 3 of 100 devices
    for more in noise.tolist():
        within = int((norms <= state.whole).sum())
        state = next_clip(state, share * within + more, share, norms.size, quantile, 0.2)
    assert abs((norms <= state.whole).mean() - quantile) < 0.1


@given(
    st.floats(1, 1e9),
    st.integers(-(10**9), 10**9),
    st.integers(1, 65_535),
    st.integers(1, 256),
)
def test_noise_moves_the_clip_no_further_than_the_rate_lets_it(
    clip: float, norm_sum: int, norm_share: int, devices: int
) -> None:
    state = next_clip(ClipState(clip), norm_sum, norm_share, devices, 0.5, 0.2)
    assert state.clip >= 1.0
    assert clip * math.exp(-0.1) * 0.999 <= state.clip <= clip * math.exp(0.1) * 1.001
    assert state.share_within is not None
    assert 0.0 <= state.share_within <= 1.0


def test_a_small_clip_grows_though_each_step_is_less_than_one() -> None:
    state = ClipState(2.0)
    for _ in range(20):
        state = next_clip(state, 0, 10, 5, 0.5, 0.2)
    assert state.whole > 10


def test_a_round_without_devices_says_nothing() -> None:
    state = ClipState(7.5)
    assert next_clip(state, 40, 10, 0, 0.5, 0.2) is state
    assert state.whole == 8
