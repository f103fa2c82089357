"""What quantization costs, layer by layer, against the float graph.

Both `simulate` and `compare` run a quantized graph in the device's integers, with the functions of
`codegen.arithmetic.forward` that the oracle of the kernels, `codegen.reference`, computes with.

`compare` tells two errors of each layer apart. The *accumulated* one is that of the int8 network up
to the layer. The *own* one is what the layer adds: the float layer and the int8 one both get the
float network's tensors in int8. A layer with a bad own error wants another range or equalization;
one with only a bad accumulated error suffers from layers before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from codegen.arithmetic.integers import Ints
from codegen.arithmetic.layers import logit_scale
from codegen.errors import BundleError
from codegen.graph import ir
from codegen.graph.floats import FloatGraph, Values
from codegen.operators.execution import evaluate_op, execute, output_of
from codegen.quantization.calibration import Method, batches
from codegen.quantization.checks import Finding
from codegen.quantization.cross_layer import Equalization
from codegen.quantization.quantize import nearest_codes


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

    The ending's name gives the outputs (N, O): logits, or a picture in the order (H, W, C).
    """
    made = {graph.input: codes.astype(np.int64)}
    values = {graph.input: _real(graph.tensors[graph.input], made[graph.input])}
    for op in graph.ops:
        result = output_of(graph, op, [made[name] for name in ir.inputs_of(op)])
        if isinstance(op, ir.Ending):
            values[op.name] = _real_outputs(graph, result)
        else:
            made[op.output] = result
            values[op.output] = _real(graph.tensors[op.output], result)
    return values


def compare(float_graph: FloatGraph, graph: ir.Graph, samples: NDArray[np.floating]) -> Comparison:
    """Errors of ``graph`` against the float graph that it was made of, for samples (N, C, H, W)."""
    classes = graph.ending.loss == "cross-entropy"
    same_class = 0
    outputs = float_graph.ending.output
    rows = [(graph.input, "Input", graph.input)]
    rows += [
        (op.name, type(op).__name__, outputs if isinstance(op, ir.Ending) else op.output)
        for op in graph.ops
    ]
    accumulated, own = ({name: _Accumulator() for _, _, name in rows} for _ in range(2))
    for batch in batches(float_graph, samples):
        for name, found in _executed_side_by_side(float_graph, graph, batch):
            accumulated[name].add(found.exact, found.simulated)
            own[name].add(found.float_alone, found.int8_alone)
            if name == outputs and classes:
                agree = found.exact.argmax(axis=1) == found.simulated.argmax(axis=1)
                same_class += int(agree.sum())
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


@dataclass(frozen=True, eq=False)
class _Compared:
    """Real values of one tensor, in the float network and in the int8 one.

    ``float_alone`` and ``int8_alone`` are what the layer makes, as float and as int8, of the float
    network's tensors in int8.
    """

    exact: Values
    simulated: Values
    float_alone: Values
    int8_alone: Values


def _executed_side_by_side(
    float_graph: FloatGraph, graph: ir.Graph, x: NDArray[np.floating]
) -> Iterator[tuple[str, _Compared]]:
    """Every tensor of ``graph`` by name.

    The outputs have their name in the float graph: the ending's own may be that of a tensor.
    Tensors are dropped after their last reader.
    """
    tensors = graph.tensors
    exact = {graph.input: np.asarray(x, dtype=np.float64)}
    codes = {graph.input: _codes(tensors[graph.input], exact[graph.input])}
    rounded = dict(codes)  # of the exact tensors
    real = _real(tensors[graph.input], codes[graph.input])
    yield graph.input, _Compared(exact[graph.input], real, exact[graph.input], real)
    executed = execute(float_graph, x)
    float_ops = {op.output: op for op in float_graph.ops}
    last_reader = {name: op.name for op in graph.ops for name in ir.inputs_of(op)}
    for op in graph.ops:
        names = ir.inputs_of(op)
        made = output_of(graph, op, [codes[name] for name in names])
        alone = output_of(graph, op, [rounded[name] for name in names])
        inputs = [_real(tensors[name], rounded[name]) for name in names]
        if isinstance(op, ir.Ending):
            ending, order = float_graph.ending, float_graph.output_order
            outputs = next(result for done, _, result in executed if done is ending)
            yield (
                ending.output,
                _Compared(
                    outputs[:, order],
                    _real_outputs(graph, made),
                    evaluate_op(ending, inputs)[:, order],
                    _real_outputs(graph, alone),
                ),
            )
            return
        name, float_op = op.output, float_ops.get(op.output)
        if float_op is None:  # the same values in another scale, as Concat wants them
            exact[name] = exact[names[0]]
        while name not in exact:
            done, _, result = next(executed)
            exact[done.output] = result
        codes[name], rounded[name] = made, _codes(tensors[name], exact[name])
        yield (
            name,
            _Compared(
                exact[name],
                _real(tensors[name], made),
                inputs[0] if float_op is None else evaluate_op(float_op, inputs),
                _real(tensors[name], alone),
            ),
        )
        for source in set(names):
            if last_reader[source] == op.name:
                del exact[source], codes[source], rounded[source]


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


def _codes(tensor: ir.Tensor, values: Values) -> Ints:
    """The codes (N, H, W, C) nearest to real values (N, C, H, W)."""
    return nearest_codes(tensor, values.transpose(0, 2, 3, 1)).astype(np.int64)


def _real(tensor: ir.Tensor, codes: Ints) -> Values:
    """Real values (N, C, H, W) of codes (N, H, W, C)."""
    values: Values = tensor.scale * (codes - tensor.zero_point).astype(np.float64)
    return values.transpose(0, 3, 1, 2)


def _real_outputs(graph: ir.Graph, outputs: Ints) -> Values:
    """Real values of what the ending makes."""
    return np.asarray(logit_scale(graph) * outputs, dtype=np.float64)
