"""Small random networks with every operation, for tests that compare implementations."""

import numpy as np

from codegen.float_graph import (
    Clamp,
    FloatAdd,
    FloatConv,
    FloatGraph,
    FloatHead,
    FloatOp,
    FloatPool,
    conv_output_shape,
)
from codegen.ir import Graph, Padding
from codegen.plans import Plan, WeightUpdate
from codegen.quantize import quantize

RELU6 = Clamp(0.0, 6.0)


class _Network:
    def __init__(self, rng: np.random.Generator, size: tuple[int, int], channels: int) -> None:
        self.rng = rng
        self.shapes = {"x": (channels, *size)}
        self.ops: list[FloatOp] = []
        self.last = "x"

    def conv(
        self,
        name: str,
        outputs: int,
        kernel: int,
        stride: int = 1,
        depthwise: bool = False,
        clamp: Clamp = RELU6,
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
            padding=Padding(before, before, after, after),
            clamp=clamp,
        )
        self.shapes[op.output] = conv_output_shape(op, self.shapes[self.last])
        self.ops.append(op)
        self.last = op.output

    def add(self, name: str, other: str) -> None:
        self.ops.append(FloatAdd(name, (self.last, other), f"{name}.y"))
        self.shapes[f"{name}.y"] = self.shapes[self.last]
        self.last = f"{name}.y"

    def finish(self, classes: int) -> FloatGraph:
        channels = self.shapes[self.last][0]
        self.ops.append(FloatPool("pool", self.last, "pool.y"))
        self.shapes["pool.y"] = (channels, 1, 1)
        weight = self.rng.normal(0, 1 / np.sqrt(channels), (classes, channels))
        bias = self.rng.normal(0, 0.2, classes)
        self.ops.append(FloatHead("head", "pool.y", "logits", weight, bias))
        return FloatGraph("random", "x", self.shapes, tuple(self.ops))


def random_graph(seed: int, size: int = 6) -> tuple[Graph, np.ndarray]:
    """A quantized network and int8 samples (n, H, W, C) for it.

    Channel counts are odd and even, kernels 1 to 5, strides 1 and 2, one residual addition.
    """
    rng = np.random.default_rng(seed)
    network = _Network(rng, (size, size), int(rng.choice([1, 3, 4])))
    network.conv("stem", int(rng.integers(3, 9)), int(rng.choice([1, 3, 5])))
    width = int(rng.integers(4, 10))
    network.conv("squeeze", width, 1, clamp=Clamp())
    skip = network.last
    hidden = int(rng.integers(5, 14))
    network.conv("expand", hidden, 1)
    # The residual needs the same size again, so its depthwise layer pads evenly.
    state = rng.bit_generator.state
    network.conv("mix", hidden, 1, depthwise=hidden > 1)
    rng.bit_generator.state = state
    network.conv("project", width, 1, clamp=Clamp())
    network.add("join", skip)
    network.conv("down", width, int(rng.choice([3, 5])), int(rng.integers(1, 3)), depthwise=True)
    network.conv("last", int(rng.integers(4, 12)), int(rng.choice([1, 3])))
    graph = network.finish(int(rng.integers(2, 8)))
    samples = rng.normal(0, 1, (24, *network.shapes["x"])).astype(np.float32)
    quantized = quantize(graph, samples)
    tensor = quantized.tensors[quantized.input]
    codes = np.rint(samples / tensor.scale) + tensor.zero_point
    return quantized, np.moveaxis(np.clip(codes, -128, 127).astype(np.int8), 1, -1)


def full_plan(graph: Graph, state: str = "q8.8") -> Plan:
    """Every bias and every weight of ``graph``."""
    layers = graph.convolutions
    return Plan(
        name="full",
        biases=tuple(op.name for op in layers),
        weights=tuple(WeightUpdate(op.name, tuple(range(op.weight.shape[-1]))) for op in layers),
        head=True,
        state=state,
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
        head=bool(rng.random() < 0.8),
        state=str(rng.choice(["q8.8", "int8-stochastic"])),
        accumulate=int(rng.choice([1, 1, 1, 3])),
        momentum_q8=int(rng.choice([0, 0, 230])),
    )
