"""What a campaign says about privacy, and what its rounds make of it."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fleet.campaign import CampaignConfig, RoundKind, RoundPlan
from fleet.campaign.privacy import (
    AdaptiveClip,
    Privacy,
    clip_after,
    clip_from_json,
    clip_to_json,
    first_clip,
    release,
    round_privacy,
)
from fleet.errors import CampaignError
from fleet.privacy import ClipState, Noise, epsilon, sensitivity_squared
from tests.conftest import examples

SAID: dict[str, Any] = {"clip": 1000, "noise_multiplier": 2.0, "delta": 1e-5}
BASE: dict[str, Any] = {"name": "one", "coding": "masked", "weighting": "uniform"}


def privacy(**fields: Any) -> Privacy:
    return Privacy.model_validate({**SAID, **fields})


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"coding": "rice"}, "say coding: masked"),
        ({"weighting": "samples"}, "say weighting: uniform"),
        ({"asynchronous": {"buffer": 5}}, "leave asynchronous out"),
        ({"kind": "evaluate"}, "leave it out"),
        ({"cohort_size": 19}, "make cohort_size more or least_devices less"),
        (
            {"cohort_size": 159, "aggregation": {"rule": "bucket-median", "buckets": 8}},
            "no 8 sets of 20",
        ),
    ],
)
def test_what_noise_cant_go_with_is_refused_with_a_remedy(
    fields: dict[str, Any], remedy: str
) -> None:
    config = {**BASE, "privacy": SAID, "cohort_size": 200}
    assert CampaignConfig.model_validate(config).privacy == privacy()
    with pytest.raises(ValidationError, match=remedy):
        CampaignConfig.model_validate({**config, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"clip": 0},
        {"noise_multiplier": 0.0},
        {"delta": 0.0},
        {"delta": 1.0},
        {"budget_epsilon": 0.0},
        {"least_devices": 1},
        {"least_devices": 257},
        {"noise": "gateway"},
        {"adaptive": {"quantile": 1.0}},
        {"epsilon": 3.0},
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        privacy(**fields)


def test_devices_add_shares_and_the_coordinator_all_of_the_same_noise() -> None:
    shared = round_privacy(privacy(least_devices=25), ClipState(1000.0), 127, 2606)
    whole = round_privacy(privacy(noise="coordinator"), ClipState(1000.0), 127, 2606)
    assert (shared.device_variance, shared.coordinator_variance) == (160_000, 0)
    assert (whole.device_variance, whole.coordinator_variance) == (0, 4_000_000)
    assert shared.rho == pytest.approx(whole.rho) == pytest.approx(1 / (2 * 2.0**2))


def test_the_public_sees_the_noise_of_all_sets_where_devices_add_it() -> None:
    shared = round_privacy(privacy(), ClipState(1000.0), 127, 2606)
    assert shared.public_rho(1, 2606) == shared.rho
    assert shared.public_rho(4, 2606) == pytest.approx(shared.rho / 4)
    whole = round_privacy(privacy(noise="coordinator"), ClipState(1000.0), 127, 2606)
    assert whole.public_rho(4, 2606) == whole.rho


def test_noise_that_devices_cant_draw_is_refused_with_a_remedy() -> None:
    with pytest.raises(CampaignError, match="make clip or noise_multiplier less"):
        round_privacy(privacy(clip=100_000), ClipState(100_000.0), 127, 10)
    round_privacy(privacy(clip=100_000, noise="coordinator"), ClipState(100_000.0), 127, 10)


@examples(60)
@given(
    st.floats(1, 2**32),
    st.floats(0.1, 100),
    st.integers(2, 256),
    st.sampled_from(["devices", "coordinator"]),
)
def test_an_adaptive_clip_never_asks_for_more_noise_than_there_is_nor_costs_more(
    clip: float, multiplier: float, least: int, noise: str
) -> None:
    of = privacy(noise_multiplier=multiplier, least_devices=least, noise=noise, adaptive={})
    says = round_privacy(of, ClipState(clip), 127, 2606)
    assert 1 <= says.norm_share <= 127
    assert says.device_variance <= 1 << 24
    assert says.rho <= 1 / (2 * multiplier**2) * (1 + 1e-6)
    shares = least if noise == "devices" else 1
    squared = sensitivity_squared(says.clip, says.norm_share)
    assert says.rho == Noise(says.noise_variance, shares).rho(squared, 2607)


def test_the_clip_goes_from_round_to_round_by_what_a_round_has_said() -> None:
    of = privacy(adaptive=AdaptiveClip(quantile=0.5, rate=0.2))
    first = first_clip(of)
    says = round_privacy(of, first, 127, 2606)
    # All norms were within the clip: the next one is smaller.
    second = clip_after(of, says, says.norm_share * 30, 30)
    assert second.clip == pytest.approx(1000 * math.exp(-0.1))
    assert clip_from_json(of, json.loads(json.dumps(clip_to_json(second)))) == second
    assert clip_from_json(of, None) == first
    fixed = privacy()
    assert clip_after(fixed, round_privacy(fixed, first, 127, 9), 0, 30) == first


def test_the_coordinator_adds_its_noise_to_all_that_goes_on_from_a_sum() -> None:
    total = np.full(5001, 1000)
    for fields, deviation in (({"noise": "coordinator"}, 2000.0), ({"noise": "devices"}, 0.0)):
        of = privacy(adaptive={}, **fields)
        says = round_privacy(of, ClipState(1000.0), 300, 5000)
        found = release(says, total, b"k" * 32)
        assert found.values.size == 5000
        # A multiplier of 2 over the clip and the norm's value together.
        wanted = deviation * math.sqrt(1 + (says.norm_share / says.clip) ** 2)
        assert float((found.values - 1000).std()) == pytest.approx(wanted, rel=0.05)
        assert (found.norm_sum == 1000) == (deviation == 0.0)
        again = release(says, total, b"l" * 32)
        assert np.array_equal(found.values, again.values) == (deviation == 0.0)
    fixed = round_privacy(privacy(), ClipState(1000.0), 300, 5000)
    assert release(fixed, total, b"k" * 32).values.size == 5001


def test_a_rounds_plan_keeps_what_it_says() -> None:
    says = round_privacy(privacy(), ClipState(1000.0), 127, 2606)
    plan = RoundPlan(1, RoundKind.TRAIN, 1, "ab", 3, (), {}, {}, privacy=says)
    assert RoundPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    without = RoundPlan(1, RoundKind.TRAIN, 1, "ab", 3, (), {}, {})
    assert RoundPlan.from_json(without.to_json()).privacy is None
    assert epsilon(6 * says.rho, 1e-5) == pytest.approx(5.9, abs=1.0)
