"""GRU: gated recurrent units over a fixed window (arXiv 1406.1078), as ONNX has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from codegen.arithmetic.integers import Error, Ints, requantized, round_shift
from codegen.arithmetic.recurrence import (
    ONE,
    RecurrentArithmetic,
    back_through,
    held,
    normalized,
    scaled,
    sigmoid,
    tanh,
)
from codegen.graph.floats import Values
from codegen.graph.ir import Graph
from codegen.operators.base import Table
from codegen.operators.recurrence import (
    FloatRecurrence,
    Recurrence,
    RecurrentOperator,
    export_columns,
    export_scaled,
    export_sigmoid,
    export_tanh,
    quantized_rows,
    real_sigmoid,
)

if TYPE_CHECKING:
    from codegen.export.integer_model import Layer


@dataclass(frozen=True, eq=False)
class FloatGru(FloatRecurrence):
    """z, r = sigmoid(x + R h), n = tanh(x + r ∘ (R h + inner_bias)), h = (1 - z) ∘ n + z ∘ h.

    Where ``inner_bias`` [units] is None, the reset comes first: n = tanh(x + R (r ∘ h)).
    """

    inner_bias: Values | None = None


@dataclass(frozen=True)
class Gru(Recurrence):
    """The same in codes: ``inner_bias`` in steps of the row's scale times 2^-15."""

    inner_bias: tuple[int, ...] | None = None


class _GruOperator(RecurrentOperator[FloatGru, Gru]):
    real = FloatGru
    kind = Gru
    kernel = "gru"
    gates = 3
    state_rows = 1
    state_bytes = 2
    forward_scratch = 18
    gradient_scratch = 32

    def real_step(self, op: FloatGru, x: Values, state: Values) -> Values:
        h, units = state[0], state.shape[2]
        gates = real_sigmoid(x[:, : 2 * units] + h @ op.recurrent[: 2 * units].T)
        z, r = gates[:, :units], gates[:, units:]
        inner = op.recurrent[2 * units :].T
        if op.inner_bias is None:
            n = np.tanh(x[:, 2 * units :] + (r * h) @ inner)
        else:
            n = np.tanh(x[:, 2 * units :] + r * (h @ inner + op.inner_bias))
        return np.asarray(n + z * (h - n))[np.newaxis]

    def quantized(self, op: FloatGru) -> Gru:
        bias = None
        if op.inner_bias is not None:
            bias = np.concatenate([np.zeros(2 * len(op.inner_bias)), op.inner_bias])
        codes, scale = quantized_rows(op, bias)
        inner = None if bias is None else np.rint(bias * ONE / scale).astype(np.int64)
        return Gru(
            name=op.name,
            input=op.input,
            output=op.output,
            recurrent=tuple(codes.reshape(-1).tolist()),
            row_scale=tuple(scale.tolist()),
            last=op.last,
            inner_bias=None if inner is None else tuple(inner[-codes.shape[1] :].tolist()),
        )

    def _gates(
        self, by: RecurrentArithmetic, op: Gru, x: Ints, h: Ints
    ) -> tuple[Ints, Ints, Ints, Ints]:
        """z, r, n in Q15, and in Q12 what the state adds to n before the reset."""
        units, weights = op.units, op.weights
        both = requantized(h @ weights[: 2 * units].T, 0, by.words[: 2 * units])
        gates = sigmoid(x[..., : 2 * units] + both)
        z, r = gates[..., :units], gates[..., units:]
        read = scaled(r, h) if op.inner_bias is None else h
        sums = read @ weights[2 * units :].T
        if op.inner_bias is not None:
            sums = sums + np.array(op.inner_bias)
        inner = requantized(sums, 0, by.words[2 * units :])
        added = inner if op.inner_bias is None else scaled(r, inner)
        return z, r, tanh(2 * (x[..., 2 * units :] + added)), inner

    def step(self, by: RecurrentArithmetic, op: Gru, x: Ints, state: Ints) -> Ints:
        h = state[0]
        z, _, n, _ = self._gates(by, op, x, h)
        return (n + scaled(z, h - n))[np.newaxis]

    def real_gradients(
        self, op: Gru, x: Values, before: Values, error: Values
    ) -> tuple[Values, Values]:
        units, h, dh = op.units, before[0], error[0]
        weights = op.weights * np.array(op.row_scale)[:, np.newaxis]
        both, inner = weights[: 2 * units], weights[2 * units :]
        gates = real_sigmoid(x[: 2 * units] + both @ h)
        z, r = gates[:units], gates[units:]
        if op.inner_bias is None:
            n = np.tanh(x[2 * units :] + inner @ (r * h))
        else:
            bias = np.array(op.inner_bias) * np.array(op.row_scale)[2 * units :] / ONE
            sums = inner @ h + bias
            n = np.tanh(x[2 * units :] + r * sums)
        of_n = dh * (1 - z) * (1 - n * n)
        of_h = dh * z
        if op.inner_bias is None:
            of_read = of_n @ inner
            of_r = of_read * h
            of_h = of_h + of_read * r
        else:
            of_r = of_n * sums
            of_h = of_h + (of_n * r) @ inner
        of_gates = np.concatenate([dh * (h - n), of_r]) * gates * (1 - gates)
        of_h = of_h + of_gates @ both
        return np.concatenate([of_gates, of_n]), of_h[np.newaxis]

    def back(
        self, by: RecurrentArithmetic, op: Gru, x: Ints, before: Ints, error: Error
    ) -> tuple[Error, Error]:
        units, h, dh = op.units, before[0], error.codes[0]
        weights = op.weights
        z, r, n, inner = self._gates(by, op, x, h)
        of_n = scaled(scaled(dh, ONE - z), ONE - scaled(n, n))
        of_h = scaled(dh, z)
        candidate = slice(2 * units, None)
        if op.inner_bias is None:
            of_read = back_through(weights, by, candidate, of_n, 0)
            of_r = held(scaled(of_read, h))
            of_h = of_h + scaled(of_read, r)
        else:
            of_r = held(round_shift(of_n * inner, 12))
        of_z = scaled(scaled(dh, h - n), scaled(z, ONE - z))
        of_r = scaled(of_r, scaled(r, ONE - r))
        codes, shift = normalized(np.concatenate([of_z, of_r, of_n]))
        through = codes.copy()
        rows = slice(None)
        if op.inner_bias is None:
            rows = slice(2 * units)
        else:
            through[2 * units :] = scaled(codes[2 * units :], r)
        of_h = held(of_h + back_through(weights, by, rows, through[rows], shift))
        carried, moved = normalized(of_h[np.newaxis])
        return Error(codes, error.exponent + shift), Error(carried, error.exponent + moved)

    def tables(self, graph: Graph, op: Gru) -> dict[str, Table]:
        tables = super().tables(graph, op)
        if op.inner_bias is not None:
            tables["inner_bias"] = Table("int32_t", op.inner_bias, 8)
        return tables

    def export_step(
        self, by: RecurrentArithmetic, op: Gru, layer: Layer, x: str, state: Sequence[str]
    ) -> list[str]:
        """One step in ONNX's operators."""
        (h,), units, weights = state, op.units, op.weights
        names = ("z", "r", "n")
        sums = export_columns(
            layer, self.export_products(layer, "both", h, weights[: 2 * units]), names[:2], units
        )
        inputs = export_columns(layer.part("x"), x, names, units)
        gates = []
        for place, name in enumerate(names[:2]):
            part = layer.part(name)
            words = by.words[units * place : units * (place + 1)]
            argument = part.node(
                "Add", "argument", inputs[place], part.multiplied(sums[place], words)
            )
            gates.append(export_sigmoid(part, argument))
        z, r = gates
        inner = layer.part("inner")
        read = export_scaled(layer.part("read"), r, h) if op.inner_bias is None else h
        total = self.export_products(inner, "n", read, weights[2 * units :])
        if op.inner_bias is not None:
            total = inner.by("Add", "biased", total, np.array(op.inner_bias))
        added = inner.multiplied(total, by.words[2 * units :])
        if op.inner_bias is not None:
            added = export_scaled(layer.part("reset"), r, added)
        argument = inner.by("Mul", "twice", inner.node("Add", "argument", inputs[2], added), 2)
        n = export_tanh(layer.part("n"), argument)
        kept = export_scaled(layer.part("kept"), z, layer.node("Sub", "apart", h, n))
        return [layer.node("Add", "state", n, kept)]


GRU = _GruOperator()
