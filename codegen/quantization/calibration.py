"""Which real values the int8 codes of each activation stand for, from a calibration set.

The set is executed batch by batch, and of every tensor only statistics are kept: limits per
channel and a histogram. Memory thus grows neither with the number of samples nor with their values.

Three methods make a range of the statistics:

* ``min-max``: from the smallest to the largest value. Nothing saturates that the set shows.
* ``percentile``: a share of the values may saturate at each end, so that a few outliers don't cost
  all the others their resolution.
* ``mse``: the range whose codes are nearest to the values in the mean of squares, which trades
  saturation against resolution (the aim of Banner et al., arXiv 1810.05723, here searched for over
  the measured histogram instead of derived from a distribution).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from codegen.errors import CalibrationError, ModelError
from codegen.graph import ir
from codegen.graph.floats import Clamped, FloatConv, FloatGraph, FloatHead, inputs_of
from codegen.graph.ir import Operation
from codegen.operators import operator_of
from codegen.operators.execution import execute

Method: TypeAlias = Literal["min-max", "percentile", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)

_BATCH_BYTES = 64 * 2**20
_LARGEST_BATCH = 32

# Bins on each side of zero. The largest value lies in the outer half of them, so that one step of
# int8 codes over the whole range is at least 32 bins wide.
_HALF = 2**14

# Ends of the range that the search for the least error tries: 0.93^k of the largest value (down to
# 1 %), then, around the best of these, sixteenths of that ratio.
_COARSE: NDArray[np.float64] = np.power(0.93, np.arange(64))
_FINE: NDArray[np.float64] = np.power(0.93, np.linspace(-1.0, 1.0, 33))


@dataclass(frozen=True)
class RangeRule:
    """How the range of a tensor is made of its values.

    ``percentile`` is for the method of that name: of a tensor's values other than 0, at most
    100 - percentile per cent saturate at each end. Raises CalibrationError for a method that there
    isn't and for a percentile out of range.
    """

    method: Method = "min-max"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.method not in METHODS:
            raise CalibrationError(
                f"calibration method {self.method!r} is unknown; use one of {', '.join(METHODS)}"
            )
        if not 50.0 < self.percentile <= 100.0:
            raise CalibrationError(
                f"percentile {self.percentile:g} is out of range; give one above 50, up to 100 "
                "(99.99 saturates one value in ten thousand at each end)"
            )


MIN_MAX = RangeRule()


def activation_code(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point for real values ``low`` … ``high``, widened to hold 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return 1.0 / 255.0, 0  # a tensor that is always zero: any scale represents it
    scale, zero_point = _codes(np.float64(low), np.float64(high))
    return float(scale), int(zero_point)


def _codes(
    low: NDArray[np.float64] | np.float64, high: NDArray[np.float64] | np.float64
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scales and zero points for ranges of which each holds 0 and more than it."""
    scale = np.asarray((high - low) / 255.0)
    return scale, np.clip(np.rint(ir.INT8_MIN - low / scale), ir.INT8_MIN, ir.INT8_MAX)


def round_bits(values: ArrayLike, bits: int = 24) -> NDArray[np.float64]:
    """The nearest values of so many significant bits: those of a float32, with any exponent."""
    mantissa, exponent = np.frexp(np.asarray(values, dtype=np.float64))
    return np.asarray(np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits))


class Histogram:
    """Counts of real values in bins of equal width, filled batch by batch.

    The width is a power of two, the smallest with which all values so far have a bin. Widening
    therefore merges whole bins, and the result doesn't depend on how the values were split into
    batches. Zeros are counted apart, since every coding has them exactly.
    """

    def __init__(self) -> None:
        """An empty histogram."""
        self.counts = np.zeros(2 * _HALF, dtype=np.int64)
        self.zeros = 0
        self.width = 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        """Counts finite values of any shape."""
        nonzero = values[values != 0.0]
        self.zeros += values.size - nonzero.size
        if nonzero.size == 0:
            return
        self._widen(max(float(nonzero.max()), -float(nonzero.min())))
        bins = np.floor(nonzero / self.width).astype(np.int64) + _HALF
        self.counts += np.bincount(bins, minlength=2 * _HALF)

    def _widen(self, largest: float) -> None:
        """Makes bins so wide that a value of this magnitude has one."""
        exponent = math.frexp(largest)[1]  # largest < 2^exponent
        width = math.ldexp(1.0, max(exponent, -1000) - int(math.log2(_HALF)))
        if width <= self.width:
            return
        if self.width:
            ratio = int(min(width / self.width, 2.0 * _HALF))
            merged = (np.arange(2 * _HALF) - _HALF) // ratio + _HALF
            counts = np.zeros_like(self.counts)
            np.add.at(counts, merged, self.counts)
            self.counts = counts
        self.width = width

    def percentile_range(self, percentile: float) -> tuple[float, float]:
        """Ends beyond which at most 100 - percentile per cent of the nonzero values lie, each.

        Exact to the width of a bin.
        """
        # The tolerance is for 1 - 0.9999, which is a little less than 1 / 10,000.
        allowed = (1.0 - percentile / 100.0) * float(self.counts.sum()) * (1.0 + 1e-9)
        ends = []
        for outwards in (self.counts[:_HALF][::-1], self.counts[_HALF:]):
            beyond = np.append(np.cumsum(outwards[::-1])[::-1], 0)
            ends.append(self.width * float(np.argmax(beyond <= allowed)))
        return -ends[0], ends[1]

    def least_error_range(self, low: float, high: float) -> tuple[float, float]:
        """The range within ``low`` … ``high`` whose int8 codes have the least mean square error.

        ``low`` ≤ 0 ≤ ``high`` are the limits of the values. The search is over ends in steps of
        0.5 %; values count as the centre of their bin.
        """
        if low == high:
            return low, high
        coarse = self._best_of(low * _COARSE, high * _COARSE)
        lows, highs = coarse[0] * _FINE, coarse[1] * _FINE
        return self._best_of(np.maximum(lows, low), np.minimum(highs, high))

    def _best_of(
        self, lows: NDArray[np.float64], highs: NDArray[np.float64]
    ) -> tuple[float, float]:
        pairs = np.meshgrid(np.unique(lows), np.unique(highs)[::-1], indexing="ij")
        low, high = pairs[0].ravel(), pairs[1].ravel()
        best = int(np.argmin(self.square_errors(low, high)))
        return float(low[best]), float(high[best])

    def square_errors(
        self, low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Sum of squared errors of int8 codes over each range (K,), in squares of bin widths.

        The values that share a code are a run of bins, so that three running sums of moments give
        the error of all runs at once.
        """
        centres = np.arange(2 * _HALF) - _HALF + 0.5
        moments = np.zeros((3, 2 * _HALF + 1))
        np.cumsum([self.counts * centres**power for power in range(3)], axis=1, out=moments[:, 1:])
        scale, zero_point = _codes(low / self.width, high / self.width)
        codes = np.arange(ir.INT8_MIN, ir.INT8_MAX + 1)
        levels = scale[:, np.newaxis] * (codes - zero_point[:, np.newaxis])
        between = np.ceil((levels[:, 1:] + levels[:, :-1]) / 2 - 0.5 + _HALF)
        edges = np.full((len(low), len(codes) + 1), 2 * _HALF)
        edges[:, 0] = 0
        edges[:, 1:-1] = np.clip(between, 0, 2 * _HALF)
        counts, sums = (np.diff(moments[power][edges], axis=1) for power in (0, 1))
        return np.asarray(moments[2, -1] + (levels * (levels * counts - 2.0 * sums)).sum(axis=1))


class TensorStatistics:
    """What is kept of one tensor of the float graph: limits and squares by channel, a histogram.

    ``at_cap`` counts the values that an activation with an upper end has cut off there.
    """

    def __init__(self, channels: int, cap: float = math.inf) -> None:
        """Statistics of no values yet, for a tensor of so many channels, clamped to ``cap``."""
        self.low = np.full(channels, np.inf)
        self.high = np.full(channels, -np.inf)
        self.square_sum = np.zeros(channels)
        self.values_per_channel = 0
        self.cap = cap
        self.at_cap = 0
        self.histogram = Histogram()

    def add(self, values: NDArray[np.float64]) -> None:
        """Takes in finite values (N, C, H, W)."""
        self.low = np.minimum(self.low, values.min(axis=(0, 2, 3)))
        self.high = np.maximum(self.high, values.max(axis=(0, 2, 3)))
        self.square_sum += np.einsum("nchw,nchw->c", values, values)
        self.values_per_channel += values.size // values.shape[1]
        if self.cap < math.inf:
            self.at_cap += int(np.count_nonzero(values >= self.cap))
        self.histogram.add(values)

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest value."""
        return float(self.low.min()), float(self.high.max())

    @property
    def channel_magnitude(self) -> NDArray[np.float64]:
        """Largest magnitude by channel."""
        return np.asarray(np.maximum(np.abs(self.low), np.abs(self.high)))

    @property
    def mean_square(self) -> NDArray[np.float64]:
        """Mean of squares by channel."""
        return np.asarray(self.square_sum / self.values_per_channel)

    def range(self, rule: RangeRule) -> tuple[float, float]:
        """The range that ``rule`` makes of the values, within their limits widened to hold 0.

        Its ends have 24 significant bits: the order in which sums of float64 are taken, and with it
        their last bits, is that of the CPU, on which a model's digest must not depend.
        """
        low, high = self._ends(rule)
        return float(round_bits(low)), float(round_bits(high))

    def _ends(self, rule: RangeRule) -> tuple[float, float]:
        limits = self.limits
        low, high = min(limits[0], 0.0), max(limits[1], 0.0)
        match rule.method:
            case "min-max":
                return low, high
            case "percentile":
                narrow = self.histogram.percentile_range(rule.percentile)
                return max(low, narrow[0]), min(high, narrow[1])
            case "mse":
                return self.histogram.least_error_range(low, high)


def uncoded(graph: FloatGraph) -> list[str]:
    """Tensors of ``graph`` whose coding must be measured, in execution order."""
    free = {graph.ending.output}
    for op in graph.ops:
        if isinstance(op, Operation) and operator_of(op).keeps_coding:
            free.add(op.output)
    names = [graph.input, *(op.output for op in graph.ops)]
    return [name for name in names if name not in graph.codings and name not in free]


@dataclass
class HeadStatistics:
    """How far apart the outputs lie, and how large what they are made of is, of each sample.

    ``margins`` are distances of the largest output to the next, of one output or of answers of yes
    or no those to 0, the nearest. ``squares`` are the squared norms of an output's gradient by the
    head's weights and bias, and by a value before it: a step of SGD moves the output by learning
    rate times error times that.
    """

    margins: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)

    def add(
        self, head: FloatHead, inputs: NDArray[np.float64], outputs: NDArray[np.float64]
    ) -> None:
        """Adds a batch: inputs (N, C, H, W), outputs (N, O)."""
        if head.loss == "binary" or outputs.shape[1] == 1:
            margins = np.abs(outputs).min(axis=1)
        else:
            ordered = np.sort(outputs, axis=1)
            margins = ordered[:, -1] - ordered[:, -2]
        self.margins += margins.tolist()
        of_input = 1.0 + float((head.weight**2).sum(axis=1).mean())
        self.squares += (of_input + (inputs**2).reshape(len(inputs), -1).sum(axis=1)).tolist()


def observe(
    graph: FloatGraph, samples: NDArray[np.floating], head: HeadStatistics | None = None
) -> dict[str, TensorStatistics]:
    """Statistics of every tensor but the logits over samples (N, C, H, W); of these in ``head``.

    Raises ModelError for a tensor that overflows.
    """
    caps = {op.output: op.clamp.high for op in graph.ops if isinstance(op, Clamped)}
    statistics = {
        name: TensorStatistics(shape[0], caps.get(name, math.inf))
        for name, shape in graph.shapes.items()
    }
    for batch in batches(graph, samples):
        statistics[graph.input].add(batch.astype(np.float64))
        for op, inputs, values in execute(graph, batch):
            if not np.isfinite(values).all():
                raise ModelError(
                    f"tensor '{op.output}' overflows on the calibration set; the model's weights "
                    "or the calibration set are out of scale"
                )
            if op.output in statistics:
                statistics[op.output].add(values)
            elif head is not None and isinstance(op, FloatHead):
                head.add(op, inputs[0], values)
    return statistics


def batches(graph: FloatGraph, samples: NDArray[np.floating]) -> Iterator[NDArray[np.floating]]:
    """``samples`` in runs so short that executing one takes about 64 MiB at most."""
    widest = max(_working_bytes(graph, index) for index in range(len(graph.ops)))
    count = min(max(_BATCH_BYTES // widest, 1), _LARGEST_BATCH)
    for start in range(0, len(samples), count):
        yield samples[start : start + count]


def _working_bytes(graph: FloatGraph, index: int) -> int:
    """Bytes per sample of an operation's inputs and output, a copy of each, and its columns."""
    op = graph.ops[index]
    names = [*inputs_of(op), op.output]
    values = 2 * sum(math.prod(graph.shapes.get(name, (1,))) for name in names)
    if isinstance(op, FloatConv) and not op.depthwise:
        values += math.prod(op.weight.shape[1:]) * math.prod(graph.shapes[op.output][1:])
    return 8 * values
