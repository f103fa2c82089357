"""What constants of a scaling become, and which can't be held."""

from __future__ import annotations

import numpy as np
import pytest

from codegen.errors import ModelError
from codegen.graph.ir import Graph, Tensor
from codegen.operators.scaling import SCALING, Scaling, scaling_arithmetic


def case(gain: list[float], shift: list[float], out: float) -> tuple[Graph, Scaling]:
    op = Scaling("s", "x", "y", (1, 1, len(gain)), tuple(gain), tuple(shift), None)
    shape = (1, 1, len(gain))
    tensors = {"x": Tensor("x", shape, 0.02, 3), "y": Tensor("y", shape, out, -5)}
    return Graph("case", "x", tensors, (op,)), op


@pytest.mark.parametrize("gain", [[1.0, -0.5, 0.003], [0.0, 0.0, 0.0], [80.0, 1.0, -3.0]])
@pytest.mark.parametrize("shift", [[0.0, 0.4, -0.1], [30.0, -2.0, 0.0]])
def test_scalings_are_exact_to_one_rounding(gain: list[float], shift: list[float]) -> None:
    graph, op = case(gain, shift, 0.03)
    codes = np.arange(-128, 128).reshape(-1, 1, 1, 1) * np.ones((1, 1, 1, 3), np.int64)
    exact = (np.array(gain) * 0.02 * (codes - 3) + np.array(shift)) / 0.03 - 5
    found = SCALING.forward(graph, op, [codes])
    assert np.abs(found - exact).max() <= 0.5 + 2e-3


def test_constants_out_of_all_proportion_are_refused_by_name() -> None:
    graph, op = case([1e9, 1.0], [0.0, 0.0], 0.03)
    with pytest.raises(ModelError, match=r"layer s: its constants are .* steps .*calibrate"):
        scaling_arithmetic(graph, op)
