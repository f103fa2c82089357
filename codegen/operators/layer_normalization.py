"""LayerNormalization: each group of neighbouring elements less its mean, by its deviation.

RMSNormalization is the same without the mean: elements by the root of their mean square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from codegen.arithmetic.integers import Error, Ints, round_shift
from codegen.arithmetic.layers import relative_q15
from codegen.errors import ModelError
from codegen.graph.floats import NO_CLAMP, Clamp, Values
from codegen.graph.ir import Graph, Unary
from codegen.operators.base import Operator, Table, activated

if TYPE_CHECKING:
    from codegen.emit.plan import StepWriter
    from codegen.export.integer_model import Layer, ModelWriter
    from codegen.program.step_builder import StepBuilder
    from codegen.program.steps import Step
    from codegen.quantization.quantize import Assembly
    from codegen.reference.interpreter import Interpreter

LARGEST_GROUP = 1 << 14
_VARIANCE_BITS = 16  # below one step squared
_LARGEST_EPSILON = 1 << 60
_LARGEST_DROP = 30  # which leaves nothing of a product
_CODE_MAX = 32767


@dataclass(frozen=True, eq=False)
class FloatLayerNormalization(Unary):
    """gain · (x - mean) / sqrt(variance + epsilon) + shift over groups of elements, or where they
    aren't ``centred``, gain · x / sqrt(mean square + epsilon) + shift.

    A group has as many as ``gain`` and ``shift``, in the order (height, width, channels): the
    channels of a pixel, of a row, or of the whole picture.
    """

    gain: Values
    shift: Values
    epsilon: float
    clamp: Clamp = NO_CLAMP
    centred: bool = True


@dataclass(frozen=True)
class LayerNormalization(Unary):
    """The same in codes; the clamp to [-128, 127] is the activation function."""

    gain: tuple[float, ...]
    shift: tuple[float, ...]
    epsilon: float
    centred: bool = True


@dataclass(frozen=True, eq=False)
class LayerNormalizationArithmetic:
    """What ``tf_layer_normalization`` holds; arrays have one entry per element of a group.

    ``zero`` is the code of which values are less where they aren't less the group's mean.
    """

    zero: int | None
    lift: int
    bits: int
    epsilon: int
    multiplier: Ints
    exponent: int
    offset: Ints
    drop: int
    shift: int


def layer_normalization_arithmetic(
    graph: Graph, op: LayerNormalization
) -> LayerNormalizationArithmetic:
    """Constants of one normalization. Raises ModelError where 32 bits can't hold them."""
    source, output = graph.tensors[op.input], graph.tensors[op.output]
    count = len(op.gain)
    if count > LARGEST_GROUP:
        raise ModelError(
            f"layer {op.name}: normalizes {count} elements together, more than {LARGEST_GROUP}; "
            "normalize the channels of each pixel, or pool before it"
        )
    # No standardized value of n is beyond sqrt(n - 1), or sqrt(n) where the mean stays: these many
    # bits behind the point fit 15.
    bits = 15 - next(power for power in range(8) if 4**power >= count - op.centred)
    factors, offsets = np.array(op.gain) / output.scale, np.array(op.shift) / output.scale
    magnitudes, exponent = relative_q15(np.abs(factors))
    shift = bits + 15 - exponent
    # Products of 2^30, an offset of 2^29 and a rounding bit of 2^27 fit 32 bits.
    room = min(29 - math.frexp(float(np.abs(offsets).max()))[1], 28)
    drop = max(0, shift - room)
    if shift - drop < 1:
        raise ModelError(
            f"layer {op.name}: its scale and bias are {np.abs(factors).max():.3g} and "
            f"{np.abs(offsets).max():.3g} steps of its output; calibrate with typical inputs"
        )
    epsilon = op.epsilon * (count / source.scale) ** 2 * 2.0**_VARIANCE_BITS
    return LayerNormalizationArithmetic(
        zero=None if op.centred else source.zero_point,
        lift=31 - (255 * count).bit_length(),
        bits=bits,
        epsilon=min(round(epsilon), _LARGEST_EPSILON),
        multiplier=magnitudes * np.sign(factors).astype(np.int64),
        exponent=exponent,
        offset=np.rint(offsets * 2.0 ** (shift - drop)).astype(np.int64),
        drop=min(drop, _LARGEST_DROP),
        shift=shift - drop,
    )


@dataclass(frozen=True, eq=False)
class _Groups:
    """Groups (..., n) of codes: standardized values times 2^bits, and one over the deviation of n
    times the codes, as ``factor`` · 2^(-23 - ``power``)."""

    values: Ints
    factor: Ints
    power: Ints


def _standardized(by: LayerNormalizationArithmetic, codes: Ints) -> _Groups:
    """``codes`` are (..., n)."""
    count = codes.shape[-1]
    if by.zero is not None:
        codes = codes - by.zero
    origin = codes.sum(axis=-1, keepdims=True) * (by.zero is None)
    spread = count * (codes**2).sum(axis=-1, keepdims=True) - origin**2
    variance = np.maximum((spread << _VARIANCE_BITS) + by.epsilon, 1)
    power = (np.array([int(v).bit_length() for v in variance.flat]) - 31) >> 1
    power = power.reshape(variance.shape)
    raised = (variance << np.maximum(-2 * power, 0)) >> np.maximum(2 * power, 0)
    root = np.floor(np.sqrt(raised.astype(np.float64))).astype(np.int64)  # of 32 bits: exact
    factor = (1 << 31) // root
    distance = (count * codes - origin) << by.lift
    high = (distance * (factor << 14)) >> 32
    shift = np.clip(power + _shift(by), 1, 30)
    values = (high + (1 << (shift - 1))) >> shift
    return _Groups(np.clip(values, -_CODE_MAX, _CODE_MAX), factor, power)


def _shift(by: LayerNormalizationArithmetic) -> int:
    """Bits that a standardized value goes right for a group whose power is 0."""
    return by.lift + 5 - by.bits


def input_errors(by: LayerNormalizationArithmetic, error: Error, codes: Ints) -> Error:
    """The error of an input of ``codes`` (H, W, C) from that of the output."""
    count = len(by.multiplier)
    groups = _standardized(by, codes.reshape(-1, count))
    values = groups.values
    own = round_shift(error.codes.reshape(-1, count) * by.multiplier, 15 - error.headroom)
    total = own.sum(axis=-1, keepdims=True) * (by.zero is None)
    along = round_shift((own * values).sum(axis=-1, keepdims=True), by.bits)
    rest = count * own - total - round_shift(values * along, by.bits)
    # What the largest terms of a group can make: no error need be made twice to find the scale.
    bound = (
        count * np.abs(own).max(axis=-1, keepdims=True)
        + np.abs(total)
        + (np.abs(values).max(axis=-1, keepdims=True) * np.abs(along) >> by.bits)
        + 1
    ) * groups.factor
    bits = np.array([int(one).bit_length() for one in bound.flat]).reshape(bound.shape)
    top = max(int((bits - groups.power).max()), 0)
    shift = np.minimum(groups.power + top - 15, 62)
    moved = (rest * groups.factor + (1 << (shift - 1))) >> shift
    return Error(
        np.clip(moved, -_CODE_MAX, _CODE_MAX).reshape(codes.shape),
        error.exponent - error.headroom + by.exponent + top - 38,
    )


class _LayerNormalizationOperator(Operator[FloatLayerNormalization, LayerNormalization]):
    real = FloatLayerNormalization
    kind = LayerNormalization
    kernel = "layer_normalization"
    struct = "tf_layer_normalization"

    def evaluate(self, op: FloatLayerNormalization, inputs: Sequence[Values]) -> Values:
        rows = np.moveaxis(inputs[0], 1, -1)
        groups = rows.reshape(len(rows), -1, len(op.gain))
        centred = groups - groups.mean(axis=-1, keepdims=True) * op.centred
        variance = (centred**2).mean(axis=-1, keepdims=True)
        made = op.gain * centred / np.sqrt(np.maximum(variance + op.epsilon, 1e-300)) + op.shift
        return activated(np.moveaxis(made.reshape(rows.shape), -1, 1), op.clamp)

    def quantize(self, op: FloatLayerNormalization, assembly: Assembly) -> None:
        assembly.add_tensor(op.output)
        gain, shift = tuple(op.gain.tolist()), tuple(op.shift.tolist())
        assembly.ops.append(
            LayerNormalization(op.name, op.input, op.output, gain, shift, op.epsilon, op.centred)
        )

    def forward(self, graph: Graph, op: LayerNormalization, inputs: Sequence[Ints]) -> Ints:
        by = layer_normalization_arithmetic(graph, op)
        values = _standardized(by, inputs[0].reshape(-1, len(op.gain))).values
        total = (values * by.multiplier >> by.drop) + by.offset
        codes = round_shift(total, by.shift) + graph.tensors[op.output].zero_point
        return codes.reshape(inputs[0].shape)

    def gradients(
        self, graph: Graph, op: LayerNormalization, inputs: Sequence[Ints], error: Values
    ) -> list[Values]:
        source, output = graph.tensors[op.input], graph.tensors[op.output]
        codes = inputs[0].reshape(-1, len(op.gain)).astype(np.float64) - source.zero_point
        groups = source.scale * codes
        centred = groups - groups.mean(axis=-1, keepdims=True) * op.centred
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + op.epsilon)
        values = centred / deviation
        own = error.reshape(groups.shape) * np.array(op.gain) / output.scale
        along = (own * values).mean(axis=-1, keepdims=True)
        common = own.mean(axis=-1, keepdims=True) * op.centred
        into = (own - common - values * along) / deviation
        return [(into * source.scale).reshape(error.shape)]

    def overlap_lead(self, graph: Graph, op: LayerNormalization) -> int:
        return 0

    def build_backward(self, builder: StepBuilder, op: LayerNormalization) -> None:
        if op.input in builder.needs_error:
            error = {**builder.masked(op), "input": builder.activation(op.input)}
            builder.propagate(self.gradient_kernel, op, op.input, error, in_place=True)

    def run_input_gradient(self, interpreter: Interpreter, step: Step) -> None:
        by = layer_normalization_arithmetic(interpreter.graph, self.op_of(step))
        codes = interpreter.arrays[step.buffers["input"]]
        interpreter.errors[step.buffers["out"]] = input_errors(
            by, interpreter.error_in(step), codes
        )

    def tables(self, graph: Graph, op: LayerNormalization) -> dict[str, Table]:
        by = layer_normalization_arithmetic(graph, op)
        return {
            "multiplier": Table("int16_t", by.multiplier.tolist(), 12),
            "offset": Table("int32_t", by.offset.tolist(), 8),
        }

    def fields(self, graph: Graph, op: LayerNormalization, tables: Mapping[str, str]) -> list[str]:
        by = layer_normalization_arithmetic(graph, op)
        source, output = graph.tensors[op.input], graph.tensors[op.output]
        return [
            f"{output.size // len(op.gain)}u, {len(op.gain)},",
            f"{by.lift}, {by.bits}, {by.epsilon}u,",
            f"{tables['multiplier']}, {tables['offset']},",
            f"{source.zero_point}, {output.zero_point},",
            f"{by.drop}, {by.shift}, {by.exponent}, {int(op.centred)},",
        ]

    def forward_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        return [*super().forward_arguments(writer, step), writer.arena(step, "mask", "uint8_t")]

    def input_gradient_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        codes = writer.arena(step, "input", "int8_t")
        return [writer.layer(step), *writer.error_in(step), codes, *writer.error_out(step)]

    def export(self, writer: ModelWriter, op: LayerNormalization, layer: Layer) -> str:
        by = layer_normalization_arithmetic(writer.graph, op)
        height, width, channels = writer.graph.tensors[op.output].shape
        codes = (
            layer.wide("input", writer.codes[op.input])
            if by.zero is None
            else layer.centred("input", writer.codes[op.input], by.zero)
        )
        rows = layer.node("Transpose", "rows", codes, perm=[0, 2, 3, 1])
        shape = layer.constant("groups.shape", [0, -1, len(op.gain)])
        values = _exported(layer, by, len(op.gain), layer.node("Reshape", "groups", rows, shape))
        products = layer.by("Mul", "scaled", values, by.multiplier)
        if by.drop:
            lifted = layer.by("Add", "scaled.lifted", products, 1 << 30)
            fewer = layer.by("Div", "scaled.fewer", lifted, 1 << by.drop)
            products = layer.by("Sub", "scaled.dropped", fewer, 1 << 30 - by.drop)
        total = layer.by("Add", "total", products, by.offset)
        codes = layer.rounded(total, np.array(by.shift), writer.zero(op.output), lift=33)
        shape = layer.constant("picture.shape", [0, height, width, channels])
        picture = layer.node("Reshape", "picture", codes, shape)
        return layer.clamped(layer.node("Transpose", "turned", picture, perm=[0, 3, 1, 2]))


def _exported(layer: Layer, by: LayerNormalizationArithmetic, count: int, codes: str) -> str:
    """`_standardized` in ONNX's operators; ``codes`` are int64 (N, groups, n)."""
    axis = layer.constant("elements", [2])

    def summed(step: str, value: str) -> str:
        return layer.node("ReduceSum", step, value, axis)

    def counted(step: str, comparison: str, limits: list[int]) -> str:
        true = layer.by(comparison, step, variance, np.array(limits))
        return summed(f"{step}.count", layer.wide(step, true))

    def chosen(step: str, table: list[int], place: str) -> str:
        return layer.node("Gather", step, layer.constant(f"{step}.table", table), place)

    squares = summed("squares.sum", layer.node("Mul", "squares", codes, codes))
    spread = layer.by("Mul", "squares.all", squares, count)
    distance = layer.by("Mul", "codes.lifted", codes, count << by.lift)
    if by.zero is None:
        total = summed("sum", codes)
        squared = layer.node("Mul", "sum.squared", total, total)
        spread = layer.node("Sub", "spread", spread, squared)
        origin = layer.by("Mul", "sum.lifted", total, 1 << by.lift)
        distance = layer.node("Sub", "distance", distance, origin)
    fine = layer.by("Mul", "spread.fine", spread, 1 << _VARIANCE_BITS)
    variance = layer.by("Max", "variance", layer.by("Add", "uncertain", fine, by.epsilon), 1)
    up = counted("small", "Less", [1 << 30 - 2 * step for step in range(16)])
    down = counted("large", "Greater", [(1 << 32 + 2 * step) - 1 for step in range(15)])
    powers = [4**step for step in range(17)]
    raised = layer.node("Mul", "raised", variance, chosen("up", powers, up))
    raised = layer.node("Div", "of.32.bits", raised, chosen("down", powers, down))
    real = layer.node("Cast", "real", raised, to=TensorProto.DOUBLE)
    root = layer.node("Floor", "root.floor", layer.node("Sqrt", "root.real", real))
    root = layer.wide("root", root)
    factor = layer.node("Div", "factor", layer.constant("factor.of", 1 << 31), root)
    product = layer.node(
        "Mul", "product", distance, layer.by("Mul", "factor.raised", factor, 1 << 14)
    )
    high = layer.by(
        "Div", "high.lifted", layer.by("Add", "product.lifted", product, 1 << 62), 1 << 32
    )
    power = layer.by("Add", "shift", layer.node("Sub", "power", down, up), _shift(by))
    shift = layer.clipped(power, 1, 30, "shift.held")
    shifts = range(31)
    halves = [(1 << max(s - 1, 0)) + (1 << 30) for s in shifts]  # high was lifted by 2^30
    raised = layer.node("Add", "high.half", high, chosen("half", halves, shift))
    floor = layer.node(
        "Div", "floor.lifted", raised, chosen("step", [1 << s for s in shifts], shift)
    )
    back = chosen("back", [1 << 31 - s for s in shifts], shift)
    values = layer.node("Sub", "standardized", floor, back)
    return layer.clipped(values, -_CODE_MAX, _CODE_MAX, "standardized.held")


LAYER_NORMALIZATION = _LayerNormalizationOperator()
