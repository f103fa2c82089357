"""What in a network is hard on int8: found before anybody wonders where the accuracy went.

Each check looks at what was observed over the calibration set, or at the integers that came of it,
and names layers, figures and the remedy. None of them changes anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from codegen.arithmetic.layers import WEIGHT_MAX
from codegen.errors import CalibrationError
from codegen.graph import ir
from codegen.graph.floats import FloatConv, FloatGraph
from codegen.quantization.calibration import HeadStatistics, TensorStatistics
from codegen.quantization.channel_scales import BIAS_MAX, coarser_steps
from codegen.quantization.cross_layer import imbalance, pairs

Check = Literal[
    "few-samples",
    "raw-pixels",
    "unlike-inputs",
    "dead-channels",
    "imbalance",
    "outliers",
    "bias-limit",
    "tiny-scale",
    "lowest-weights",
    "coarser-weights",
    "logits-scale",
]
_COUNTS: tuple[Check, ...] = (
    "unlike-inputs",
    "dead-channels",
    "bias-limit",
    "tiny-scale",
    "lowest-weights",
    "coarser-weights",
)

GOOD_SAMPLES = 32
"""Fewer get a note: of ranges over n samples, about one new sample in n + 1 reaches beyond each."""

IMBALANCE_LIMIT = 16.0
"""Ratio of the widest to the median channel from which on half of the channels lose 4 bits."""

OUTLIER_LIMIT = 4.0
"""Ratio of the range to that of 99.9 % of the values from which on these lose 2 bits."""

FEWEST_CODES = 16.0
"""That a channel of the input should have: with less, 4 bits are left of its values."""

RESOLVED_NATS = 31.0 * math.log(2.0)
"""Beyond so much a probability is 0 on the device (arithmetic.md): errors are all or nothing."""

USUAL_RATE = 0.01
STEP_SHARE = 1 / 10
"""Part of the outputs' distance that a step of full error moves one of them by, where a learning
rate suits; with less a network hardly learns, with more it forgets (tests/codegen/quantization)."""

WIDTH = 20.0
"""Rates so many times larger or smaller than the one that suits do nearly as well."""

TINY_SCALE = 1e-6
_BIAS_LIMIT = BIAS_MAX * (1.0 - 1e-6)  # in float scales a bias grows just to it, less rounding
_FEWEST_FOR_OUTLIERS = 10_000  # values below which 99.9 % of them says little
_SHOWN = 6  # layers in a note


class Finding(BaseModel):
    """Something about one layer that costs accuracy or hints at a mistake.

    ``value`` is what the check is about: a count of channels, weights or samples, a ratio, a
    largest pixel, a learning rate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    check: Check
    layer: str
    value: float


_MEANING: dict[Check, str] = {
    "few-samples": "few samples of the input {layers}: new ones will often exceed their ranges; "
    "about 100 are good",
    "raw-pixels": "whole numbers from 0 to 255 in {layers}: right only if the model was trained on "
    "pixels that were not scaled",
    "unlike-inputs": "channels of the input {layers} have less than 16 of its 256 codes, since all "
    "have one scale; bring them to one size before they are given to the model, and export it "
    "without its own scaling",
    "dead-channels": "channels that are constant on the calibration set, in {layers}; they cost "
    "time and memory and tell nothing, unless the set lacks the inputs that wake them",
    "imbalance": "widest channel over the median one: {layers}; the narrow channels have few of "
    "the int8 steps, and --equalize gives them more where that leaves the function as it is",
    "outliers": "whole range over that of 99.9 % of the values: {layers}; try "
    "--calibration-method percentile or mse",
    "bias-limit": "biases at the limit of the sum's 32 bits, in {layers}; such an output hardly "
    "depends on its inputs",
    "tiny-scale": "channels whose weights would have an int8 step below 1e-6, in {layers}; as a "
    "rule they do nothing. In a float model they get their layer's median step, so that training "
    "can wake them",
    "lowest-weights": "weights of -128, in {layers}, became -127, the device's lowest; quantize "
    "weights to -127 … 127 to keep them",
    "coarser-weights": "channels whose weights reach further from their zero point than the "
    "device's, symmetric int8, in {layers}; they are coded again in coarser steps, off by up to "
    f"{50 / WEIGHT_MAX:.1f} % of the channel's largest weight. Quantize weights as symmetric int8 "
    "(in onnxruntime weight_type=QuantType.QInt8) to keep them",
    "logits-scale": f"outputs further apart than the {RESOLVED_NATS:.1f} nats that the loss tells "
    f"apart, on most samples, and the usual learning rate of {USUAL_RATE:g} moves them by more "
    "than that distance at once, or by next to nothing; begin with that of {layers}",
}


def check_statistics(
    graph: FloatGraph, statistics: Mapping[str, TensorStatistics]
) -> list[Finding]:
    """Dead channels, imbalance between channels and outliers, by layer in execution order."""
    found = list(_outliers(graph.input, statistics[graph.input]))
    found += _unlike(graph.input, statistics[graph.input])
    paired = {pair.first.output for pair in pairs(graph)}
    for op in graph.ops:
        tensor = statistics.get(op.output)
        if tensor is None:
            continue
        if isinstance(op, FloatConv):
            dead = int((tensor.low == tensor.high).sum())
            if dead:
                found.append(Finding(check="dead-channels", layer=op.name, value=dead))
            ratio = imbalance(tensor.channel_magnitude)
            if ratio > IMBALANCE_LIMIT and op.output in paired:
                found.append(Finding(check="imbalance", layer=op.name, value=ratio))
        found += _outliers(op.name, tensor)
    return found


def _unlike(layer: str, tensor: TensorStatistics) -> Iterator[Finding]:
    low, high = tensor.limits
    codes = 256.0 * (tensor.high - tensor.low) / max(max(high, 0.0) - min(low, 0.0), 1e-30)
    few = int(((codes < FEWEST_CODES) & (tensor.high > tensor.low)).sum())
    if few:
        yield Finding(check="unlike-inputs", layer=layer, value=few)


def _outliers(layer: str, tensor: TensorStatistics) -> Iterator[Finding]:
    if tensor.histogram.counts.sum() < _FEWEST_FOR_OUTLIERS:
        return
    low, high = tensor.limits
    most = tensor.histogram.percentile_range(99.9)
    ratio = (max(high, 0.0) - min(low, 0.0)) / (most[1] - most[0])
    if ratio > OUTLIER_LIMIT:
        yield Finding(check="outliers", layer=layer, value=ratio)


def check_integers(graph: ir.Graph, float_graph: FloatGraph) -> list[Finding]:
    """Biases at their limit and weights with next to no scale, by layer in execution order.

    Weight scales are those of the float weights: `quantize` raises them for dead channels, and
    where a bias needs it.
    """
    found = []
    layers = {op.name: op for op in float_graph.ops if isinstance(op, FloatConv)}
    for op in graph.convolutions:
        at_limit = int((np.abs(op.bias.astype(np.int64)) >= _BIAS_LIMIT).sum())
        if at_limit:
            found.append(Finding(check="bias-limit", layer=op.name, value=at_limit))
        real = layers.get(op.name)
        if real is None:
            continue
        if real.stored is not None:
            scale = real.stored.weight_scale
            coarser = coarser_steps(real.stored) > 1.0
            if coarser.any():
                layer, count = op.name, int(coarser.sum())
                found.append(Finding(check="coarser-weights", layer=layer, value=count))
            lowest = int((np.abs(real.stored.weight[~coarser]) > WEIGHT_MAX).sum())
            if lowest:
                found.append(Finding(check="lowest-weights", layer=op.name, value=lowest))
        else:
            scale = np.abs(real.weight).max(axis=(1, 2, 3)) / 127.0
        tiny = int((scale < TINY_SCALE).sum())
        if tiny:
            found.append(Finding(check="tiny-scale", layer=op.name, value=tiny))
    return found


def check_logits(graph: FloatGraph, head: HeadStatistics) -> list[Finding]:
    """Whether outputs of classes, or of yes and no, are too far apart for the usual rate."""
    if graph.ending.loss not in ("cross-entropy", "binary") or not head.margins:
        return []
    margin = float(np.median(head.margins))
    if margin <= RESOLVED_NATS:
        return []
    rate = STEP_SHARE * margin / float(np.median(head.squares))
    if rate / WIDTH < USUAL_RATE < rate * WIDTH:
        return []
    return [Finding(check="logits-scale", layer=graph.head.name, value=rate)]


def notes(findings: Sequence[Finding]) -> tuple[str, ...]:
    """One sentence per check that found something."""
    told = []
    for check, meaning in _MEANING.items():
        hits = sorted((f for f in findings if f.check == check), key=lambda f: -f.value)
        if not hits:
            continue
        layers = ", ".join(f"{hit.layer} ({_figure(hit.value)})" for hit in hits[:_SHOWN])
        more = f" and {len(hits) - _SHOWN} more" if len(hits) > _SHOWN else ""
        sentence = meaning.format(layers=layers + more)
        if check in _COUNTS:
            sentence = f"{int(sum(hit.value for hit in hits))} {sentence}"
        told.append(sentence)
    return tuple(told)


def _figure(value: float) -> str:
    if value < 1:
        return f"{value:.2g}"
    return f"{value:.0f}" if value == int(value) or value >= 100 else f"{value:.1f}"


def check_samples(
    graph: FloatGraph, samples: NDArray[np.floating], statistics: Mapping[str, TensorStatistics]
) -> list[Finding]:
    """Whether there are enough samples (N, C, H, W), and whether they look like unscaled pixels.

    Raises CalibrationError for pixels 0 … 255 in a model that was trained on scaled ones: the first
    activation with an upper end (as ReLU6 has) is there for most of what it lets through, as in no
    trained network.
    """
    found = []
    if len(samples) < GOOD_SAMPLES:
        found.append(Finding(check="few-samples", layer=graph.input, value=len(samples)))
    if graph.integer_input:  # the model scales them itself
        return found
    low, high = statistics[graph.input].limits
    if low < 0.0 or not 64.0 < high <= 255.0 or not np.array_equal(samples, np.rint(samples)):
        return found
    found.append(Finding(check="raw-pixels", layer=graph.input, value=high))
    # An end at 0 cuts off all that is positive, of whatever size: no sign of pixels.
    capped = [
        (op.name, tensor)
        for op in graph.ops
        if (tensor := statistics.get(op.output)) and tensor.at_cap and tensor.cap > 0.0
    ]
    if not capped:
        return found
    name, tensor = capped[0]
    share = tensor.at_cap / int(tensor.histogram.counts.sum())
    if share > 0.5:
        raise CalibrationError(
            f"the calibration set holds whole numbers from {low:g} to {high:g}, and "
            f"{100 * share:.0f} % of what passes '{name}' is at its upper end {tensor.cap:g}: "
            "pixels that were not scaled as in training; scale them (often x / 255, then minus "
            "mean, over standard deviation)"
        )
    return found
