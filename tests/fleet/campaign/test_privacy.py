"""What a campaign says about privacy, and what its rounds make of it."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fleet.aggregation import PlanSum
from fleet.campaign import CampaignConfig, RoundKind, RoundPlan
from fleet.campaign.masking import Masking
from fleet.campaign.privacy import (
    AdaptiveClip,
    Privacy,
    clip_after,
    clip_from_json,
    clip_to_json,
    first_clip,
    round_privacy,
    with_noise,
)
from fleet.errors import CampaignError
from fleet.privacy import (
    ClipState,
    Noise,
    discrete_gaussian,
    epsilon,
    sensitivity_squared,
)
from tests.conftest import examples

SAID: dict[str, Any] = {"clip": 1000, "noise_multiplier": 2.0, "delta": 1e-5}
BASE: dict[str, Any] = {"name": "one", "coding": "masked"}
MASKING = Masking()


def privacy(**fields: Any) -> Privacy:
    return Privacy.model_validate({**SAID, **fields})


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"coding": "rice"}, "say coding masked"),
        ({"weighting": "samples"}, "say weighting uniform"),
        ({"asynchronous": {"buffer": 5}}, "leave it out"),
        ({"kind": "evaluate"}, "leave it out"),
    ],
)
def test_what_noise_cant_go_with_is_refused_with_a_remedy(
    fields: dict[str, Any], remedy: str
) -> None:
    config = {**BASE, "privacy": SAID}
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
        {"noise": "gateway"},
        {"adaptive": {"quantile": 1.0}},
        {"epsilon": 3.0},
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        privacy(**fields)


def test_devices_add_shares_and_the_coordinator_all_of_the_same_noise() -> None:
    shared = round_privacy(privacy(), Masking(least_devices=25), ClipState(1000.0), 2606)
    whole = round_privacy(privacy(noise="coordinator"), MASKING, ClipState(1000.0), 2606)
    assert (shared.protection.noise_variance, shared.coordinator_variance) == (160_000, 0)
    assert (whole.protection.noise_variance, whole.coordinator_variance) == (0, 4_000_000)
    assert shared.rho == pytest.approx(whole.rho) == pytest.approx(1 / (2 * 2.0**2))


def test_the_public_sees_the_noise_of_all_sets_where_devices_add_it() -> None:
    shared = round_privacy(privacy(), MASKING, ClipState(1000.0), 2606)
    assert shared.public_rho(1, 2606) == shared.rho
    assert shared.public_rho(4, 2606) == pytest.approx(shared.rho / 4)
    whole = round_privacy(privacy(noise="coordinator"), MASKING, ClipState(1000.0), 2606)
    assert whole.public_rho(4, 2606) == whole.rho


def test_noise_that_devices_cant_draw_is_refused_with_a_remedy() -> None:
    with pytest.raises(CampaignError, match="make clip or noise_multiplier less"):
        round_privacy(privacy(clip=100_000), MASKING, ClipState(100_000.0), 10)
    trusted = privacy(clip=100_000, noise="coordinator")
    round_privacy(trusted, MASKING, ClipState(100_000.0), 10)
    with pytest.raises(CampaignError, match=r"2\^60 or more; make clip or noise_multiplier less"):
        round_privacy(trusted, MASKING, ClipState(2.0**29), 10)
    with pytest.raises(ValidationError, match="make clip or noise_multiplier less"):
        CampaignConfig.model_validate({**BASE, "privacy": {**SAID, "clip": 100_000}})


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
    of = privacy(noise_multiplier=multiplier, noise=noise, adaptive={})
    says = round_privacy(of, Masking(least_devices=least), ClipState(clip), 2606)
    assert 1 <= says.norm_share <= 127
    assert says.protection.noise_variance <= 1 << 24
    assert discrete_gaussian(bytes(32), says.noise_variance, 1).size == 1
    assert says.rho <= 1 / (2 * multiplier**2) * (1 + 1e-6)
    shares = least if noise == "devices" else 1
    squared = sensitivity_squared(says.clip, says.norm_share)
    assert says.rho == Noise(says.noise_variance, shares).rho(squared, 2607)


def test_the_clip_goes_from_round_to_round_by_what_a_round_has_said() -> None:
    of = privacy(adaptive=AdaptiveClip(quantile=0.5, rate=0.2))
    first = first_clip(of)
    says = round_privacy(of, MASKING, first, 2606)
    # All norms were within the clip: the next one is smaller.
    second = clip_after(of, says, says.norm_share * 30, 30)
    assert second.clip == pytest.approx(1000 * math.exp(-0.1))
    assert clip_from_json(of, json.loads(json.dumps(clip_to_json(second)))) == second
    assert clip_from_json(of, None) == first
    fixed = privacy()
    assert clip_after(fixed, round_privacy(fixed, MASKING, first, 9), 0, 30) == first


def plan_sum(plan: str, values: int) -> PlanSum:
    places = np.arange(values)
    return PlanSum(places, np.ones(values, np.int64), np.full(values, 1000), 5, plan=plan)


def test_each_plans_sum_in_each_part_has_the_coordinators_noise_once() -> None:
    drawn: list[bytes] = []

    def entropy(size: int) -> bytes:
        drawn.append(bytes([len(drawn)]) * size)
        return drawn[-1]

    parts = [[plan_sum("a", 4000), plan_sum("a", 4000), plan_sum("b", 9)], [plan_sum("a", 4000)]]
    found = with_noise(parts, 90_000, entropy)
    assert len(drawn) == 3, "a key serves one vector"
    assert [[one.plan for one in part] for part in found] == [["a", "a", "b"], ["a"]]
    totals = [found[0][0].values + found[0][1].values - 2000, found[1][0].values - 1000]
    for total in totals:
        assert float(total.std()) == pytest.approx(300, rel=0.05)
    assert abs(np.corrcoef(*totals)[0, 1]) < 0.1
    assert np.any(found[0][2].values != 1000)
    assert all(np.all(one.values == 1000) for part in parts for one in part), "nothing is changed"


def test_a_set_that_counts_nothing_takes_no_noise_and_leaves_it_to_the_next() -> None:
    nothing = replace(plan_sum("a", 9), values=np.zeros(9, np.int64), weight=0)
    ((first, second),) = with_noise([[nothing, plan_sum("a", 9)]], 90_000, os.urandom)
    assert not np.any(first.values)
    assert np.any(second.values != 1000)


def test_a_rounds_plan_keeps_what_it_says() -> None:
    says = round_privacy(privacy(), MASKING, ClipState(1000.0), 2606)
    plan = RoundPlan(1, RoundKind.TRAIN, 1, "ab", 3, (), {}, {}, privacy=says)
    assert RoundPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    without = RoundPlan(1, RoundKind.TRAIN, 1, "ab", 3, (), {}, {})
    assert RoundPlan.from_json(without.to_json()).privacy is None
    assert epsilon(6 * says.rho, 1e-5) == pytest.approx(5.9, abs=1.0)
