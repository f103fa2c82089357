"""Aggregation against a slow reference that walks devices and values one by one."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.aggregation import (
    FedAvg,
    MasterState,
    PlanSum,
    blob_from_master,
    init,
    master_from_blob,
    plan_sum_from_manifest,
)
from fleet.errors import AggregationError
from fleet.protocol.manifest import Manifest
from tests.conftest import examples
from tests.fleet.coordinator import small_model

MANIFEST = Manifest.parse(json.dumps(small_model.manifest("a")))
PLANS = {plan.name: plan for plan in MANIFEST.plans}


def apply(state: MasterState, sums: list[PlanSum], learning_rate: float = 1.0) -> MasterState:
    return FedAvg(learning_rate=learning_rate).apply(state, [sums])


def reference(master: list[Fraction], devices: list[tuple[str, int, list[int]]]) -> list[Fraction]:
    """Master weights after a round, as exact fractions, straight from bundle.md."""
    first, coordinate, tensors = {}, 0, {}
    for tensor in small_model.manifest("a")["tensors"]:
        first[tensor["name"]] = coordinate
        tensors[tensor["name"]] = tensor
        coordinate += int(np.prod(tensor["shape"]))
    numerators = [Fraction(0)] * coordinate
    weights = [0] * coordinate
    for plan, samples, values in devices:
        position = 0
        for name, start, count, shift in small_model.SEGMENTS[plan]:
            tensor = tensors[name]
            last = tensor["shape"][-1]
            for row in range(int(np.prod(tensor["shape"][:-1]))):
                for column in range(start, start + count):
                    at = first[name] + row * last + column
                    step = Fraction(2**shift, 256 if tensor["dtype"] == "int8" else 1)
                    numerators[at] += samples * values[position] * step
                    weights[at] += samples
                    position += 1
        assert position == len(values)
    after = [
        value + (numerator / weight if weight else 0)
        for value, numerator, weight in zip(master, numerators, weights, strict=True)
    ]
    coordinate = 0
    for tensor in tensors.values():
        for at in range(coordinate, coordinate + int(np.prod(tensor["shape"]))):
            after[at] = max(Fraction(-tensor["limit"]), min(Fraction(tensor["limit"]), after[at]))
        coordinate += int(np.prod(tensor["shape"]))
    return after


def gateway_sums(devices: list[tuple[str, int, list[int]]]) -> list[PlanSum]:
    """What one gateway would send up for these devices."""
    sums: dict[str, np.ndarray] = {}
    weights: dict[str, int] = {}
    for plan, samples, values in devices:
        total = sums.setdefault(plan, np.zeros(len(values), np.int64))
        total += samples * np.array(values, np.int64)
        weights[plan] = weights.get(plan, 0) + samples
    return [
        plan_sum_from_manifest(MANIFEST, PLANS[plan], total.astype("<i8").tobytes(), weights[plan])
        for plan, total in sums.items()
    ]


@st.composite
def cohorts(draw: st.DrawFn) -> list[tuple[str, int, list[int]]]:
    devices = []
    for _ in range(draw(st.integers(1, 6))):
        plan = draw(st.sampled_from(sorted(PLANS)))
        seed = draw(st.integers(0, 2**32 - 1))
        size = draw(st.sampled_from([3, 300, 100_000]))
        values = np.random.default_rng(seed).integers(-size, size + 1, PLANS[plan].delta_values)
        devices.append((plan, draw(st.integers(1, 500)), [int(value) for value in values]))
    return devices


@examples(40)
@given(cohorts())
def test_mixed_plans_average_as_device_by_device(
    devices: list[tuple[str, int, list[int]]],
) -> None:
    state = init(MANIFEST.tensors, small_model.blob())
    before = [Fraction(float(value)) for value in state.master]
    expected = reference(before, devices)
    after = apply(state, gateway_sums(devices)).master
    # One float64 division and one addition: two roundings, of what is added and of the sum.
    for got, exact, old in zip(after, expected, before, strict=True):
        assert abs(Fraction(float(got)) - exact) <= (abs(exact) + abs(old)) / 2**51


@examples(40)
@given(cohorts(), st.randoms(use_true_random=False), st.integers(1, 3))
def test_order_and_spread_over_gateways_change_no_bit(
    devices: list[tuple[str, int, list[int]]], random: object, gateways: int
) -> None:
    state = init(MANIFEST.tensors, small_model.blob())
    together = apply(state, gateway_sums(devices)).master
    shuffled = list(devices)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    parts = [shuffled[start::gateways] for start in range(gateways)]
    sums = [one for part in reversed(parts) for one in gateway_sums(part)]
    assert np.array_equal(apply(state, sums).master, together)


def test_coordinates_that_nobody_trained_stay_exactly() -> None:
    state = init(MANIFEST.tensors, small_model.blob())
    plan = PLANS["small"]
    after = apply(state, gateway_sums([("small", 7, [5] * plan.delta_values)]))
    untouched = np.ones(MANIFEST.coordinates, bool)
    untouched[MANIFEST.plan_coordinates(plan)] = False
    assert np.array_equal(after.master[untouched], state.master[untouched])
    assert np.all(after.master[~untouched] != state.master[~untouched])


def test_small_steps_add_up_although_each_rounds_to_nothing() -> None:
    state = init(MANIFEST.tensors, small_model.blob())
    plan = PLANS["large"]
    coordinate = MANIFEST.plan_coordinates(plan)[0]
    before = state.master[coordinate]
    values = [0] * plan.delta_values
    values[0] = 10
    for _ in range(10):
        state = apply(state, gateway_sums([("large", 3, values)]))
    # 10 rounds of 10 · 2^2 / 256 steps.
    assert state.master[coordinate] == before + 10 * 10 * 4 / 256


def test_weights_saturate_at_the_limit_and_come_back_at_once() -> None:
    state = init(MANIFEST.tensors, small_model.blob())
    plan = PLANS["large"]
    coordinate = MANIFEST.plan_coordinates(plan)[0]
    values = [0] * plan.delta_values
    values[0] = 100_000
    state = apply(state, gateway_sums([("large", 1, values)]))
    assert state.master[coordinate] == 127
    values[0] = -64
    state = apply(state, gateway_sums([("large", 1, values)]))
    assert state.master[coordinate] == 126


@given(st.data())
@examples(30)
def test_what_counts_less_is_a_weighted_mean_with_the_same_bits_in_any_order(
    data: st.DataObject,
) -> None:
    size = PLANS["small"].delta_values
    arrived = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from([1.0, 0.5, 0.75, 0.125]),
                st.integers(1, 500),
                st.lists(st.integers(-3000, 3000), min_size=size, max_size=size),
            ),
            min_size=1,
            max_size=8,
        )
    )
    sums = [
        replace(one, scale=scale)
        for scale, samples, values in arrived
        for one in gateway_sums([("small", samples, values)])
    ]
    state = init(MANIFEST.tensors, small_model.blob())
    master = apply(state, sums).master
    # Weights of which each is a multiple of 1/8 are whole numbers of samples eight times as many.
    whole = [("small", int(8 * scale * samples), values) for scale, samples, values in arrived]
    exact = reference([Fraction(float(one)) for one in state.master], whole)
    assert np.allclose(master, [float(one) for one in exact], rtol=0, atol=1e-9)
    mixed = data.draw(st.permutations(sums))
    assert np.array_equal(apply(state, mixed).master, master)


def test_server_learning_rate_scales_the_step() -> None:
    state = init(MANIFEST.tensors, small_model.blob())
    sums = gateway_sums([("small", 2, [8] * PLANS["small"].delta_values)])
    whole = apply(state, sums).master - state.master
    half = apply(state, sums, 0.5).master - state.master
    assert np.array_equal(half * 2, whole)


def test_a_round_without_weight_changes_nothing() -> None:
    state = init(MANIFEST.tensors, small_model.blob())
    assert np.array_equal(apply(state, []).master, state.master)
    empty = plan_sum_from_manifest(
        MANIFEST, PLANS["small"], bytes(8 * PLANS["small"].delta_values), 0
    )
    assert np.array_equal(apply(state, [empty]).master, state.master)


@pytest.mark.parametrize(
    ("values", "weight", "message"),
    [
        (bytes(8), 1, "different bundles"),
        (np.full(PLANS["small"].delta_values, 2**50, "<i8").tobytes(), 1, "exact range"),
        (np.full(PLANS["small"].delta_values, -(2**63), "<i8").tobytes(), 1, "exact range"),
        (np.full(PLANS["small"].delta_values, 1, "<i8").tobytes(), 0, "weight 0"),
        (
            np.full(PLANS["small"].delta_values, 1, "<i8").tobytes(),
            -1,
            "counts of samples or devices",
        ),
    ],
)
def test_absurd_sums_are_refused_by_name(values: bytes, weight: int, message: str) -> None:
    state = init(MANIFEST.tensors, small_model.blob())
    with pytest.raises(AggregationError, match=message):
        apply(state, [plan_sum_from_manifest(MANIFEST, PLANS["small"], values, weight)])


def test_a_blob_goes_through_master_weights_unchanged() -> None:
    blob = small_model.blob()
    master = master_from_blob(MANIFEST.tensors, blob)
    assert blob_from_master(MANIFEST.tensors, master, len(blob)) == blob


def test_master_weights_round_to_the_nearest_even_step() -> None:
    blob = small_model.blob()
    master = master_from_blob(MANIFEST.tensors, blob)
    master[:4] = [0.5, 1.5, -0.5, 200.0]
    packed = blob_from_master(MANIFEST.tensors, master, len(blob))
    assert list(master_from_blob(MANIFEST.tensors, packed)[:4]) == [0, 2, 0, 127]


def test_a_short_blob_and_weights_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(AggregationError, match="another bundle"):
        master_from_blob(MANIFEST.tensors, small_model.blob()[:-8])
    master = master_from_blob(MANIFEST.tensors, small_model.blob())
    master[3] = np.nan
    with pytest.raises(AggregationError, match="not finite"):
        blob_from_master(MANIFEST.tensors, master, len(small_model.blob()))
