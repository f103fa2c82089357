"""What quantization costs, layer by layer, against the float graph.

`simulate` runs a quantized graph in exact arithmetic (float64 holds every sum of products
exactly); the device's integers differ from it by at most one step of rounding. It is for figures,
not the oracle of the kernels: that is `codegen.reference.interpreter`.

`compare` tells two errors of each layer apart. The *accumulated* one is that of the int8 network up
to the layer. The *own* one is what the layer adds: it gets the float network's tensors, unrounded,
and only its weights and its output are int8. A layer with a bad own error wants another range or
equalization; one with only a bad accumulated error suffers from layers before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from codegen.errors import BundleError
from codegen.graph import ir
from codegen.graph.floats import (
    FloatGraph,
    FloatOp,
    Values,
    average_pool,
    channels_last,
    convolve,
    execute,
    max_pool,
)
from codegen.quantization.calibration import Method, batches
from codegen.quantization.checks import Finding
from codegen.quantization.cross_layer import Equalization
from codegen.quantization.quantize import quantize_input


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ErrorFigures(_Facts):
    """Distance of a tensor's values from the float graph's, over all samples.

    ``sqnr_db`` is 10 log10 of the sum of squares over the sum of squared errors; None where the
    error, or the tensor, is 0 throughout. ``cosine`` is that of both as one long vector each.
    """

    sqnr_db: float | None
    cosine: float
    max_abs_error: float


class LayerError(_Facts):
    """The errors of one operation's output; ``step`` is its int8 scale, None for the logits."""

    layer: str
    kind: str
    step: float | None
    accumulated: ErrorFigures
    own: ErrorFigures


class Comparison(_Facts):
    """The input's rounding and each layer's errors.

    ``top1_agreement`` is the share of samples with the same best class, None where the model's
    outputs aren't classes.
    """

    samples: int
    top1_agreement: float | None
    layers: tuple[LayerError, ...]


class QuantizationReport(_Facts):
    """What a bundle's quantization.json holds."""

    model: str
    method: Method
    percentile: float | None
    equalized: tuple[Equalization, ...] | None
    findings: tuple[Finding, ...]
    comparison: Comparison


def load_report(path: Path) -> QuantizationReport:
    """Reads a quantization.json. Raises BundleError for a file that isn't one."""
    try:
        return QuantizationReport.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path} is no quantization report ({error}); compile again with --quantization-report"
        ) from error


def simulate(graph: ir.Graph, codes: NDArray[np.int8]) -> dict[str, Values]:
    """Real values of all tensors for input codes (N, H, W, C): name → (N, C, H, W).

    The head's name gives its outputs (N, O): logits, or the input in the order (H, W, C).
    """
    values = {graph.input: _real(graph.tensors[graph.input], codes)}
    for op in graph.ops:
        result = op.name if isinstance(op, ir.Head) else op.output
        values[result] = simulate_op(graph, op, [values[name] for name in ir.inputs_of(op)])
    return values


def simulate_op(graph: ir.Graph, op: ir.Op, inputs: Sequence[Values]) -> Values:
    """Real values that ``op`` of ``graph`` makes of real inputs (N, C, H, W), which it trusts.

    Weights, bias and output are those of int8; inputs between two codes stay where they are.
    """
    tensors = graph.tensors
    match op:
        case ir.Conv() | ir.DepthwiseConv():
            weight, groups = _real_weight(op)
            bias = tensors[op.input].scale * op.weight_scale * op.bias
            result = convolve(inputs[0], weight, groups, op.stride, op.padding)
            result += bias[:, np.newaxis, np.newaxis]
            return _rounded(result, tensors[op.output])
        case ir.Add():
            return _rounded(inputs[0] + inputs[1], tensors[op.output])
        case ir.GlobalAveragePool():
            mean = inputs[0].mean(axis=(2, 3), keepdims=True)
            return _rounded(mean, tensors[op.output])
        case ir.MaxPool():
            return max_pool(inputs[0], op.window, op.stride, op.padding)
        case ir.AveragePool():
            mean = average_pool(inputs[0], op.window, op.stride, op.padding, op.counted)
            return _rounded(mean, tensors[op.output])
        case ir.Concat():
            return np.concatenate(inputs, axis=1)
        case ir.Requantize():
            target = tensors[op.output]
            ends = np.array([op.low, op.high]) - target.zero_point
            return np.clip(_rounded(inputs[0], target), *(target.scale * ends))
        case ir.Head():
            flat = inputs[0].transpose(0, 2, 3, 1).reshape(len(inputs[0]), -1)
            logits = flat @ op.weight.T.astype(np.float64) + tensors[op.input].scale * op.bias
            return np.asarray(op.weight_scale / 256 * logits)


def compare(float_graph: FloatGraph, graph: ir.Graph, samples: NDArray[np.floating]) -> Comparison:
    """Errors of ``graph`` against the float graph that it was made of, for samples (N, C, H, W)."""
    classes = graph.head.loss == "cross-entropy"
    same_class = 0
    outputs = float_graph.head.output
    rows = [(graph.input, "Input", graph.input)]
    rows += [
        (op.name, type(op).__name__, outputs if isinstance(op, ir.Head) else op.output)
        for op in graph.ops
    ]
    accumulated, own = ({name: _Accumulator() for _, _, name in rows} for _ in range(2))
    for batch in batches(float_graph, samples):
        for name, exact, simulated, alone in _executed_side_by_side(float_graph, graph, batch):
            accumulated[name].add(exact, simulated)
            own[name].add(exact, alone)
            if name == outputs and classes:
                same_class += int((exact.argmax(axis=1) == simulated.argmax(axis=1)).sum())
    layers = tuple(
        LayerError(
            layer=layer,
            kind=kind,
            step=graph.tensors[name].scale if name in graph.tensors else None,
            accumulated=accumulated[name].figures(),
            own=own[name].figures(),
        )
        for layer, kind, name in rows
    )
    agreement = same_class / len(samples) if classes else None
    return Comparison(samples=len(samples), top1_agreement=agreement, layers=layers)


def _executed_side_by_side(
    float_graph: FloatGraph, graph: ir.Graph, x: NDArray[np.floating]
) -> Iterator[tuple[str, Values, Values, Values]]:
    """Of every tensor of ``graph`` its name, and its values: exact, accumulated, own.

    The head's outputs have their name in the float graph: the head's own may be that of a tensor.
    Tensors are dropped after their last reader.
    """
    rounded = _real(
        graph.tensors[graph.input], quantize_input(graph, np.asarray(x).transpose(0, 2, 3, 1))
    )
    exact = {graph.input: np.asarray(x, dtype=np.float64)}
    simulated = {graph.input: rounded}
    yield graph.input, exact[graph.input], rounded, rounded
    executed = execute(float_graph, x)
    in_float_graph = set(float_graph.shapes)
    last_reader = {name: op.name for op in graph.ops for name in ir.inputs_of(op)}
    for op in graph.ops:
        names = ir.inputs_of(op)
        if isinstance(op, ir.Head):
            name = float_graph.head.output
            exact[name] = _exact_outputs(float_graph, executed)
        elif (
            name := op.output
        ) not in in_float_graph:  # the same values in another scale, as Concat wants them
            exact[name] = exact[names[0]]
        while name not in exact:
            float_op, _, result = next(executed)
            exact[float_op.output] = result
        simulated[name] = simulate_op(graph, op, [simulated[source] for source in names])
        alone = simulate_op(graph, op, [exact[source] for source in names])
        yield name, exact[name], simulated[name], alone
        for source in set(names):
            if last_reader[source] == op.name:
                del exact[source], simulated[source]


def _exact_outputs(
    float_graph: FloatGraph, executed: Iterator[tuple[FloatOp, list[Values], Values]]
) -> Values:
    """What the head makes in the float graph, in the device's order."""
    outputs = next(result for op, _, result in executed if op is float_graph.head)
    if float_graph.head.loss == "mse":
        return outputs[:, channels_last(float_graph.shapes[float_graph.input])]
    return outputs


@dataclass
class _Accumulator:
    """Sums over batches from which the error figures come."""

    signal: float = 0.0
    noise: float = 0.0
    product: float = 0.0
    other: float = 0.0
    largest: float = 0.0

    def add(self, exact: Values, found: Values) -> None:
        error = found - exact
        self.signal += float(np.vdot(exact, exact))
        self.noise += float(np.vdot(error, error))
        self.product += float(np.vdot(exact, found))
        self.other += float(np.vdot(found, found))
        self.largest = max(self.largest, float(np.abs(error).max()))

    def figures(self) -> ErrorFigures:
        sqnr = 10.0 * math.log10(self.signal / self.noise) if self.noise and self.signal else None
        norms = math.sqrt(self.signal) * math.sqrt(self.other)
        # A tensor of zeros that stays one is as good as equal; one that doesn't has no angle.
        cosine = self.product / norms if norms else float(self.noise == 0.0)
        return ErrorFigures(sqnr_db=sqnr, cosine=cosine, max_abs_error=self.largest)


def _real(tensor: ir.Tensor, codes: NDArray[np.int8]) -> Values:
    """Real values (N, C, H, W) of codes (N, H, W, C)."""
    values = tensor.scale * (codes.astype(np.float64) - tensor.zero_point)
    return values.transpose(0, 3, 1, 2)


def _real_weight(op: ir.Conv | ir.DepthwiseConv) -> tuple[Values, int]:
    """Weight in real values as [O, I/groups, Kh, Kw], and the number of groups."""
    codes = op.weight.astype(np.float64)
    if isinstance(op, ir.DepthwiseConv):
        return (codes * op.weight_scale).transpose(2, 0, 1)[:, np.newaxis], codes.shape[2]
    return (codes * op.weight_scale[:, None, None, None]).transpose(0, 3, 1, 2), 1


def _rounded(values: Values, tensor: ir.Tensor) -> Values:
    steps = np.rint(values / tensor.scale) + tensor.zero_point
    codes: Values = np.clip(steps, ir.INT8_MIN, ir.INT8_MAX)
    return tensor.scale * (codes - tensor.zero_point)
