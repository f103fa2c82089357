"""Who hides in which set, and what is left of a sum that was unmasked."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.aggregation.rules import BucketMedian, FedAvg, SetMedian, WantedSets
from fleet.campaign import (
    CampaignConfig,
    DeviceInfo,
    Members,
    RoundKind,
    RoundPlan,
    hide,
    plan_round,
)
from fleet.campaign.masking import Masking, Protection, deal, mask_parameters, set_sizes
from fleet.campaign.privacy import SPENT
from fleet.campaign.sets import MaskedSet, SetOutcome, differences, unmasked
from fleet.errors import BudgetSpentError, CampaignError, LeasedError
from fleet.protocol.manifest import Manifest
from fleet.protocol.masking import MOST_DEVICES, MaskParameters
from tests.fleet.coordinator import small_model

MANIFEST = Manifest.parse(json.dumps(small_model.manifest("a")))
MANIFESTS = {MANIFEST.bundle_id: MANIFEST}
PLANS = {plan.name: plan for plan in MANIFEST.plans}
KEY = bytes(range(32))
POOL = {"small": 2000, "middle": 5000, "large": 20_000}


def config(least: int = 3, **changes: Any) -> CampaignConfig:
    masking = {"least_devices": least, "spare": 0.0, **changes.pop("masking", {})}
    return CampaignConfig.model_validate(
        {"name": "one", "coding": "masked", "masking": masking, **changes}
    )


def devices(**counts: int) -> list[DeviceInfo]:
    """So many that can carry each update plan and no larger one."""
    return [
        DeviceInfo.from_hello(
            f"g{number % 2}",
            small_model.device_entry(f"{plan}-{number}", "a", free_sram_bytes=POOL[plan]),
        )
        for plan, count in counts.items()
        for number in range(count)
    ]


def hidden(of: CampaignConfig, herd: list[DeviceInfo], **more: Any) -> RoundPlan:
    leases = {one.device: 1 for one in herd}
    plan = plan_round(of, 1, RoundKind.TRAIN, herd, MANIFESTS, "0" * 64, leases)
    return hide(of, plan, herd, MANIFESTS, [KEY], **more)


def sets_in(plan: RoundPlan) -> dict[tuple[str, int], set[str]]:
    names = {one.id: name for name, one in PLANS.items()}
    found: dict[tuple[str, int], set[str]] = {}
    for one in plan.assignments:
        found.setdefault((names[one.plan], one.part), set()).add(one.device)
    return found


@given(
    st.integers(0, 3000),
    st.integers(2, MOST_DEVICES),
    st.integers(0, 100),
    st.sampled_from([FedAvg().sets(), SetMedian().sets(), BucketMedian(buckets=8).sets()]),
)
def test_sets_have_from_the_least_to_the_most_that_masks_have_room_for(
    count: int, least: int, spare: int, rule: WantedSets
) -> None:
    sizes = set_sizes(count, least, least + spare, rule)
    if count < rule.least * least:
        assert sizes == []
        return
    assert all(least <= size <= MOST_DEVICES for size in sizes)
    assert len(sizes) >= rule.least
    assert max(sizes) - min(sizes) <= 1
    # Nobody is left out but for those that no set has room for.
    assert sum(sizes) == count or sum(sizes) == len(sizes) * MOST_DEVICES
    most = max(rule.most, -(-count // MOST_DEVICES))
    assert len(sizes) <= most


def test_a_further_set_is_dealt_only_where_each_keeps_its_spare() -> None:
    """Two sets of 160 would count nothing as soon as a device of each stays away."""
    assert set_sizes(320, 160, 200, FedAvg().sets()) == [MOST_DEVICES]
    assert set_sizes(400, 160, 200, FedAvg().sets()) == [200, 200]


def test_devices_are_dealt_by_the_rounds_seed_whatever_their_order() -> None:
    names = [f"cow-{number}" for number in range(12)]
    first = deal(7, names, [4, 4, 4])
    assert first == deal(7, reversed(names), [4, 4, 4])
    assert first != deal(8, names, [4, 4, 4])
    assert sorted(first.values()) == [0] * 4 + [1] * 4 + [2] * 4
    assert len(deal(7, names, [4, 4])) == 8


def test_a_rare_plans_devices_train_the_next_smaller_one_and_hide_there() -> None:
    plan = hidden(config(), devices(large=2, middle=2, small=5))
    sizes = {name: len(of) for (name, _), of in sets_in(plan).items()}
    assert sizes == {"middle": 4, "small": 5}
    moved = next(one for one in plan.assignments if one.device == "large-0")
    assert moved.plan_reason == "2 devices train large, too few to hide in"
    assert plan.skipped == {}


def test_who_finds_nobody_to_hide_in_is_not_asked() -> None:
    plan = hidden(config(least=4), devices(large=5, small=2))
    assert sets_in(plan).keys() == {("large", 0)}
    assert plan.skipped == {"small-0": "too-few-to-hide", "small-1": "too-few-to-hide"}
    assert (plan.wanted, sum(plan.targets.values())) == (5, 5)
    with pytest.raises(CampaignError, match=r"3 devices are too few to hide.*has 4 at least"):
        hidden(config(least=4), devices(small=2, large=1))


def test_devices_that_another_campaign_has_may_come_back_and_then_be_enough() -> None:
    herd, of = devices(small=4), config(least=4)
    plan = plan_round(of, 1, RoundKind.TRAIN, herd, MANIFESTS, "0" * 64, {"small-1": 1})
    with pytest.raises(LeasedError):
        hide(of, plan, herd, MANIFESTS, [KEY])


@pytest.mark.parametrize(
    ("spent", "wanted"), [(1, BudgetSpentError), (2, BudgetSpentError), (0, CampaignError)]
)
def test_where_too_few_are_left_to_hide_it_is_said_what_keeps_the_others(
    spent: int, wanted: type[CampaignError]
) -> None:
    """Spent budgets are why only where with those devices there would be enough."""
    herd = devices(small=6)
    names = [one.device for one in herd]
    waiting = {**dict.fromkeys(names[:spent], SPENT), **dict.fromkeys(names[spent:3], "ill")}
    members = Members(frozenset(names), waiting=waiting)
    leases = dict.fromkeys(names, 1)
    of = config(least=4)
    plan = plan_round(of, 1, RoundKind.TRAIN, herd, MANIFESTS, "0" * 64, leases, members)
    with pytest.raises(CampaignError) as raised:
        hide(of, plan, herd, MANIFESTS, [KEY])
    assert type(raised.value) is wanted
    said = f"{spent} have spent theirs ({SPENT})" if spent else "3: ill"
    assert said in str(raised.value)


def test_a_smaller_plan_that_the_campaign_does_not_allow_hides_nobody() -> None:
    plan = hidden(config(plans=("large", "small")), devices(large=2, small=3))
    assert {name for name, _ in sets_in(plan)} == {"small"}
    with pytest.raises(CampaignError, match="too few to hide"):
        hidden(config(plans=("large",)), devices(large=2))


@pytest.mark.parametrize(
    ("rule", "sizes"),
    [
        ({"rule": "fedavg"}, [24]),
        ({"rule": "bucket-median", "buckets": 3}, [8, 8, 8]),
        ({"rule": "set-median", "most_sets": 5}, [4, 5, 5, 5, 5]),
        ({"rule": "set-median", "least_sets": 9, "most_sets": 9}, [24]),
    ],
)
def test_rules_say_how_many_sets_they_want(rule: dict[str, Any], sizes: list[int]) -> None:
    plan = hidden(config(aggregation=rule), devices(small=24))
    assert sorted(len(of) for of in sets_in(plan).values()) == sizes
    assert plan.masks is not None
    assert plan.masks.parts == len(sizes)
    assert RoundPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_rounds_masks_are_those_of_its_largest_set_and_of_what_else_protects() -> None:
    protection = Protection(clip=400, norm_share=100, noise_variance=90, least_devices=6)
    plan = hidden(config(), devices(small=24), protection=protection)
    assert plan.masks is not None
    parameters = plan.masks.parameters
    assert (parameters.clip, parameters.norm_share, parameters.noise_variance) == (400, 100, 90)
    assert parameters.least_devices == 6
    assert {len(of) for of in sets_in(plan).values()} == {6}
    assert plan.masks.keys == (KEY,)


def test_what_only_scores_is_not_masked() -> None:
    herd = devices(small=1)
    leases = {one.device: 1 for one in herd}
    of = config(least=9)
    plan = plan_round(of, 1, RoundKind.SCORE_LAST, herd, MANIFESTS, "0" * 64, leases)
    assert hide(of, plan, herd, MANIFESTS, []) is plan


@given(st.integers(2, MOST_DEVICES))
def test_sums_of_devices_that_do_as_they_should_leave_most_of_the_numbers_to_others(
    count: int,
) -> None:
    found = mask_parameters(Masking(), count, Protection())
    assert found.bits == 16
    assert found.value_bound >= 127
    if count <= 64:
        assert found.largest_sum(count) <= 2**15 / 4


def test_a_larger_bound_and_noise_take_more_bits() -> None:
    masking = Masking(value_bound=65535)
    assert mask_parameters(masking, 256, Protection()).bits == 32
    assert mask_parameters(masking, 24, Protection()).bits == 24
    noisy = mask_parameters(Masking(), 24, Protection(clip=400, noise_variance=500_000))
    assert noisy.bits == 24


def members(count: int) -> Any:
    return tuple(type("Report", (), {"device": f"cow-{number}"})() for number in range(count))


def test_a_sum_is_read_with_its_sign_and_one_that_cannot_be_counts_nothing() -> None:
    parameters = MaskParameters(16, 10, least_devices=2)
    masks = [np.array([60_000, 5, 7], np.uint32), np.array([9_000, 1, 2], np.uint32)]
    wanted = np.array([-30, 30, 0], np.int64)
    values = (wanted + sum(one.astype(np.int64) for one in masks)) % (1 << 16)
    of = MaskedSet("p", 0, members(3), values.astype(np.uint32))
    found = unmasked(of, masks, parameters)
    assert found.values is not None
    assert found.values.tolist() == [-30, 30, 0]
    beyond = MaskedSet("p", 0, members(3), (values.astype(np.uint32) + np.uint32(1)) % 65536)
    assert unmasked(beyond, masks, parameters).why == "beyond-range"


def test_the_norms_value_is_no_value_of_a_delta() -> None:
    parameters = MaskParameters(16, 10, clip=9, norm_share=5, least_devices=2)
    of = MaskedSet("p", 0, members(2), np.array([3, 10], np.uint32))
    found = unmasked(of, [np.zeros(2, np.uint32)], parameters)
    assert found.values is not None
    assert (found.values.tolist(), found.norm_sum) == ([3], 10)


def test_what_two_rounds_give_away_is_told_by_how_few_devices_they_differ() -> None:
    now = [SetOutcome("p", 0, ("a", "b", "c")), SetOutcome("q", 0, ("d", "e"))]
    before = [("p", ["a", "b", "d"]), ("p", ["x", "y"]), ("r", ["d", "e"])]
    assert differences(now, before) == [2, None]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"weighting": "samples"}, "say weighting uniform"),
        ({"asynchronous": {"buffer": 2}}, "unmasked once"),
        ({"cohort_size": 2}, "too few to hide"),
        ({"coding": "rice"}, "say coding masked"),
        ({"coding": "rice", "masking": None, "aggregation": {"rule": "set-median"}}, "set-median"),
    ],
)
def test_a_masked_campaign_that_cannot_be_is_refused_with_what_to_do(
    changes: dict[str, Any], named: str
) -> None:
    fields = {"name": "one", "coding": "masked", "masking": {"least_devices": 3}, **changes}
    with pytest.raises(ValueError, match=named):
        CampaignConfig.model_validate(fields)


def test_a_masked_campaign_is_robust_and_uniform_where_nothing_else_is_said() -> None:
    plain = CampaignConfig.model_validate({"name": "one", "coding": "masked"})
    assert (plain.weighting, plain.aggregation) == ("uniform", SetMedian())
    again = CampaignConfig.model_validate(plain.as_file())
    assert again == plain
    assert config(aggregation={"rule": "fedavg"}).aggregation == FedAvg()
