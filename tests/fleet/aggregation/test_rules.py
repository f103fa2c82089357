"""Rules beyond the mean: what they remember, and whom they don't believe."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from fleet.aggregation import (
    AggregationRule,
    BucketMedian,
    FedAvg,
    MasterState,
    PlanSum,
    Rule,
    ServerAdam,
    ServerMomentum,
    ServerYogi,
    SetMedian,
    init,
)
from fleet.errors import AggregationError
from tests.fleet.aggregation.test_mean import MANIFEST, PLANS, gateway_sums
from tests.fleet.coordinator import small_model

RULES: TypeAdapter[AggregationRule] = TypeAdapter(Rule)


def start() -> MasterState:
    return init(MANIFEST.tensors, small_model.blob())


def sums_of(plan: str, value: int, samples: int = 4) -> list[PlanSum]:
    return gateway_sums([(plan, samples, [value] * PLANS[plan].delta_values)])


def test_a_rule_is_found_by_its_name_and_its_parameters_are_checked() -> None:
    assert RULES.validate_python({"rule": "fedavg"}) == FedAvg()
    found = RULES.validate_python({"rule": "server-momentum", "momentum": 0.5})
    assert found == ServerMomentum(momentum=0.5)
    assert RULES.validate_json('{"rule": "bucket-median", "buckets": 3}').fold() == {
        "name": "buckets",
        "count": 3,
    }
    for wrong in (
        {"rule": "mean"},
        {"rule": "fedavg", "buckets": 3},
        {"rule": "bucket-median", "buckets": 0},
    ):
        with pytest.raises(ValidationError):
            RULES.validate_python(wrong)


def test_momentum_adds_up_what_goes_one_way() -> None:
    rule = ServerMomentum(momentum=0.5)
    first = rule.apply(start(), [sums_of("small", 1)])
    second = rule.apply(first, [sums_of("small", 1)])
    once = first.master - start().master
    twice = second.master - first.master
    touched = once != 0
    assert np.any(touched)
    assert np.allclose(twice[touched], 1.5 * once[touched], rtol=1e-12)


def test_momentum_without_momentum_is_fedavg() -> None:
    sums = [sums_of("large", 3)]
    expected = FedAvg(learning_rate=0.5).apply(start(), sums)
    found = ServerMomentum(momentum=0.0, learning_rate=0.5).apply(start(), sums)
    assert np.array_equal(found.master, expected.master)


def test_coordinates_that_nobody_trains_wait_with_their_momentum() -> None:
    rule = ServerMomentum()
    after_large = rule.apply(start(), [sums_of("large", 2)])
    after_small = rule.apply(after_large, [sums_of("small", 2)])
    only_large = np.setdiff1d(
        MANIFEST.plan_coordinates(PLANS["large"]), MANIFEST.plan_coordinates(PLANS["small"])
    )
    assert only_large.size
    assert np.array_equal(after_small.master[only_large], after_large.master[only_large])


def test_momentum_of_another_model_is_refused() -> None:
    state = MasterState(MANIFEST.tensors, start().master, 0, bytes(16))
    with pytest.raises(AggregationError, match="momentum of 2 values"):
        ServerMomentum().apply(state, [sums_of("small", 1)])


@pytest.mark.parametrize("rule", [ServerAdam(), ServerYogi()])
def test_an_adaptive_rule_moves_large_and_small_changes_nearly_alike(rule: AggregationRule) -> None:
    """As the formula says: for one tensor, m/(√v + τs) with m and v of the first round."""
    values = [1] * PLANS["small"].delta_values
    values[0] = 20
    sums = gateway_sums([("small", 4, values)])
    change = FedAvg().apply(start(), [sums]).master - start().master
    step = rule.apply(start(), [sums]).master - start().master
    at = 0
    for slot in MANIFEST.tensors:
        of_tensor = slice(at, at + slot.size)
        at += slot.size
        own = change[of_tensor]
        trained = own != 0
        if np.any(trained):
            scale = np.sqrt(np.mean(np.square(own[trained])))
            expected = scale * own / (np.abs(own) + 0.1 * scale)
            assert np.allclose(step[of_tensor], expected, rtol=1e-9)
    assert np.array_equal(step != 0, change != 0)


def test_yogi_forgets_a_large_change_more_slowly_than_adam() -> None:
    sizes = {}
    for rule in (ServerAdam(), ServerYogi()):
        state = rule.apply(start(), [sums_of("small", 50)])
        for _ in range(5):
            before, state = state, rule.apply(state, [sums_of("small", 1)])
        moments = np.frombuffer(state.rule_state, "<f8")
        sizes[rule.rule] = moments[moments.size // 2 :].max()
        assert not np.array_equal(before.master, state.master)
    assert sizes["server-yogi"] > sizes["server-adam"]


def test_moments_of_another_model_are_refused() -> None:
    state = MasterState(MANIFEST.tensors, start().master, 0, bytes(16))
    with pytest.raises(AggregationError, match="moments of 1 values"):
        ServerAdam().apply(state, [sums_of("small", 1)])


def test_the_median_of_bucket_means_does_not_follow_one_hostile_bucket() -> None:
    honest = [sums_of("small", 2) for _ in range(4)]
    hostile = sums_of("small", 1_000_000)
    rule = BucketMedian(buckets=5)
    expected = FedAvg().apply(start(), [sums_of("small", 2)])
    found = rule.apply(start(), [*honest, hostile])
    assert np.array_equal(found.master, expected.master)
    followed = FedAvg().apply(start(), [[one for part in (*honest, hostile) for one in part]])
    assert not np.array_equal(followed.master, expected.master), "the mean does follow it"


def test_the_median_is_over_those_buckets_that_trained_a_coordinate() -> None:
    rule = BucketMedian(buckets=4)
    found = rule.apply(start(), [sums_of("large", 2), [], sums_of("small", 2), []])
    expected = FedAvg().apply(start(), [sums_of("large", 2)])
    assert np.array_equal(found.master, expected.master)


def test_folds_that_do_not_fit_the_rule_are_refused() -> None:
    with pytest.raises(AggregationError, match="2 buckets came where 3"):
        BucketMedian(buckets=3).apply(start(), [[], []])
    with pytest.raises(AggregationError, match="2 parts came where one"):
        FedAvg().apply(start(), [[], []])


def of_devices(plan: str, *values: int) -> list[PlanSum]:
    return gateway_sums([(plan, 1, [one] * PLANS[plan].delta_values) for one in values])


def test_a_median_over_sets_leaves_a_hostile_one_alone() -> None:
    rule = SetMedian()
    honest = rule.apply(start(), [of_devices("small", 4, 6), of_devices("small", 5), []])
    sets = [of_devices("small", 5, 5), of_devices("small", 5), of_devices("small", 20_000)]
    moved = rule.apply(start(), sets)
    assert np.array_equal(moved.master, honest.master)
    assert rule.chosen(sets) == "median over 3 sets"


def test_too_few_sets_are_averaged_over_their_devices() -> None:
    rule = SetMedian()
    sets = [of_devices("small", 1, 2, 3), of_devices("small", 10)]
    wanted = FedAvg().apply(start(), [[one for part in sets for one in part]])
    assert np.array_equal(rule.apply(start(), sets).master, wanted.master)
    assert rule.chosen(sets) == "mean, since 2 sets are too few for a median (least_sets 3)"


def test_each_coordinate_has_the_median_of_the_sets_that_trained_it() -> None:
    """Where a large plan has one set and a small one three, only what they share has a median."""
    sets = [
        [*of_devices("small", 2), *of_devices("large", 2)],
        of_devices("small", 2),
        of_devices("small", 500),
    ]
    found = SetMedian().apply(start(), sets).master - start().master
    wanted = FedAvg().apply(start(), [of_devices("large", 2)]).master - start().master
    alone = FedAvg().apply(start(), [of_devices("small", 2)]).master - start().master
    only_large = (wanted != 0) & (alone == 0)
    assert np.array_equal(found[only_large], wanted[only_large])
    small = (alone != 0) & (wanted == 0)
    assert np.array_equal(found[small], alone[small])


def spoilt(plan: str) -> list[PlanSum]:
    """A set that was dealt, and counts nothing."""
    return gateway_sums([(plan, 0, [0] * PLANS[plan].delta_values)])


def test_where_enough_sets_were_dealt_and_too_few_count_nothing_changes() -> None:
    rule = SetMedian()
    sets = [of_devices("small", 1), of_devices("small", 900), spoilt("small")]
    assert np.array_equal(rule.apply(start(), sets).master, start().master)
    assert rule.chosen(sets) == (
        "no change, since 2 of 3 sets are too few for a median (least_sets 3)"
    )
    fourth = [*sets, of_devices("small", 2)]
    wanted = FedAvg().apply(start(), [of_devices("small", 2)]).master
    assert np.array_equal(rule.apply(start(), fourth).master, wanted)
    assert rule.chosen(fourth) == "median over 3 sets"
    two = [of_devices("small", 2), spoilt("small")]
    assert np.array_equal(rule.apply(start(), two).master, wanted)
    assert rule.chosen(two) == "mean, since 1 sets are too few for a median (least_sets 3)"


def test_spoilt_sets_of_one_plan_keep_no_other_from_its_mean() -> None:
    """Two of three small sets are spoilt; the large one is the only one of its kind."""
    sets = [
        [*of_devices("small", 800), *of_devices("large", 2)],
        spoilt("small"),
        spoilt("small"),
    ]
    found = SetMedian().apply(start(), sets).master - start().master
    large = FedAvg().apply(start(), [of_devices("large", 2)]).master - start().master
    is_small = FedAvg().apply(start(), [of_devices("small", 2)]).master != start().master
    assert np.array_equal(found, np.where(is_small, 0.0, large))
    assert SetMedian().chosen(sets) == (
        "mean, since 1 sets are too few for a median (least_sets 3); "
        "no change where fewer than 3 of the sets dealt count"
    )


@pytest.mark.parametrize(
    "rule", [FedAvg(), ServerMomentum(), ServerAdam(), BucketMedian(buckets=3)]
)
def test_a_set_that_counts_nothing_is_nothing_to_the_other_rules(rule: AggregationRule) -> None:
    without = [of_devices("small", 4), [], of_devices("small", 9)]
    dealt = [without[0], spoilt("small"), without[2]]
    moved, wanted = (rule.apply(start(), rule.of_sets(one)) for one in (dealt, without))
    assert np.array_equal(moved.master, wanted.master)
    assert moved.rule_state == wanted.rule_state


def test_sets_beyond_the_buckets_join_them() -> None:
    rule = BucketMedian(buckets=2)
    sets = [of_devices("small", value) for value in (1, 2, 3)]
    joined = rule.of_sets(sets)
    assert [len(part) for part in joined] == [2, 1]
    assert FedAvg().of_sets(sets) == [[one for part in sets for one in part]]
