"""Recurrent cells against numpy, on this machine and on emulated cores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.arithmetic.integers import Error
from codegen.graph.ir import Graph, Tensor
from codegen.operators.gru import GRU, FloatGru, Gru
from codegen.operators.lstm import LSTM, FloatLstm
from codegen.operators.recurrence import Recurrence, RecurrentOperator
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.calls import Scratch, call_all
from tests.device_runtime.kernels.error_case import error_codes, scale_of


def quantized_cell(
    kind: str, units: int, last: bool, spread: float, draw: np.random.Generator
) -> Recurrence:
    """A cell ``kind`` ("gru", "reset-first", "lstm") from tensor x to tensor y."""
    if kind == "lstm":
        weights = draw.normal(0, spread, (4 * units, units))
        return LSTM.quantized(FloatLstm("cell", "x", "y", weights, last))
    bias = None if kind == "reset-first" else draw.normal(0, 0.5, units)
    weights = draw.normal(0, spread, (3 * units, units))
    return GRU.quantized(FloatGru("cell", "x", "y", weights, last, bias))


def row_of(op: Recurrence) -> RecurrentOperator[Any, Any]:
    """The operator of ``op``."""
    return GRU if isinstance(op, Gru) else LSTM


def layer_of(graph: Graph, op: Recurrence) -> Struct:
    """tf_recurrence of ``op``."""
    by = row_of(op).arithmetic(graph, op)
    source, output = graph.tensors["x"], graph.tensors["y"]
    inner = getattr(op, "inner_bias", None)
    return Struct(
        ("H", source.shape[1]), ("H", op.units), ("B", int(op.last)),
        ("h", source.zero_point), ("h", output.zero_point),
        ("P", np.array(op.recurrent, np.int8)), ("P", by.words.astype(np.int32)),
        ("P", None if inner is None else np.array(inner, np.int32)),
        ("i", by.input_multiplier), ("B", by.input_shift),
        ("i", by.output.word), ("B", by.pre_shift),
        ("P", by.row_multiplier.astype(np.int16)), ("h", by.row_exponent), ("B", by.row_headroom),
        ("h", by.error_multiplier), ("h", by.error_exponent),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["gru", "reset-first", "lstm"])
@examples(12)
@given(
    units=st.integers(1, 23),
    steps=st.integers(1, 9),
    last=st.booleans(),
    spread=st.sampled_from([0.001, 0.3, 3.0, 30.0]),
    scales=st.tuples(st.floats(0.0001, 0.5), st.floats(0.00002, 0.01)),
    zeros=st.tuples(*[st.integers(-128, 127)] * 2),
    seed=st.integers(0, 999),
)
def test_states_and_errors_go_through_time(
    kind: str,
    units: int,
    steps: int,
    last: bool,
    spread: float,
    scales: tuple[float, float],
    zeros: tuple[int, int],
    seed: int,
) -> None:
    draw = np.random.default_rng(seed)
    op = quantized_cell(kind, units, last, spread, draw)
    row = row_of(op)
    shape = (1, steps, row.gates * units)
    tensors = {
        "x": Tensor("x", shape, scales[0], zeros[0]),
        "y": Tensor("y", (1, 1 if last else steps, units), scales[1], zeros[1]),
    }
    graph = Graph("case", "x", tensors, (op,))
    layer, name = layer_of(graph, op), f"tf_{row.kernel}"
    source = draw.integers(-128, 128, shape).astype(np.int8)
    values = row.forward(graph, op, [source.astype(np.int64)])

    codes, size = np.zeros(values.shape, np.int8), values.size
    mask = np.zeros(-(-size // 8), np.uint8)
    states = np.zeros(-(-row.state_bytes * units * steps // 4), np.int32)
    scratch = Scratch(row.forward_scratch * units)
    call_all(f"{name}_forward", [layer, source, codes, mask, states, scratch])
    np.testing.assert_array_equal(codes, np.clip(values, -128, 127))
    kept = np.unpackbits(mask, bitorder="little")[:size].reshape(values.shape)
    np.testing.assert_array_equal(kept, codes == values)
    codes[:] = 0
    call_all(f"{name}_forward", [layer, source, codes, None, None, scratch])
    np.testing.assert_array_equal(codes, np.clip(values, -128, 127))

    errors = error_codes(values.shape, seed)
    if not last and steps > 1:
        errors[:, 1:] >>= draw.integers(0, 16, (steps - 1, 1))  # some steps have none
    wanted = row.input_error(graph, op, source.astype(np.int64), Error(errors.astype(np.int64), -9))
    assert np.abs(wanted.codes).max() <= 32767
    out, scale = np.zeros(shape, np.int16), Struct(("i", 0), ("i", 0))
    scratch = Scratch(row.gradient_scratch * units + 4 * steps)
    call_all(
        f"{name}_input_gradient",
        [layer, errors, scale_of(errors, -9), source, states, out, scale, scratch],
    )
    np.testing.assert_array_equal(out, wanted.codes)
    assert scale.values == [wanted.exponent, wanted.magnitude]
