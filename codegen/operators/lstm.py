"""LSTM: long short-term memory over a fixed window, as ONNX has it, without peepholes."""

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
class FloatLstm(FloatRecurrence):
    """i, o, f = sigmoid(x + R h), g = tanh(x + R h), c = f ∘ c + i ∘ g, h = o ∘ tanh(c)."""


@dataclass(frozen=True)
class Lstm(Recurrence):
    """The same in codes."""


class _LstmOperator(RecurrentOperator[FloatLstm, Lstm]):
    real = FloatLstm
    kind = Lstm
    kernel = "lstm"
    gates = 4
    state_rows = 2
    state_bytes = 6
    forward_scratch = 24
    gradient_scratch = 38

    def real_step(self, op: FloatLstm, x: Values, state: Values) -> Values:
        (h, c), units = state, state.shape[2]
        x = x + h @ op.recurrent.T
        gates = real_sigmoid(x[:, : 3 * units])
        i, o, f = gates[:, :units], gates[:, units : 2 * units], gates[:, 2 * units :]
        c = f * c + i * np.tanh(x[:, 3 * units :])
        return np.stack([o * np.tanh(c), c])

    def quantized(self, op: FloatLstm) -> Lstm:
        codes, scale = quantized_rows(op)
        return Lstm(
            name=op.name,
            input=op.input,
            output=op.output,
            recurrent=tuple(codes.reshape(-1).tolist()),
            row_scale=tuple(scale.tolist()),
            last=op.last,
        )

    def _gates(
        self, by: RecurrentArithmetic, op: Lstm, x: Ints, h: Ints
    ) -> tuple[Ints, Ints, Ints, Ints]:
        """i, o, f, g in Q15."""
        units = op.units
        x = x + requantized(h @ op.weights.T, 0, by.words)
        i, o, f = (sigmoid(x[..., units * gate : units * (gate + 1)]) for gate in range(3))
        return i, o, f, tanh(2 * x[..., 3 * units :])

    def step(self, by: RecurrentArithmetic, op: Lstm, x: Ints, state: Ints) -> Ints:
        h, c = state
        i, o, f, g = self._gates(by, op, x, h)
        c = scaled(f, c) + scaled(i, g)
        return np.stack([scaled(o, tanh(round_shift(c, 2))), c])

    def real_gradients(
        self, op: Lstm, x: Values, before: Values, error: Values
    ) -> tuple[Values, Values]:
        units, (h, c) = op.units, before
        weights = op.weights * np.array(op.row_scale)[:, np.newaxis]
        x = x + weights @ h
        gates = real_sigmoid(x[: 3 * units])
        i, o, f = gates[:units], gates[units : 2 * units], gates[2 * units :]
        g = np.tanh(x[3 * units :])
        bent = np.tanh(f * c + i * g)
        dh, dc = error[0], error[1] + error[0] * o * (1 - bent * bent)
        of_gates = np.concatenate([dc * g, dh * bent, dc * c]) * gates * (1 - gates)
        of_x = np.concatenate([of_gates, dc * i * (1 - g * g)])
        return of_x, np.stack([of_x @ weights, dc * f])

    def back(
        self, by: RecurrentArithmetic, op: Lstm, x: Ints, before: Ints, error: Error
    ) -> tuple[Error, Error]:
        (h, c), (dh, dc) = before, error.codes
        i, o, f, g = self._gates(by, op, x, h)
        bent = tanh(round_shift(scaled(f, c) + scaled(i, g), 2))
        dc = dc + scaled(scaled(dh, o), ONE - scaled(bent, bent))
        parts = [
            scaled(scaled(dc, g), scaled(i, ONE - i)),
            scaled(scaled(dh, bent), scaled(o, ONE - o)),
            held(scaled(scaled(dc, c), scaled(f, ONE - f))),
            scaled(scaled(dc, i), ONE - scaled(g, g)),
        ]
        codes, shift = normalized(np.concatenate(parts))
        of_h = back_through(op.weights, by, slice(None), codes, shift)
        carried, moved = normalized(np.stack([of_h, scaled(dc, f)]))
        return Error(codes, error.exponent + shift), Error(carried, error.exponent + moved)

    def export_step(
        self, by: RecurrentArithmetic, op: Lstm, layer: Layer, x: str, state: Sequence[str]
    ) -> list[str]:
        """One step in ONNX's operators."""
        h, c = state
        sums = layer.multiplied(self.export_products(layer, "gates", h, op.weights), by.words)
        names = ("i", "o", "f", "g")
        arguments = export_columns(layer, layer.node("Add", "arguments", x, sums), names, op.units)
        i, o, f = (
            export_sigmoid(layer.part(name), argument)
            for name, argument in zip(names[:3], arguments, strict=False)
        )
        new = layer.part("g")
        g = export_tanh(new, new.by("Mul", "twice", arguments[3], 2))
        kept, added = (
            export_scaled(layer.part("kept"), f, c),
            export_scaled(layer.part("added"), i, g),
        )
        c = layer.node("Add", "cell", kept, added)
        bent = export_tanh(
            layer.part("bent"), layer.part("cell").rounded(c, np.array(2), 0, lift=40)
        )
        return [export_scaled(layer.part("hidden"), o, bent), c]


LSTM = _LstmOperator()
