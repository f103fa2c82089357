"""A dense training step in float beside tinyfleet's: MCUNet-5FPS on a Cortex-M7.

What an engine does that trains everything in float: every layer forward, every activation kept,
every gradient, SGD. The kernels are C, compiled as firmware compiles its kernels (the same compiler
and flags, the FPU in use), and each call of them is counted in emulation; the network, its weights
and its activations' bounds are those of the int8 model. Softmax and its error are computed outside,
ten values. The sparse int8 step is counted in its firmware's image.

Memory is what such an engine has to hold at the same time: weights, their gradients, all
activations, the two largest errors next to each other; code, buffers of kernels and the allocator
are left out.

    python -m benchmarks.dense [--plan 49kb] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.mcunet import MODEL, PLANS, require_model
from codegen.graph.ir import Conv, DepthwiseConv, Graph, Head
from codegen.importer.model import import_model
from codegen.operators.add import Add
from codegen.operators.global_average_pool import GlobalAveragePool
from codegen.quantization.model import quantize_model
from fleet.cli._output import console, table
from fleet.firmware import compile_firmware
from simulator.machines.kernel_call import ArmKernels, Struct, arm_kernels
from simulator.machines.measure import measure

Floats = NDArray[np.float32]
KERNELS = Path(__file__).parent / "kernels.c"
RATE_Q20 = 1 << 14
LABEL = 3


@dataclass(frozen=True)
class Memory:
    """Bytes that a dense step holds at the same time."""

    weights: int
    gradients: int
    activations: int
    errors: int
    momentum: int
    """Optimizer state, where there is momentum."""

    @property
    def plain(self) -> int:
        """With SGD."""
        return self.weights + self.gradients + self.activations + self.errors


def dense_memory(graph: Graph) -> Memory:
    """What training all of ``graph`` in float takes."""
    layers = (*graph.convolutions, graph.head)
    parameters = 4 * sum(op.weight.size + op.bias.size for op in layers)
    sizes = [4 * tensor.size for tensor in graph.tensors.values()]
    pairs = [
        4 * (graph.tensors[op.output].size + graph.tensors[op.input].size)
        for op in graph.convolutions
    ]
    return Memory(parameters, parameters, sum(sizes), max(pairs), parameters)


class DenseNetwork:
    """A graph in float, whose kernels run on an emulated core."""

    def __init__(self, graph: Graph, core: ArmKernels, *, blocked: bool) -> None:
        """``blocked``: pointwise layers as matrix products in registers."""
        self.graph = graph
        self._core = core
        self._blocked = blocked
        self.instructions: Counter[str] = Counter()
        self.parameters: dict[str, tuple[Floats, Floats]] = {}
        for op in (*graph.convolutions, graph.head):
            step = np.asarray(op.weight_scale, np.float64)
            if isinstance(op, Head):
                step = step / 256
            shaped = step.reshape(-1, *[1] * (op.weight.ndim - 1)) if isinstance(op, Conv) else step
            weight = np.ascontiguousarray(op.weight * shaped, np.float32)
            bias = op.bias * step * graph.tensors[op.input].scale
            self.parameters[op.name] = weight, np.ascontiguousarray(bias, np.float32)

    def step(self, sample: Floats, label: int, *, train: bool = True) -> float:
        """Loss of the sample, in nats, before the step that it takes."""
        values = {self.graph.input: sample}
        for op in self.graph.ops:
            if isinstance(op, Head):
                logits = self._head_forward(op, values)
            else:
                values[op.output] = self._forward(op, values)
        chances = np.exp(logits - logits.max())
        chances /= chances.sum()
        if train:
            error = chances.astype(np.float32)
            error[label] -= 1
            self._backward(values, error)
        return float(-np.log(chances[label]))

    def _call(self, phase: str, function: str, *arguments: Any) -> None:
        self.instructions[phase] += self._core.call(f"tf_dense_{function}", *arguments).instructions

    def _layer(self, op: Conv | DepthwiseConv | Add) -> Struct:
        """The dense_layer."""
        output = self.graph.tensors[op.output]
        sizes = [0] * 12
        if not isinstance(op, Add):
            taps = op.weight.shape[1:3] if isinstance(op, Conv) else op.weight.shape[:2]
            source = self.graph.tensors[op.input].shape
            pad = op.padding
            sizes = [*source, *output.shape, *taps, *op.stride, pad.top, pad.left]
        bounds = [(code - output.zero_point) * output.scale for code in (-128, 127)]
        words = np.array(bounds, np.float32).view(np.int32)
        fields = [*sizes, *(int(word) for word in words), int(self._blocked)]
        return Struct(*(("i", field) for field in fields))

    def _forward(self, op: Any, values: dict[str, Floats]) -> Floats:
        out = np.zeros(self.graph.tensors[op.output].shape, np.float32)
        match op:
            case Conv() | DepthwiseConv():
                kind = "convolution" if isinstance(op, Conv) else "depthwise"
                operands = values[op.input], *self.parameters[op.name], out
                self._call("forward", f"{kind}_forward", self._layer(op), *operands)
            case Add():
                a, b = (values[name] for name in op.inputs)
                self._call("forward", "add_forward", self._layer(op), a, b, out, out.size)
            case GlobalAveragePool():
                pixels, channels = values[op.input][..., 0].size, out.size
                self._call("forward", "pool_forward", values[op.input], out, pixels, channels)
            case _:
                raise ValueError(f"there is no dense kernel for {op}")
        return out

    def _head_layer(self, op: Head) -> Struct:
        outputs, inputs = op.weight.shape
        words = [int(np.float32(bound).view(np.int32)) for bound in (-np.inf, np.inf)]
        fields = [1, 1, inputs, 1, 1, outputs, 1, 1, 1, 1, 0, 0, *words, int(self._blocked)]
        return Struct(*(("i", field) for field in fields))

    def _head_forward(self, op: Head, values: dict[str, Floats]) -> Floats:
        logits = np.zeros(op.bias.size, np.float32)
        operands = values[op.input], *self.parameters[op.name], logits
        self._call("forward", "convolution_forward", self._head_layer(op), *operands)
        return logits

    def _backward(self, values: dict[str, Floats], error: Floats) -> None:
        errors: dict[str, Floats] = {}
        for op in reversed(self.graph.ops):
            match op:
                case Head():
                    passed = self._through(op, self._head_layer(op), "convolution", values, error)
                    self._send(errors, op.input, passed)
                case Conv() | DepthwiseConv():
                    kind = "convolution" if isinstance(op, Conv) else "depthwise"
                    below = self._clamped(op, values, errors)
                    passed = self._through(op, self._layer(op), kind, values, below)
                    self._send(errors, op.input, passed)
                case Add():
                    below = self._clamped(op, values, errors)
                    for name in op.inputs:
                        self._send(errors, name, below.copy())
                case GlobalAveragePool():
                    spread = np.zeros(self.graph.tensors[op.input].shape, np.float32)
                    pixels, channels = spread[..., 0].size, spread.shape[-1]
                    operands = errors[op.output], spread, pixels, channels
                    self._call("backward", "pool_backward", *operands)
                    self._send(errors, op.input, spread)

    def _clamped(self, op: Any, values: dict[str, Floats], errors: dict[str, Floats]) -> Floats:
        error = errors.pop(op.output)
        operands = values[op.output], error, error.size
        self._call("backward", "clamp_backward", self._layer(op), *operands)
        return error

    def _through(
        self,
        op: Conv | DepthwiseConv | Head,
        layer: Struct,
        kind: str,
        values: dict[str, Floats],
        error: Floats,
    ) -> Floats | None:
        """The error of the input, None of the sample; all weights take their step."""
        weight, bias = self.parameters[op.name]
        source = values[op.input]
        passed = None if op.input == self.graph.input else np.zeros_like(source)
        gradients = np.zeros_like(weight), np.zeros_like(bias)
        operands = source, weight, error, passed, *gradients
        self._call("backward", f"{kind}_backward", layer, *operands)
        for value, gradient in zip((weight, bias), gradients, strict=True):
            self._call("update", "sgd", value, gradient, value.size, RATE_Q20)
        return passed

    def _send(self, errors: dict[str, Floats], tensor: str, error: Floats | None) -> None:
        if error is None:
            return
        shaped = error.reshape(self.graph.tensors[tensor].shape)
        if tensor in errors:
            self._call("backward", "accumulate", errors[tensor], shaped, shaped.size)
        else:
            errors[tensor] = shaped


def counted(graph: Graph, *, blocked: bool) -> Counter[str]:
    """Instructions of a dense step by phase; checks that the step lowers the loss."""
    core = arm_kernels([KERNELS], [])
    network = DenseNetwork(graph, core, blocked=blocked)
    source = graph.tensors[graph.input]
    codes = np.random.default_rng(1).integers(-128, 128, source.shape)
    sample = ((codes - source.zero_point) * source.scale).astype(np.float32)
    before = network.step(sample, LABEL)
    instructions = network.instructions.copy()
    after = network.step(sample, LABEL, train=False)
    assert after < before, f"the dense step took the loss from {before} to {after}"
    return instructions


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", default="49kb")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    require_model()
    graph = quantize_model(import_model(MODEL), None).graph
    screen = console()
    with tempfile.TemporaryDirectory() as folder:
        bundle = compile_firmware(
            MODEL, "stm32f746", [f"{PLANS}#{options.plan}"], None, Path(folder) / "bundle"
        )
        sparse = measure(Path(folder) / "bundle")
    sram = bundle.report.plans[0].sram_bytes
    steps = {}
    for name, blocked in (("plain loops", False), ("blocks in registers", True)):
        with screen.status(f"dense step, {name}"):
            steps[name] = counted(graph, blocked=blocked)
    ours = sparse.instructions.step
    rows: list[list[object]] = [
        [f"dense fp32, {name}", *(step[phase] for phase in ("forward", "backward", "update")),
         step.total(), f"{step.total() / ours:.1f}"]
        for name, step in steps.items()
    ]  # fmt: skip
    forward = sparse.instructions.forward
    rows.append([f"tinyfleet, plan {options.plan}", forward, ours - forward, "", ours, "1"])
    titles = ["step", "forward", "backward", "update", "instructions", "of tinyfleet's"]
    screen.print(table("One training step", titles, rows))
    memory = dense_memory(graph)
    whole = sram.total - sram.link
    shown: list[list[object]] = [[name, size] for name, size in asdict(memory).items()]
    shown += [
        ["together, SGD", memory.plain],
        ["together, momentum", memory.plain + memory.momentum],
        [f"tinyfleet, plan {options.plan}: arena and state", sram.arena + sram.state],
        [f"tinyfleet, plan {options.plan}: all but the link", whole],
        ["SGD, of tinyfleet's arena and state", f"{memory.plain / (sram.arena + sram.state):.1f}"],
        ["SGD, of all but the link", f"{memory.plain / whole:.1f}"],
    ]
    screen.print(table("Memory, bytes", ["what", "bytes"], shown))
    if options.json is not None:
        figures = {"steps": steps, "memory": asdict(memory), "sparse": ours, "sram": whole}
        options.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
