"""Where fewer than half of the buckets are hostile, they move no value beyond the honest ones'."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.aggregation import AggregationRule, BucketMedian, PlanSum, SetMedian, init
from tests.fleet.aggregation.test_mean import MANIFEST, PLANS, gateway_sums
from tests.fleet.coordinator import small_model

PLAN = "small"
VALUES = PLANS[PLAN].delta_values
HONEST = st.integers(-50, 50)
ANYTHING = st.integers(-(2**20), 2**20)


def part(rows: list[list[int]]) -> list[PlanSum]:
    """The sum of devices that count one each and have these deltas."""
    return gateway_sums([(PLAN, 1, row) for row in rows])


@pytest.mark.parametrize("rule", [BucketMedian(buckets=5), SetMedian()])
@given(data=st.data())
def test_a_minority_of_hostile_buckets_stays_within_the_honest_ones(
    rule: AggregationRule, data: st.DataObject
) -> None:
    def deltas(of: st.SearchStrategy[int]) -> list[list[int]]:
        row = st.lists(of, min_size=VALUES, max_size=VALUES)
        return data.draw(st.lists(row, min_size=1, max_size=2))

    honest = [part(deltas(HONEST)) for _ in range(3)]
    hostile = [part(deltas(ANYTHING)) for _ in range(2)]
    state = init(MANIFEST.tensors, small_model.blob())
    alone = [BucketMedian(buckets=1).apply(state, [one]).master - state.master for one in honest]
    parts = data.draw(st.permutations([*honest, *hostile]))
    moved = rule.apply(state, parts).master - state.master
    assert np.all(moved >= np.min(alone, axis=0) - 1e-9)
    assert np.all(moved <= np.max(alone, axis=0) + 1e-9)
