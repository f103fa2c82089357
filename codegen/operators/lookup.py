"""Lookup: any function of one tensor, element by element, as a table by code."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.integers import Error, Ints, round_shift
from codegen.arithmetic.layers import relative_q15
from codegen.errors import ModelError
from codegen.graph.floats import Values
from codegen.graph.ir import INT8_MAX, INT8_MIN, Graph, Unary
from codegen.operators.base import Handler, Operator, Table
from codegen.operators.functions import Function, X, evaluated

if TYPE_CHECKING:
    from codegen.emit.plan import StepWriter
    from codegen.export.integer_model import Layer, ModelWriter
    from codegen.importer.nodes import Node
    from codegen.importer.state import ImportState
    from codegen.program.step_builder import StepBuilder
    from codegen.program.steps import Step
    from codegen.reference.interpreter import Interpreter


@dataclass(frozen=True)
class Lookup(Unary):
    """``function`` (`codegen.operators.functions`) of each element."""

    function: Function


@dataclass(frozen=True, eq=False)
class LookupArithmetic:
    """What ``tf_lookup`` holds; both tables have an entry for each code of the input, from -128 on.

    ``slopes`` are output steps per input step times 2^(15 - ``slope_exponent``), 0 where the
    output's code saturates.
    """

    codes: NDArray[np.int64]
    slopes: NDArray[np.int64]
    slope_exponent: int


def lookup_arithmetic(graph: Graph, op: Lookup) -> LookupArithmetic:
    """Constants of one table. Raises ModelError for a function that isn't finite on its input."""
    source, output = graph.tensors[op.input], graph.tensors[op.output]
    x = source.scale * (np.arange(INT8_MIN, INT8_MAX + 1) - source.zero_point).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        values, slopes = evaluated(op.function, x)
    infinite = ~(np.isfinite(values) & np.isfinite(slopes))
    if infinite[source.zero_point - INT8_MIN]:
        raise ModelError(
            f"layer {op.name}: its function isn't finite at 0, for which every tensor has a code; "
            "train the model without it, or with a sum that keeps its input away from 0 before it"
        )
    if infinite.any():
        raise ModelError(
            f"layer {op.name}: its function isn't finite between {x[0]:.3g} and {x[-1]:.3g}, the "
            "range of its input; calibrate with typical inputs"
        )
    # Beyond 2^15 steps it doesn't matter how far.
    steps = np.clip(np.floor(values / output.scale + 0.5), -(2.0**15), 2.0**15).astype(np.int64)
    codes = np.clip(steps + output.zero_point, INT8_MIN, INT8_MAX)
    passing = np.where(codes == steps + output.zero_point, slopes, 0.0)
    passing *= source.scale / output.scale
    magnitudes, exponent = relative_q15(np.abs(passing))
    return LookupArithmetic(codes, magnitudes * np.sign(passing).astype(np.int64), exponent)


# Import.


def _of(make: Callable[[Node], Function], about: str, limits: str = "") -> Handler:
    def read(state: ImportState, node: Node) -> None:
        append_function(state, node, make(node))

    return Handler(read, f"a table by code: {about}", limits)


def append_function(state: ImportState, node: Node, function: Function) -> None:
    """Adds a table of ``function`` of the node's first input as the maker of its output."""
    view = state.view(node)
    name = state.unique(node.name)
    state.append_elementwise(node, Lookup(name, view.tensor, name, function), view)


def _number(node: Node, name: str, default: float) -> float:
    return float(node.attributes.get(name, default))


def _hard_sigmoid(node: Node) -> Function:
    line = ("affine", X, _number(node, "alpha", 0.2), _number(node, "beta", 0.5))
    return ("clip", line, 0.0, 1.0)


def _celu(node: Node) -> Function:
    alpha = _number(node, "alpha", 1.0)
    if alpha <= 0:
        node.refuse(f"attribute alpha = {alpha:g}; only numbers above 0 are supported, as 1")
    return ("affine", ("elu", ("affine", X, 1 / alpha, 0.0), 1.0), alpha, 0.0)


def _gelu(node: Node) -> Function:
    kind = node.attributes.get("approximate", "none")
    if kind not in ("none", "tanh"):
        node.refuse(f"attribute approximate = {kind}; supported are none and tanh")
    if kind == "none":
        inner: Function = ("erf", ("affine", X, math.sqrt(0.5), 0.0))
    else:
        cubic = ("add", X, ("affine", ("power", X, 3), 0.044715, 0.0))
        inner = ("tanh", ("affine", cubic, math.sqrt(2 / math.pi), 0.0))
    return ("mul", X, ("affine", inner, 0.5, 0.5))


def _selu(node: Node) -> Function:
    alpha, gamma = _number(node, "alpha", 1.6732632), _number(node, "gamma", 1.0507010)
    return ("affine", ("elu", X, alpha), gamma, 0.0)


def _swish(node: Node) -> Function:
    return ("mul", X, ("sigmoid", ("affine", X, _number(node, "alpha", 1.0), 0.0)))


def _power(state: ImportState, node: Node) -> None:
    exponents = state.constant(node, 1, "exponent")
    exponent = float(exponents.reshape(-1)[0])
    if np.ptp(exponents) != 0 or exponent < 1 or not exponent.is_integer():
        node.refuse("raises to no whole power from 1 on; train the model without it")
    append_function(state, node, ("power", X, int(exponent)))


def _shrink(node: Node) -> Function:
    bias, most = _number(node, "bias", 0.0), _number(node, "lambd", 0.5)

    def beyond(sign: float) -> Function:
        """What is left of numbers further than ``most`` from 0 on that side."""
        return ("mul", ("above", ("affine", X, sign, -most)), ("affine", X, 1.0, -sign * bias))

    return ("add", beyond(1.0), beyond(-1.0))


_SIGN: Function = ("add", ("above", X), ("affine", ("above", ("affine", X, -1.0, 0.0)), -1.0, 0.0))


def _thresholded_relu(node: Node) -> Function:
    return ("mul", ("above", ("affine", X, 1.0, -_number(node, "alpha", 1.0))), X)


_FINITE = "ranges of inputs on which it isn't finite"

_HANDLERS: Mapping[str, Handler] = {
    "Abs": _of(lambda node: ("leaky", X, -1.0), "exact to one rounding"),
    "Atan": _of(lambda node: ("atan", X), "exact to one rounding"),
    "Celu": _of(_celu, "exact to one rounding", "an alpha of 0 or less"),
    "Cos": _of(lambda node: ("cos", X), "exact to one rounding"),
    "Elu": _of(lambda node: ("elu", X, _number(node, "alpha", 1.0)), "exact to one rounding"),
    "Exp": _of(lambda node: ("exp", X), "one with what follows, as in Softplus", _FINITE),
    "Log": _of(lambda node: ("log", X), "one with what comes before", _FINITE),
    "Reciprocal": _of(
        lambda node: ("reciprocal", X), "one with what comes before, as in a sigmoid", _FINITE
    ),
    "Softsign": _of(
        lambda node: ("mul", X, ("reciprocal", ("affine", ("leaky", X, -1.0), 1.0, 1.0))),
        "exact to one rounding",
    ),
    "Erf": _of(lambda node: ("erf", X), "one with what follows, as in GELU"),
    "Gelu": _of(_gelu, "exact to one rounding, either form"),
    "HardSigmoid": _of(_hard_sigmoid, "exact to one rounding"),
    "HardSwish": _of(
        lambda node: ("mul", X, ("clip", ("affine", X, 1 / 6, 0.5), 0.0, 1.0)),
        "exact to one rounding",
    ),
    "LeakyRelu": _of(
        lambda node: ("leaky", X, _number(node, "alpha", 0.01)), "exact to one rounding"
    ),
    "Mish": _of(lambda node: ("mul", X, ("tanh", ("softplus", X))), "exact to one rounding"),
    "Pow": Handler(
        _power, "a table by code, one with what follows", "exponents but whole ones from 1 on"
    ),
    "Selu": _of(_selu, "exact to one rounding"),
    "Shrink": _of(_shrink, "exact to one rounding"),
    "Sigmoid": _of(
        lambda node: ("sigmoid", X), "exact to one rounding; with Mul, Swish; of answers the loss"
    ),
    "Sign": _of(lambda node: _SIGN, "exact; nothing before it learns"),
    "Sin": _of(lambda node: ("sin", X), "exact to one rounding"),
    "Softplus": _of(lambda node: ("softplus", X), "exact to one rounding"),
    "Swish": _of(_swish, "exact to one rounding"),
    "Tanh": _of(lambda node: ("tanh", X), "exact to one rounding", "behind the last matrix"),
    "ThresholdedRelu": _of(_thresholded_relu, "exact to one rounding"),
}  # fmt: skip


class _LookupOperator(Operator[Lookup, Lookup]):
    real = kind = Lookup
    handlers: ClassVar[Mapping[str, Handler]] = _HANDLERS
    kernel = "lookup"
    elementwise = True
    struct = "tf_lookup"

    def evaluate(self, op: Lookup, inputs: Sequence[Values]) -> Values:
        return evaluated(op.function, inputs[0])[0]

    def forward(self, graph: Graph, op: Lookup, inputs: Sequence[Ints]) -> Ints:
        return lookup_arithmetic(graph, op).codes[inputs[0] - INT8_MIN]

    def saturates(self, graph: Graph, op: Lookup) -> bool:
        return False  # the slopes know

    def gradients(
        self, graph: Graph, op: Lookup, inputs: Sequence[Ints], error: Values
    ) -> list[Values]:
        source, output = graph.tensors[op.input], graph.tensors[op.output]
        x = np.asarray(source.scale * (inputs[0] - source.zero_point), np.float64)
        values, slopes = evaluated(op.function, x)
        steps = values / output.scale + output.zero_point
        inside = (steps >= INT8_MIN - 0.5) & (steps < INT8_MAX + 0.5)
        return [error * inside * slopes * source.scale / output.scale]

    def error(self, builder: StepBuilder, op: Lookup) -> dict[str, str]:
        return {**builder.error(op), "input": builder.activation(op.input)}

    def run_input_gradient(self, interpreter: Interpreter, step: Step) -> None:
        constants = lookup_arithmetic(interpreter.graph, self.op_of(step))
        error = interpreter.error_in(step)
        slopes = constants.slopes[interpreter.arrays[step.buffers["input"]] - INT8_MIN]
        codes = round_shift(error.codes * slopes, 15 - error.headroom)
        exponent = error.exponent + constants.slope_exponent - error.headroom
        interpreter.errors[step.buffers["out"]] = Error(codes, exponent)

    def tables(self, graph: Graph, op: Lookup) -> dict[str, Table]:
        constants = lookup_arithmetic(graph, op)
        return {
            "codes": Table("int8_t", constants.codes.tolist(), 16),
            "slopes": Table("int16_t", constants.slopes.tolist(), 12, "lookup_input_gradient"),
        }

    def fields(self, graph: Graph, op: Lookup, tables: Mapping[str, str]) -> list[str]:
        exponent = lookup_arithmetic(graph, op).slope_exponent
        return [f"{tables['codes']}, {tables['slopes']}, {exponent},"]

    def forward_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        codes = [writer.arena(step, name, "int8_t") for name in ("input", "output")]
        return [writer.layer(step), *codes, writer.elements(step)]

    def input_gradient_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        codes = writer.arena(step, "input", "int8_t")
        error = [*writer.error_in(step), codes, writer.elements(step)]
        return [writer.layer(step), *error, *writer.error_out(step)]

    def export(self, writer: ModelWriter, op: Lookup, layer: Layer) -> str:
        codes: Any = lookup_arithmetic(writer.graph, op).codes
        table = layer.constant("table", codes, np.int8)
        place = layer.centred("input", writer.codes[op.input], INT8_MIN)
        return layer.node("Gather", "codes", table, place, axis=0)


LOOKUP = _LookupOperator()
