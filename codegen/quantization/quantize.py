"""Float graph + calibration set → quantized graph, after Jacob et al., arXiv 1712.05877.

Weights are int8, symmetric, one scale per output channel. Activations are int8, one scale and
zero point per tensor, from its range over the calibration set (`codegen.quantization.calibration`);
the range always holds 0, and real zero is one of the codes. Where a clamp follows, the calibrated
range ends at the clamp, so that the clamp to int8 *is* the activation function.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.layers import WEIGHT_MAX
from codegen.errors import CalibrationError, ModelError
from codegen.graph import ir
from codegen.graph.floats import (
    NO_CLAMP,
    Clamp,
    Clamped,
    Coding,
    FloatConv,
    FloatGraph,
    FloatHead,
    FloatTensorOutput,
    channels_last,
)
from codegen.operators import operator_of
from codegen.operators.concat import Concat
from codegen.operators.requantize import FloatClamp, Requantize
from codegen.quantization.calibration import (
    MIN_MAX,
    RangeRule,
    TensorStatistics,
    activation_code,
    observe,
    uncoded,
)
from codegen.quantization.calibration_set import fit_to_input
from codegen.quantization.channel_scales import BIAS_MAX, quantize_channels

_NARROW = 4  # a mean's range in that of what it is made of, from which on it has its own scale
_HEAD_STEPS = 256  # q8.8
# Weights of a head that learns new classes grow to a few times the range in which they were drawn;
# what int16 has beyond 13 bits is theirs to grow.
_HEAD_ROOM = 4


def quantize(
    graph: FloatGraph, calibration: NDArray[np.floating] | None, rule: RangeRule = MIN_MAX
) -> ir.Graph:
    """The quantized graph of ``graph``; ``calibration`` is (samples, channels, height, width).

    ``rule`` makes the ranges of the activations. A model that came quantized keeps its scales,
    zero points and integers. Raises as `samples_for` and `codings_of` do.
    """
    samples = samples_for(graph, calibration)
    statistics = {} if samples is None else observe(graph, samples)
    return assemble(graph, codings_of(graph, statistics, rule))


def samples_for(
    graph: FloatGraph, calibration: NDArray[np.floating] | None
) -> NDArray[np.floating] | None:
    """``calibration`` shaped as the graph's input, None where the model codes every tensor itself.

    What a quantized model leaves uncoded (operations that its quantizer doesn't know) is measured.
    Raises CalibrationError for a set that is missing, doesn't fit the model's input or holds values
    that aren't finite, and for one that is given to a model that codes everything.
    """
    missing = uncoded(graph)
    if not missing and calibration is not None:
        raise CalibrationError(
            f"model {graph.name} is quantized already and keeps its own scales; leave out the "
            "calibration set, or give the float model with it"
        )
    if missing and graph.codings and calibration is None:
        raise CalibrationError(
            f"tensor '{missing[0]}' has no QuantizeLinear, though {len(graph.codings)} others have "
            f"one ({len(missing)} have none); give a calibration set to measure it, or quantize "
            "every activation"
        )
    return fit_to_input(graph, calibration) if missing else None


def codings_of(
    graph: FloatGraph, statistics: Mapping[str, TensorStatistics], rule: RangeRule
) -> dict[str, Coding]:
    """The model's own codings, and for the rest of the tensors those that ``rule`` makes.

    Raises ModelError for codings of the model that aren't those of the device's arithmetic.
    """
    for op in graph.ops:
        if not isinstance(op, Clamped) or isinstance(op, FloatClamp):
            continue
        if op.output in graph.codings:
            _check_clamp(op.name, op.clamp, graph.codings[op.output])
    clamps = {op.output: op.clamp for op in graph.ops if isinstance(op, Clamped)}
    together = [op for op in graph.ops if isinstance(op, Concat) and op.one_coding]
    clamps |= {op.output: clamps.get(op.inputs[0], NO_CLAMP) for op in together}
    measured = {
        name: _measured_coding(*tensor.range(rule), clamps.get(name, NO_CLAMP))
        for name, tensor in statistics.items()
    }
    for op in together:
        if op.output in measured:
            measured |= dict.fromkeys(op.inputs, measured[op.output])
    return {**measured, **graph.codings}


def _measured_coding(low: float, high: float, clamp: Clamp) -> Coding:
    """Of a tensor that is always zero, any scale will do, but its ends are those of ``clamp``.

    A Relu that the set doesn't wake gives zeros because saturation holds them there.
    """
    if low == high:
        low, high = -float(clamp.high == 0.0), float(clamp.low == 0.0)
    return Coding(*activation_code(low, high))


def assemble(graph: FloatGraph, codings: Mapping[str, Coding]) -> ir.Graph:
    """The quantized graph whose activations are coded as ``codings`` says."""
    assembly = Assembly(graph, codings)
    assembly.add_tensor(graph.input)
    for op in graph.ops:
        if isinstance(op, FloatConv):
            source, result = assembly.tensors[op.input], assembly.add_tensor(op.output)
            assembly.ops.append(_convolution(op, source, result))
        elif isinstance(op, FloatHead):
            assembly.ops.append(_head(graph, op, assembly.tensors[op.input]))
        elif isinstance(op, FloatTensorOutput):
            size = assembly.tensors[op.input].size
            assembly.ops.append(ir.TensorOutput(op.name, op.input, size, op.loss))
        else:
            operator_of(op).quantize(op, assembly)
    return ir.Graph(graph.name, graph.input, assembly.tensors, tuple(assembly.ops))


class Assembly:
    """A quantized graph that grows, operation by operation."""

    def __init__(self, graph: FloatGraph, codings: Mapping[str, Coding]) -> None:
        """``codings`` are those of all tensors that aren't told by others."""
        self.tensors: dict[str, ir.Tensor] = {}
        self.ops: list[ir.Op] = []
        self._graph = graph
        self._codings = codings

    def is_coded(self, name: str) -> bool:
        """Whether the model itself says how tensor ``name`` is coded."""
        return name in self._graph.codings

    def finer_coding(self, source: str, name: str) -> Coding | None:
        """The coding of tensor ``name``, a mean of ``source``, where that one's wastes two bits and
        more of its codes; None where it doesn't.

        A scale that a quantizer has chosen is the best for a mean, too, unless it left most codes
        unused, as it does with activations of 4 bits.
        """
        if name in self._graph.codings:
            return None
        if source not in self._graph.codings and name in self._codings:
            own = self._codings[name]
            return own if self._codings[source].scale >= _NARROW * own.scale else None
        tensor = self.tensors[source]
        low, high = self._codes_used(tensor)
        below, above = max(tensor.zero_point - low, 0), max(high - tensor.zero_point, 0)
        finer = (ir.INT8_MAX - ir.INT8_MIN) // max(below + above, 1)
        if finer < _NARROW:
            return None
        return Coding(tensor.scale / finer, ir.INT8_MIN + below * finer)

    def _codes_used(self, tensor: ir.Tensor) -> tuple[int, int]:
        """The lowest and the highest code that ``tensor`` can have."""
        makers = {op.output: op for op in self.ops if isinstance(op, ir.Unary)}
        op = makers.get(tensor.name)
        if isinstance(op, Requantize):
            return op.low, op.high
        if op is not None and operator_of(op).keeps_coding:
            source = self.tensors[op.input]
            if (source.scale, source.zero_point) == (tensor.scale, tensor.zero_point):
                return self._codes_used(source)
        return ir.INT8_MIN, ir.INT8_MAX

    def add_tensor(self, name: str, coding: Coding | None = None) -> ir.Tensor:
        """The tensor ``name`` of the float graph, with its coding, or another one."""
        coding = coding or self._codings[name]
        return self._add(name, coding.scale, coding.zero_point)

    def keep_coding(self, source: str, name: str) -> ir.Tensor:
        """The same with the coding of tensor ``source``."""
        known = self.tensors[source]
        return self._add(name, known.scale, known.zero_point)

    def _add(self, name: str, scale: float, zero_point: int) -> ir.Tensor:
        channels, height, width = self._graph.shapes[name]
        self.tensors[name] = ir.Tensor(name, (height, width, channels), scale, zero_point)
        return self.tensors[name]


def _check_clamp(layer: str, clamp: Clamp, coding: Coding) -> None:
    """On the device, saturation of the codes is the activation function: both must agree."""
    low, high = coding.range.low, coding.range.high
    if clamp.low > low + coding.scale / 2 or clamp.high < high - coding.scale / 2:
        raise ModelError(
            f"layer '{layer}' is clamped to {clamp.low:g} … {clamp.high:g}, but its output is "
            f"coded from {low:g} to {high:g}; quantize with the activation's range (for Relu: "
            "zero point at the lowest code)"
        )


def quantize_input(graph: ir.Graph, x: NDArray[np.floating]) -> NDArray[np.int8]:
    """Real inputs (..., height, width, channels) as the device's int8 codes, same shape.

    Values outside the calibrated range saturate. Raises ValueError for another shape.
    """
    tensor = graph.tensors[graph.input]
    if x.shape[-3:] != tensor.shape:
        raise ValueError(
            f"input of shape {x.shape}; the last three dimensions must be {tensor.shape}"
        )
    return nearest_codes(tensor, np.asarray(x, dtype=np.float64))


def nearest_codes(tensor: ir.Tensor, values: NDArray[np.float64]) -> NDArray[np.int8]:
    """Real values as codes of ``tensor``, of the same shape."""
    steps = np.rint(values / tensor.scale) + tensor.zero_point
    codes: NDArray[np.int8] = np.clip(steps, ir.INT8_MIN, ir.INT8_MAX).astype(np.int8)
    return codes


def _convolution(op: FloatConv, source: ir.Tensor, result: ir.Tensor) -> ir.Conv | ir.DepthwiseConv:
    channels = quantize_channels(op, source, result)
    weight = channels.weight
    kind = ir.DepthwiseConv if op.depthwise else ir.Conv
    # [C, 1, Kh, Kw] → [Kh, Kw, C] and [O, I, Kh, Kw] → [O, Kh, Kw, I]
    laid_out = weight[:, 0].transpose(1, 2, 0) if op.depthwise else weight.transpose(0, 2, 3, 1)
    return kind(
        name=op.name,
        input=op.input,
        output=op.output,
        weight=np.ascontiguousarray(laid_out),
        weight_scale=channels.scale,
        bias=channels.bias,
        stride=op.stride,
        padding=op.padding,
    )


def head_values(
    graph: FloatGraph, op: FloatHead
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight and bias of the head, real numbers in the order of the device."""
    weight = op.weight[:, channels_last(graph.shapes[op.input])]
    return weight[graph.output_order], op.bias[graph.output_order]


def _head(graph: FloatGraph, op: FloatHead, source: ir.Tensor) -> ir.Head:
    weight, bias = head_values(graph, op)
    largest = float(np.abs(weight).max())
    scale = _HEAD_ROOM * (largest if largest > 0 else 1.0) / WEIGHT_MAX
    scale = max(scale, float(np.abs(bias).max()) * _HEAD_STEPS / (source.scale * BIAS_MAX))
    step = scale / _HEAD_STEPS
    codes = np.rint(bias / (source.scale * step))
    return ir.Head(
        name=op.name,
        input=op.input,
        weight=np.rint(weight / step).astype(np.int16),
        weight_scale=scale,
        bias=codes.astype(np.int32),
        loss=op.loss,
        target_scale=op.target_scale,
    )
