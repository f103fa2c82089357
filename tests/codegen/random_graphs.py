"""Small random networks with every operation, for tests that compare implementations."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np

from codegen.graph.floats import (
    Clamp,
    Coding,
    FloatConv,
    FloatGraph,
    FloatHead,
    FloatOp,
    FloatTensorOutput,
    conv_output_shape,
    window_output_shape,
)
from codegen.graph.ir import Graph, Head, Loss, Padding
from codegen.operators.add import FloatAdd
from codegen.operators.average_pool import AveragePool
from codegen.operators.channel_max import ChannelMax
from codegen.operators.concat import Concat
from codegen.operators.expand import Expand
from codegen.operators.functions import Function, X
from codegen.operators.gather import Gather, PictureAxis
from codegen.operators.global_average_pool import GlobalAveragePool
from codegen.operators.gru import FloatGru
from codegen.operators.layer_normalization import FloatLayerNormalization
from codegen.operators.lookup import Lookup
from codegen.operators.lstm import FloatLstm
from codegen.operators.max_pool import MaxPool
from codegen.operators.product import FloatProduct
from codegen.operators.rearrange import OUTSIDE, Rearrange, by_axis
from codegen.operators.requantize import FloatClamp
from codegen.operators.scaling import FloatScaling
from codegen.operators.transpose import Transpose
from codegen.program.plans import Plan, WeightUpdate
from codegen.quantization.quantize import quantize, quantize_input

RELU6 = Clamp(0.0, 6.0)
FUNCTIONS: tuple[Function, ...] = (
    ("mul", X, ("clip", ("affine", X, 1 / 6, 0.5), 0.0, 1.0)),  # HardSwish
    ("mul", X, ("sigmoid", X)),
    ("mul", X, ("affine", ("erf", ("affine", X, 0.5**0.5, 0.0)), 0.5, 0.5)),  # GELU
    ("leaky", X, 0.1),
    ("elu", X, 1.0),
    ("tanh", X),
)


class _Network:
    def __init__(self, rng: np.random.Generator, size: tuple[int, int], channels: int) -> None:
        self.rng = rng
        self.shapes = {"x": (channels, *size)}
        self.ops: list[FloatOp] = []
        self.codings: dict[str, Coding] = {}
        self.last = "x"

    def conv(
        self,
        name: str,
        outputs: int,
        kernel: int,
        stride: int = 1,
        depthwise: bool = False,
        clamp: Clamp = RELU6,
        padding: Padding | None = None,
    ) -> None:
        channels, height, _ = self.shapes[self.last]
        kernel = min(kernel, height)
        before = (kernel - 1) // 2
        after = int(self.rng.integers(before, kernel)) if kernel > 1 else 0
        inputs = 1 if depthwise else channels
        spread = 1.5 / np.sqrt(inputs * kernel * kernel)
        op = FloatConv(
            name=name,
            input=self.last,
            output=f"{name}.y",
            weight=self.rng.normal(0, spread, (outputs, inputs, kernel, kernel)),
            bias=self.rng.normal(0.2, 0.3, outputs),
            groups=channels if depthwise else 1,
            stride=(stride, stride),
            padding=padding or Padding(before, before, after, after),
            clamp=clamp,
        )
        self.shapes[op.output] = conv_output_shape(op, self.shapes[self.last])
        self.ops.append(op)
        self.last = op.output

    def add(self, name: str, other: str, subtracts: bool = False) -> None:
        self.ops.append(FloatAdd(name, (self.last, other), f"{name}.y", subtracts=subtracts))
        self.shapes[f"{name}.y"] = self.shapes[self.last]
        self.last = f"{name}.y"

    def clamp(self, name: str, clamp: Clamp) -> None:
        self._append(FloatClamp(name, self.last, f"{name}.y", clamp), self.shapes[self.last])

    def function(self, name: str, function: Function) -> None:
        """A table by code."""
        self._append(Lookup(name, self.last, f"{name}.y", function), self.shapes[self.last])

    def rearrange(self, name: str, draw: np.random.Generator) -> None:
        """Pixels twice, apart, or in rows by their column's remainder; some cut off."""
        channels, height, width = self.shapes[self.last]
        kind = int(draw.integers(3))
        rows, columns = (list(range(-1, 2 * size)) for size in (height, width))
        if kind == 0:
            places = by_axis([row // 2 for row in rows], [column // 2 for column in columns[2:]])
        elif kind == 1:
            apart = [[i // 2 if i % 2 == 0 else OUTSIDE for i in line] for line in (rows, columns)]
            places = by_axis(*apart)
        else:
            by_y = tuple(range(height)), tuple(index % 2 for index in range(height))
            by_x = (0,) * ((width + 1) // 2), tuple(range(0, width, 2))
            places = (by_y[0], by_x[0]), (by_y[1], by_x[1])
        op = Rearrange(name, self.last, f"{name}.y", *places)
        self._append(op, (channels, *op.size))

    def transpose(self, name: str) -> None:
        """All elements in an order of rows, columns and parts of the channels."""
        channels, *size = self.shapes[self.last]
        part = next((n for n in (3, 2) if channels % n == 0), 1)
        sizes = (*size, part, channels // part)
        order = self.rng.permutation(len(sizes))
        height, width, *rest = (sizes[axis] for axis in order)
        shape = (int(np.prod(rest)), height, width)
        axes = tuple(order.tolist())
        self._append(Transpose(name, self.last, f"{name}.y", sizes, axes, shape), shape)

    def twice(self, name: str, size: tuple[int, int]) -> None:
        """Each pixel as often as it takes to make a picture of ``size``."""
        channels, *before = self.shapes[self.last]
        rows, columns = (
            [i * old // new for i in range(new)] for old, new in zip(before, size, strict=True)
        )
        op = Rearrange(name, self.last, f"{name}.y", *by_axis(rows, columns))
        self._append(op, (channels, *op.size))

    def concat(self, name: str, other: str) -> None:
        channels = self.shapes[self.last][0] + self.shapes[other][0]
        shape = (channels, *self.shapes[self.last][1:])
        self._append(Concat(name, (self.last, other), f"{name}.y"), shape)

    def gather(self, name: str, axis: PictureAxis, indices: np.ndarray) -> None:
        shape = list(self.shapes[self.last])
        shape[("channels", "height", "width").index(axis)] = len(indices)
        op = Gather(name, self.last, f"{name}.y", axis, tuple(indices.tolist()))
        self._append(op, tuple(shape))

    def choice(self, name: str, axis: PictureAxis) -> None:
        """Entries of an axis in one of the ways in which models choose them."""
        size = self.shapes[self.last][("channels", "height", "width").index(axis)]
        every, half = np.arange(size), -(-size // 2)
        ways = (
            self.rng.permutation(size),
            every[int(self.rng.integers(0, half)) :][:half],
            every[:: int(self.rng.choice([-1, 2]))],
            self.rng.integers(0, size, size + 1),
        )
        self.gather(name, axis, ways[int(self.rng.integers(len(ways)))])

    def mean(self, name: str, rows: bool, columns: bool) -> None:
        """Over whole rows, whole columns or both."""
        channels, height, width = self.shapes[self.last]
        window = (height if columns else 1, width if rows else 1)
        op = AveragePool(name, self.last, f"{name}.y", window, window)
        self._append(op, (channels, height // window[0], width // window[1]))

    def expand(self, name: str, shape: tuple[int, ...]) -> None:
        channels, height, width = shape
        self._append(Expand(name, self.last, f"{name}.y", (channels, height, width)), shape)

    def product(self, name: str, large: str) -> None:
        """``large`` times the last tensor, which may be smaller."""
        op = FloatProduct(name, (large, self.last), f"{name}.y", RELU6)
        self._append(op, self.shapes[large])

    def scaling(self, name: str) -> None:
        """Constants along some axes, with or without gains of their own below 0."""
        shape = self.shapes[self.last]
        varies = self.rng.random(3) < 0.5
        size = [n if varying else 1 for n, varying in zip(shape, varies, strict=True)]
        gain, shift = self.rng.normal(1, 0.7, size), self.rng.normal(0, 0.3, size)
        below = self.rng.normal(0, 0.4, size) if self.rng.random() < 0.5 else None
        clamp = RELU6 if self.rng.random() < 0.5 else Clamp()
        op = FloatScaling(name, self.last, f"{name}.y", gain, shift, below, clamp)
        self._append(op, shape)

    @contextmanager
    def aside(self, *seed: int) -> Iterator[None]:
        """Draws from a generator of its own, so that the rest of the graph stays as it is."""
        rng, self.rng = self.rng, np.random.default_rng(seed)
        yield
        self.rng = rng

    def normalize(self, name: str) -> None:
        """Pixels by themselves, or the whole picture; with their mean or less it."""
        channels, height, width = shape = self.shapes[self.last]
        count = channels if self.rng.random() < 0.7 else channels * height * width
        gain, shift = self.rng.normal(1, 0.5, count), self.rng.normal(0, 0.3, count)
        clamp = RELU6 if self.rng.random() < 0.4 else Clamp()
        epsilon = float(self.rng.choice([1e-6, 1e-3]))
        centred = bool(self.rng.random() < 0.6)
        ends = (name, self.last, f"{name}.y")
        op = FloatLayerNormalization(*ends, gain, shift, epsilon, clamp, centred)
        self._append(op, shape)

    def gate(self, name: str) -> None:
        """The last tensor times one of its size, or of one channel, row, column or pixel."""
        large = self.last
        channels = self.shapes[large][0] if self.rng.random() < 0.6 else 1
        if self.rng.random() < 0.7:
            rows, columns = (bool(self.rng.random() < 0.6) for _ in range(2))
            self.mean(f"{name}.mean", rows, columns)
        self.conv(f"{name}.gate", channels, 1, clamp=Clamp())
        self.function(f"{name}.bend", ("sigmoid", X))
        self.product(name, large)

    def cell(self, name: str, last: bool) -> None:
        """A GRU of either kind, or an LSTM, with what it makes of its input before it."""
        _, height, width = self.shapes[self.last]
        kind, units = int(self.rng.integers(3)), int(self.rng.integers(5, 14))
        gates = 4 if kind == 2 else 3
        self.conv(f"{name}_input", gates * units, 1, clamp=Clamp())
        weights = self.rng.normal(0, 1 / np.sqrt(units), (gates * units, units))
        ends = (name, self.last, f"{name}.y")
        if kind == 2:
            op: FloatOp = FloatLstm(*ends, weights, last)
        else:
            bias = self.rng.normal(0, 0.5, units) if kind == 1 else None
            op = FloatGru(*ends, weights, last, bias)
        self._append(op, (units, 1, 1) if last else (units, height, width))

    def attend(self, name: str) -> None:
        """The last tensor times a gate that its pixels' largest channels make."""
        large = self.last
        shape = self.shapes[large]
        self._append(ChannelMax(f"{name}.most", large, f"{name}.most.y"), (1, *shape[1:]))
        self.conv(f"{name}.look", 1, 1, clamp=Clamp())
        self.function(f"{name}.bend", ("sigmoid", X))
        self.product(name, large)

    def pool(self, name: str, largest: bool) -> None:
        channels, *size = self.shapes[self.last]
        window = tuple(int(min(self.rng.integers(1, 5), length)) for length in size)
        stride = tuple(int(self.rng.integers(1, 4)) for _ in size)
        most = [(length - 1) // 2 for length in window]
        before = [int(self.rng.integers(0, pad + 1)) for pad in most]
        after = [int(self.rng.integers(0, pad + 1)) for pad in most]
        pad = Padding(before[0], before[1], after[0], after[1])
        op: MaxPool | AveragePool
        if largest:
            op = MaxPool(name, self.last, f"{name}.y", window, stride, pad)
        else:
            counted = pad if self.rng.random() < 0.5 else Padding()
            op = AveragePool(name, self.last, f"{name}.y", window, stride, pad, counted)
            if self.rng.random() < 0.5:
                zero = int(self.rng.integers(-128, 20))
                self.codings[op.output] = Coding(float(self.rng.uniform(0.004, 0.03)), zero)
        shape = (channels, *window_output_shape(window, stride, pad, (size[0], size[1])))
        self._append(op, shape)

    def dense(self, name: str, outputs: int) -> None:
        """A convolution whose kernel is the whole picture."""
        shape = self.shapes[self.last]
        weight = self.rng.normal(0, 1.5 / np.sqrt(np.prod(shape)), (outputs, *shape))
        bias = self.rng.normal(0.2, 0.3, outputs)
        op = FloatConv(name, self.last, f"{name}.y", weight, bias, clamp=RELU6)
        self._append(op, (outputs, 1, 1))

    def _append(self, op: FloatOp, shape: tuple[int, ...]) -> None:
        self.ops.append(op)
        self.shapes[op.output] = shape
        self.last = op.output

    def finish_flat(self, loss: Loss) -> FloatGraph:
        """A head over every element of the last tensor."""
        inputs = int(np.prod(self.shapes[self.last]))
        outputs = int(self.rng.integers(2, 8))
        if loss == "mse":
            outputs = int(np.prod(self.shapes["x"]))
        weight = self.rng.normal(0, 1 / np.sqrt(inputs), (outputs, inputs))
        bias = self.rng.normal(0, 0.2, outputs)
        self.ops.append(FloatHead("head", self.last, "outputs", weight, bias, loss))
        return FloatGraph("pooled", "x", self.shapes, tuple(self.ops), self.codings)

    def finish(self, classes: int) -> FloatGraph:
        channels = self.shapes[self.last][0]
        self.ops.append(GlobalAveragePool("pool", self.last, "pool.y"))
        self.shapes["pool.y"] = (channels, 1, 1)
        weight = self.rng.normal(0, 1 / np.sqrt(channels), (classes, channels))
        bias = self.rng.normal(0, 0.2, classes)
        self.ops.append(FloatHead("head", "pool.y", "logits", weight, bias))
        return FloatGraph("random", "x", self.shapes, tuple(self.ops))


def random_graph(seed: int, size: int = 6, smooth: bool = True) -> tuple[Graph, np.ndarray]:
    """A quantized network and int8 samples (n, H, W, C) for it.

    Channel counts are odd and even, kernels 1 to 5, strides 1 and 2, one residual addition, and
    ``smooth`` activations.
    """
    rng = np.random.default_rng(seed)
    network = _Network(rng, (size, size), int(rng.choice([1, 3, 4])))
    network.conv("stem", int(rng.integers(3, 9)), int(rng.choice([1, 3, 5])))
    width = int(rng.integers(4, 10))
    network.conv("squeeze", width, 1, clamp=Clamp())
    skip = network.last
    hidden = int(rng.integers(5, 14))
    # Of a generator of its own, so that the rest of the graph stays as it is.
    draw = np.random.default_rng([seed, 3])
    first, last = (FUNCTIONS[int(index)] for index in draw.integers(len(FUNCTIONS), size=2))
    bends = smooth and draw.random() < 0.6
    network.conv("expand", hidden, 1, clamp=Clamp() if bends else RELU6)
    if bends:
        network.function("bend", first)
    # The residual needs the same size again, so its depthwise layer pads evenly.
    state = rng.bit_generator.state
    network.conv("mix", hidden, 1, depthwise=hidden > 1)
    rng.bit_generator.state = state
    network.conv("project", width, 1, clamp=Clamp())
    network.add("join", skip)
    move = np.random.default_rng([seed, 4])
    if smooth and move.random() < 0.5:
        network.rearrange("move", move)
    network.conv("down", width, int(rng.choice([3, 5])), int(rng.integers(1, 3)), depthwise=True)
    clamp = Clamp() if smooth else RELU6
    network.conv("last", int(rng.integers(4, 12)), int(rng.choice([1, 3])), clamp=clamp)
    if smooth:
        network.function("end", last)
    return _quantized(network.finish(int(rng.integers(2, 8))), rng)


def _quantized(graph: FloatGraph, rng: np.random.Generator) -> tuple[Graph, np.ndarray]:
    samples = rng.normal(0, 1, (24, *graph.shapes["x"])).astype(np.float32)
    quantized = quantize(graph, samples)
    return quantized, quantize_input(quantized, np.moveaxis(samples, 1, -1))


def random_pooled_graph(seed: int, loss: Loss | None = None) -> tuple[Graph, np.ndarray]:
    """A network of pools, branches and fully connected layers, and int8 samples (n, H, W, C).

    Pools have windows, strides and padding of all kinds, and one has a scale of its own; a branch
    with an activation of its own is concatenated with another one; at the end stand a fully
    connected layer and a head over a whole picture, or a reconstruction of the input.
    """
    rng = np.random.default_rng([seed, 1])
    height = int(rng.choice([1, 7, 8]))
    network = _Network(rng, (height, int(rng.integers(7, 11))), int(rng.choice([1, 2, 3])))
    network.conv("stem", int(rng.integers(3, 8)), 3, clamp=Clamp())
    fork = network.last
    network.clamp("bend", RELU6 if rng.random() < 0.7 else Clamp(-0.5, 0.8))
    network.conv("left", int(rng.integers(2, 7)), 1)
    if rng.random() < 0.5:
        network.concat("both", fork)
        network.pool("first", largest=bool(rng.random() < 0.7))
    else:
        network.pool("first", largest=bool(rng.random() < 0.7))
    network.conv("middle", int(rng.integers(3, 9)), 3)
    network.pool("second", largest=bool(rng.random() < 0.4))
    if rng.random() < 0.6:
        network.dense("hidden", int(rng.integers(4, 20)))
    chosen = loss or ("mse" if rng.random() < 0.3 else "cross-entropy")
    return _quantized(network.finish_flat(chosen), rng)


def random_gated_graph(seed: int) -> tuple[Graph, np.ndarray]:
    """A network of chosen channels, rows and columns, gates, what is repeated, normalized or
    put in another order, and int8 samples (n, H, W, C)."""
    rng = np.random.default_rng([seed, 4])
    network = _Network(rng, (int(rng.integers(4, 8)), 6), int(rng.choice([1, 3])))
    network.conv("stem", int(rng.integers(4, 9)), 3, clamp=Clamp())
    network.scaling("scaled")
    fork = network.last
    network.choice("some", "channels")
    network.conv("own", int(rng.integers(3, 7)), 1)
    network.concat("both", fork)
    network.choice("shuffled", "channels")
    with network.aside(seed, 5):
        network.normalize("normed")
        network.attend("attended")
    network.choice("crop", "height" if rng.random() < 0.5 else "width")
    network.scaling("bent")
    network.gate("excite")
    whole = network.last
    network.mean("part", bool(rng.random() < 0.5), True)
    network.conv("context", int(rng.choice([1, network.shapes[whole][0]])), 1, clamp=Clamp())
    network.expand("around", network.shapes[whole])
    network.add("met", whole, subtracts=bool(rng.random() < 0.5))
    with network.aside(seed, 6):
        network.transpose("turned")
    network.conv("last", int(rng.integers(4, 9)), 3)
    return _quantized(network.finish_flat("cross-entropy"), rng)


def random_recurrent_graph(seed: int) -> tuple[Graph, np.ndarray]:
    """A network of recurrent cells, of which the states or their last are read, and int8 samples
    (n, H, W, C)."""
    rng = np.random.default_rng([seed, 5])
    network = _Network(rng, (1, int(rng.integers(5, 14))), int(rng.integers(1, 6)))
    network.conv("stem", int(rng.integers(6, 10)), 1)
    if rng.random() < 0.5:
        network.cell("first", last=False)
    network.cell("second", last=bool(rng.random() < 0.5))
    return _quantized(network.finish_flat("cross-entropy"), rng)


def random_picture_graph(seed: int) -> tuple[Graph, np.ndarray]:
    """A network that makes its input's picture without a matrix at the end, and int8 samples
    (n, H, W, C).

    The picture is halved and made twice as large again; at the end stands a convolution with or
    without an activation, a table, or a sum.
    """
    rng = np.random.default_rng([seed, 6])
    size = int(rng.integers(5, 9)), int(rng.integers(5, 9))
    even = Padding(1, 1, 1, 1)
    network = _Network(rng, size, int(rng.choice([1, 2, 3])))
    channels = network.shapes["x"][0]
    network.conv("stem", int(rng.integers(4, 8)), 3, padding=even)
    whole = network.last
    network.conv("down", int(rng.integers(3, 7)), 3, 2, padding=even)
    network.twice("up", size)
    network.conv("mix", network.shapes[whole][0], 3, clamp=Clamp(), padding=even)
    if rng.random() < 0.5:
        network.add("joined", whole)
    end = int(rng.integers(4))
    kernel, clamp = (3, RELU6) if end == 0 else (1, Clamp())
    network.conv("last", channels, kernel, clamp=clamp, padding=even if kernel == 3 else None)
    if end == 1:
        network.function("end", ("sigmoid", X))
    elif end == 2:
        branch, network.last = network.last, whole
        network.conv("other", channels, 1, clamp=Clamp())
        network.add("end", branch)
    network.ops.append(FloatTensorOutput("outputs", network.last, "outputs"))
    return _quantized(FloatGraph("picture", "x", network.shapes, tuple(network.ops)), rng)


def random_target_graph(seed: int, loss: Literal["binary", "mse"]) -> tuple[Graph, np.ndarray]:
    """A `random_graph` whose outputs are each a yes or no, or stand for targets.

    With flat samples for it, the bytes of their targets behind the input.
    """
    graph, samples = random_graph(seed)
    rng = np.random.default_rng([seed, 4])
    outputs = int(rng.integers(1, graph.head.bias.size + 1))
    head = dataclasses.replace(
        graph.head,
        weight=graph.head.weight[:outputs],
        bias=graph.head.bias[:outputs],
        loss=loss,
        target_scale=float(rng.choice([1e-5, 3e-4, 0.02])) if loss == "mse" else None,
    )
    flat = samples.reshape(len(samples), -1)
    if loss == "mse":
        targets = rng.integers(-(2**15), 2**15, (len(samples), outputs)).astype("<i2")
        flat = np.concatenate([flat, targets.view(np.int8)], axis=1)
    return dataclasses.replace(graph, ops=(*graph.ops[:-1], head)), flat


def padded_graph(padding: Padding, seed: int = 0) -> tuple[Graph, np.ndarray]:
    """Kernels of one tap and stride 1 that see ``padding``, full and depthwise, between others, and
    int8 samples (n, H, W, C)."""
    rng = np.random.default_rng([seed, 2])
    network = _Network(rng, (9, 8), 4)
    network.conv("first", 8, 1, padding=padding)
    network.conv("each", 8, 1, depthwise=True, padding=padding)
    network.conv("second", 16, 1, padding=padding)
    network.conv("mix", 16, 3, depthwise=True)
    network.conv("third", 7, 1, padding=padding)
    network.conv("last", 8, 1, padding=padding)
    return _quantized(network.finish(5), rng)


def full_plan(graph: Graph, state: str = "q8.8") -> Plan:
    """Every bias and every weight of ``graph``."""
    layers = graph.convolutions
    return Plan(
        name="full",
        biases=tuple(op.name for op in layers),
        weights=tuple(WeightUpdate(op.name, tuple(range(op.weight.shape[-1]))) for op in layers),
        head=isinstance(graph.ending, Head),
        state=state,
        loss=graph.ending.loss,
    )


def random_plan(graph: Graph, seed: int) -> Plan:
    """Some of the last biases, some channels of some weights."""
    rng = np.random.default_rng(seed)
    layers = graph.convolutions
    first = int(rng.integers(0, len(layers)))
    weights = []
    for op in layers[int(rng.integers(0, len(layers))) :]:
        if rng.random() < 0.6:
            size = op.weight.shape[-1]
            count = int(rng.integers(1, size + 1))
            channels = sorted(rng.choice(size, count, replace=False).tolist())
            weights.append(WeightUpdate(op.name, tuple(channels)))
    return Plan(
        name=f"random {seed}",
        biases=tuple(op.name for op in layers[first:]),
        weights=tuple(weights),
        head=bool(rng.random() < 0.8) and isinstance(graph.ending, Head),
        state=str(rng.choice(["q8.8", "int8-stochastic"])),
        accumulate=int(rng.choice([1, 1, 1, 3])),
        momentum_q8=int(rng.choice([0, 0, 230])),
        loss=graph.ending.loss,
    )
