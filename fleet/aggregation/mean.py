"""Weighted mean of sparse deltas with mixed plans, in integers up to the one division.

For device i of weight n_i (its training samples, or 1) and delta value v_i[c] at coordinate c:

    change[c] = Σ_i n_i·v_i[c] / Σ_{i that trained c} n_i

per coordinate over those who trained it. Gateways sent Σ n_i·v_i per plan as int64, so the
result doesn't depend on the order of devices, on how they are spread over gateways, or on how
often a round was resumed.

Where deltas began with different versions (buffered asynchronous aggregation, arXiv 2106.06639),
each counts s(τ) = (1+τ)^-a of that (arXiv 1903.03934), τ being the versions made since it began:

    change[c] = Σ_τ s(τ)·N_τ[c] / Σ_τ s(τ)·W_τ[c]

N_τ and W_τ are the integers above over the deltas of one τ. Only these few products and their sums,
from the freshest on, are rounded: the same arrivals give the same bits, in whatever order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fleet.aggregation.master import (
    FloatVector,
    IndexVector,
    master_from_blob,
)
from fleet.errors import AggregationError
from fleet.protocol.manifest import Manifest, PlanEntry, TensorEntry

IntVector = npt.NDArray[np.int64]
BoolVector = npt.NDArray[np.bool_]

# int8 weights travel in 1/256 steps; everything is summed in this unit.
UNITS_PER_STEP = 256
# Below this magnitude an int64 is a float64 without rounding.
EXACT_LIMIT = 2**53


@dataclass(frozen=True)
class MasterState:
    """Master weights (steps) over a layout; `applied` counts aggregations.

    `rule_state` is what the aggregation rule carries on, opaque to everybody else.
    """

    layout: tuple[TensorEntry, ...]
    master: FloatVector
    applied: int = 0
    rule_state: bytes = b""


@dataclass(frozen=True)
class PlanSum:
    """Σ n_i·v_i of one plan from one gateway (or several added up).

    `coordinates` and `units` (1/256 steps per delta value, powers of two) have one entry
    per delta value; `values` is that sum in delta values; `weight` is Σ n_i; `scale` (above 0) is
    what all of it counts; `plan` its id.
    """

    coordinates: IndexVector
    units: IntVector
    values: IntVector
    weight: int
    scale: float = 1.0
    plan: str = ""


def init(layout: Sequence[TensorEntry], blob: bytes) -> MasterState:
    """State whose master weights are exactly a bundle's weights."""
    return MasterState(tuple(layout), master_from_blob(layout, blob))


def plan_sum_from_manifest(
    manifest: Manifest, plan: PlanEntry, values: bytes, weight: int
) -> PlanSum:
    """A gateway's sum (`values`: int64, little endian) placed on the model's coordinates."""
    if len(values) != 8 * plan.delta_values:
        raise AggregationError(
            f"sum for plan {plan.name} ({plan.id[:8]}) has {len(values)} bytes, the plan has "
            f"{plan.delta_values} values of 8 bytes: gateway and coordinator have different bundles"
        )
    # A power of two between 1/256 and 2^31: the product is exact.
    units = (manifest.steps_per_unit(plan) * UNITS_PER_STEP).astype(np.int64)
    return PlanSum(
        manifest.plan_coordinates(plan),
        units,
        np.frombuffer(values, "<i8").astype(np.int64),
        weight,
        plan=plan.id,
    )


def add_plan_sums(sums: Iterable[PlanSum], size: int) -> tuple[IntVector, IntVector]:
    """Per-coordinate numerators (1/256 steps) and weights, int64, shape [size], without `scale`.

    Raises `AggregationError` where a magnitude could leave what int64 and float64 hold exactly.
    """
    numerators = np.zeros(size, np.int64)
    weights = np.zeros(size, np.int64)
    bound = 0
    for one in sums:
        if one.values.shape != one.coordinates.shape or one.units.shape != one.coordinates.shape:
            raise AggregationError("a plan's sum, coordinates and units differ in length")
        if one.weight < 0:
            raise AggregationError(
                f"a sum has weight {one.weight}; weights are counts of samples or devices"
            )
        if one.weight == 0:
            if np.any(one.values):
                raise AggregationError("a sum of weight 0 has values other than 0")
            continue
        if one.coordinates.size == 0:
            continue
        if one.coordinates.min() < 0 or one.coordinates.max() >= size:
            raise AggregationError(f"a plan trains coordinates outside 0 … {size - 1}")
        # In Python integers: the check itself must not overflow.
        largest = max(int(one.values.max()), -int(one.values.min())) * int(one.units.max())
        bound += largest
        if bound >= EXACT_LIMIT:
            raise AggregationError(
                f"sums reach {bound}, beyond the exact range of {EXACT_LIMIT}: "
                "a device sent absurd values, or the cohort is too large for one sum"
            )
        # add.at: a plan may name a coordinate twice only by mistake, but then both count.
        np.add.at(numerators, one.coordinates, one.values * one.units)
        np.add.at(weights, one.coordinates, one.weight)
    return numerators, weights


def mean_change(plan_sums: Iterable[PlanSum], size: int) -> tuple[FloatVector, BoolVector]:
    """Weighted mean of the deltas per coordinate (steps, shape [size]), and who was trained.

    0 where nobody trained a coordinate.
    """
    by_scale: dict[float, list[PlanSum]] = {}
    for one in plan_sums:
        by_scale.setdefault(one.scale, []).append(one)
    numerators, weights = np.zeros(size), np.zeros(size)
    for scale in sorted(by_scale, reverse=True):
        exact, exact_weights = add_plan_sums(by_scale[scale], size)
        numerators += scale * exact
        weights += scale * exact_weights
    touched = weights > 0
    change = np.zeros(size)
    change[touched] = numerators[touched] / (weights[touched] * float(UNITS_PER_STEP))
    return change, touched


STALENESS_STEPS = 1 << 20
"""What is as fresh as can be counts so many steps."""


def staleness_scale(staleness: int, exponent: float) -> float:
    """(1 + τ)^-a (FedAsync's polynomial, arXiv 1903.03934), a whole number of 2^-20, never 0.

    Machines may differ in the last bits of a power; rounded they don't.
    """
    steps = round(STALENESS_STEPS * math.pow(1.0 + staleness, -exponent))
    return max(1, steps) / STALENESS_STEPS


def moved(state: MasterState, change: FloatVector, rule_state: bytes = b"") -> MasterState:
    """`state` after one aggregation that adds `change` (steps).

    Master values are clamped to their tensor's ±limit, as the devices clamp theirs, so that
    a saturated weight doesn't drift away from what the devices hold.
    """
    master = state.master + change
    start = 0
    for slot in state.layout:
        part = master[start : start + slot.size]
        np.clip(part, -slot.limit, slot.limit, out=part)
        start += slot.size
    return replace(state, master=master, applied=state.applied + 1, rule_state=rule_state)
