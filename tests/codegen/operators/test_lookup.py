"""Functions of one tensor, and the tables that devices have of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.emit.layers import layers_source
from codegen.errors import ModelError
from codegen.graph.ir import Graph, Tensor
from codegen.operators.functions import KNOWN, Function, X, composed, evaluated
from codegen.operators.lookup import Lookup, lookup_arithmetic
from codegen.program.lowering import lower
from codegen.program.plans import Plan
from tests.codegen.random_graphs import FUNCTIONS, full_plan, random_graph
from tests.conftest import examples

PARAMETERS: dict[str, tuple[object, ...]] = {
    "add": (("tanh", X),),
    "affine": (-1.5, 0.3),
    "clip": (-0.7, None),
    "elu": (0.8,),
    "leaky": (-0.2,),
    "mul": (("sigmoid", X),),
    "power": (3,),
}
INNER = ("affine", X, 1.3, -0.2)
POSITIVE = ("affine", ("sigmoid", X), 2.0, 0.3)


@pytest.mark.parametrize("name", sorted(KNOWN.keys() - {"coded"}))
def test_every_function_has_its_own_derivative(name: str) -> None:
    inside = POSITIVE if name in ("log", "reciprocal") else INNER
    function: Function = (name, inside, *PARAMETERS.get(name, ()))
    x = np.linspace(-4, 4, 401) + 1e-4  # next to the bends, not on them
    step = 1e-6
    (above, _), (below, _) = (evaluated(function, x + side) for side in (step, -step))
    value, slope = evaluated(function, x)
    np.testing.assert_allclose(slope, (above - below) / (2 * step), atol=1e-6)
    inner = evaluated(inside, x)[0]
    np.testing.assert_allclose(evaluated(composed(function, X), x)[0], value)
    outer: Function = (name, X, *PARAMETERS.get(name, ()))
    np.testing.assert_allclose(evaluated(composed(outer, inside), x)[0], evaluated(outer, inner)[0])


def test_what_is_coded_in_between_is_rounded_and_its_slope_passes_where_it_has_codes() -> None:
    x = np.linspace(-4, 4, 401)
    values, slopes = evaluated(("coded", INNER, 0.03, 20), x)
    exact, _ = evaluated(INNER, x)
    steps = values / 0.03
    assert np.abs(steps - np.rint(steps)).max() < 1e-9
    inside = (exact > 0.03 * -148) & (exact < 0.03 * 107)
    assert np.abs(values - exact)[inside].max() <= 0.015 + 1e-9
    assert (slopes[inside] == 1.3).all()
    assert not slopes[(exact < 0.03 * -148.5) | (exact > 0.03 * 107.5)].any()
    assert not inside.all()


def graph_of(function: Function, scale: float, zero: int, out: Tensor) -> tuple[Graph, Lookup]:
    op = Lookup("bend", "x", "y", function)
    return Graph("case", "x", {"x": Tensor("x", (1, 1, 1), scale, zero), "y": out}, (op,)), op


@given(
    function=st.sampled_from(FUNCTIONS),
    scale=st.floats(0.001, 0.2),
    zero=st.integers(-128, 127),
    out_scale=st.floats(0.001, 0.2),
    out_zero=st.integers(-128, 127),
)
@examples(60)
def test_tables_are_exact_to_one_rounding(
    function: Function, scale: float, zero: int, out_scale: float, out_zero: int
) -> None:
    out = Tensor("y", (1, 1, 1), out_scale, out_zero)
    graph, op = graph_of(function, scale, zero, out)
    constants = lookup_arithmetic(graph, op)
    values, slopes = evaluated(function, scale * (np.arange(-128.0, 128.0) - zero))
    steps = values / out_scale + out_zero
    assert np.abs(constants.codes - np.clip(steps, -128, 127)).max() <= 0.5 + 1e-9
    wanted = slopes * scale / out_scale
    found = constants.slopes * 2.0 ** (constants.slope_exponent - 15)
    inside = (steps > -128.49) & (steps < 127.49)
    unit = 2.0 ** (constants.slope_exponent - 15)
    assert np.abs(found - wanted)[inside].max(initial=0.0) <= unit
    assert not found[(steps < -128.51) | (steps > 127.51)].any()
    assert np.abs(constants.slopes).max() <= 32767


def test_a_function_that_overflows_is_refused_by_name() -> None:
    graph, op = graph_of(("power", X, 3), 1e200, 0, Tensor("y", (1, 1, 1), 1.0, 0))
    with pytest.raises(ModelError, match=r"layer bend: its function isn't finite .*calibrate"):
        lookup_arithmetic(graph, op)


@pytest.mark.parametrize("function", [("reciprocal", X), ("log", X)])
def test_a_function_that_is_infinite_at_0_is_refused_with_what_to_do(function: Function) -> None:
    with pytest.raises(ModelError, match=r"layer bend: .* finite at 0, .*; train .* away from 0"):
        lookup_arithmetic(*graph_of(function, 0.1, -128, Tensor("y", (1, 1, 1), 1.0, 0)))


def test_slopes_are_left_out_where_no_plan_needs_them() -> None:
    graph, _ = random_graph(1)
    frozen = lower(graph, Plan("head", (), (), True, "q8.8"))
    trained = lower(graph, full_plan(graph))
    assert "_slopes" not in layers_source(graph, [frozen])
    assert "_slopes" in layers_source(graph, [frozen, trained])


def test_what_a_comparison_leaves_out_need_not_be_finite() -> None:
    above: Function = ("above", ("affine", X, 1.0, -1.0))
    chosen: Function = ("mul", above, ("log", X))
    values, slopes = evaluated(chosen, np.array([-2.0, 0.0, 0.5, 2.0]))
    np.testing.assert_allclose(values, [0, 0, 0, np.log(2)])
    np.testing.assert_allclose(slopes, [0, 0, 0, 0.5])
