"""Programs: ordered kernel calls with arena offsets for one graph and one update plan.

``lower`` is the pipeline: differentiate and prune by plan (only gradients that something
needs come into being), order the calls, give every buffer a lifetime and a place. What a
step does with its buffers is told by its ``kernel``; the interpreter has one function and
the device one C kernel for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from codegen import memory_plan
from codegen.blob import BlobTensor, layout
from codegen.errors import ModelError
from codegen.ir import Add, Conv, DepthwiseConv, GlobalAveragePool, Graph, Head, Op, inputs_of
from codegen.plans import Plan

INPUT = "input"
SCALES = "scales"
SCALE_BYTES = 8


@dataclass(frozen=True)
class Segment:
    """A run of trained values of one tensor: see docs/specification/bundle.md.

    Offsets are bytes into the plan's state. ``first_value`` is the place of the first value
    in the delta.
    """

    tensor: str
    start: int
    count: int
    values: int
    first_value: int
    state_offset: int
    fraction_offset: int | None
    shift: int


@dataclass(frozen=True)
class Step:
    """One kernel call. ``buffers`` maps the kernel's operands to buffer names."""

    name: str
    phase: str
    kernel: str
    op: Op
    buffers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    operand: int = 0
    """Which input of an addition an error is propagated to."""
    macs: int = 0


@dataclass(frozen=True)
class Program:
    """What a device runs for one plan."""

    graph: Graph
    plan: Plan
    steps: tuple[Step, ...]
    buffers: tuple[memory_plan.Buffer, ...]
    offsets: Mapping[str, int]
    error_index: Mapping[str, int]
    segments: tuple[Segment, ...]
    state_bytes: int

    @property
    def arena_bytes(self) -> int:
        """Bytes for activations, masks, errors and scratch."""
        return memory_plan.arena_bytes(self.buffers, self.offsets)

    @property
    def arena_lower_bound_bytes(self) -> int:
        """Bytes that are live at once: no order of offsets can do with less."""
        return memory_plan.lower_bound(self.buffers)

    @property
    def pool_bytes(self) -> int:
        """What ``tf_engine_pool_bytes`` asks for: arena, state, logits, alignment."""
        classes = self.graph.head.bias.size
        return (
            8 + _align(self.arena_bytes, 8) + _align(self.state_bytes, 8) + _align(4 * classes, 8)
        )

    @property
    def delta_values(self) -> int:
        """Number of values that the plan trains."""
        return sum(segment.values for segment in self.segments)

    @property
    def macs_forward(self) -> int:
        """Multiply-accumulates of one forward pass."""
        return sum(step.macs for step in self.steps if step.phase == "forward")

    @property
    def macs_backward(self) -> int:
        """Multiply-accumulates of gradients, of inputs as well as of weights."""
        return sum(step.macs for step in self.steps if step.phase == "backward")

    def phase(self, name: str) -> list[Step]:
        """Steps of ``forward``, ``loss`` or ``backward`` in order."""
        return [step for step in self.steps if step.phase == name]

    def segment_of(self, tensor: str) -> Segment | None:
        """The segment that trains ``tensor``, or None where it is frozen."""
        return next((s for s in self.segments if s.tensor == tensor), None)


def _align(value: int, to: int = 4) -> int:
    return -(-value // to) * to


def lower(graph: Graph, plan: Plan) -> Program:
    """The program that trains ``graph`` by ``plan``.

    Transposed copies of weights make input gradients faster; they are made where the arena has
    room for them at that step anyway, the costliest layers first, and never make it larger.
    """
    for op in graph.ops:
        if not isinstance(op, (Conv, DepthwiseConv, Add, GlobalAveragePool, Head)):
            raise ModelError(f"layer {op.name}: {type(op).__name__} has no kernel yet")
    if graph.head.loss != "cross-entropy":
        raise ModelError(f"loss {graph.head.loss} has no kernel yet")
    program = _build(graph, plan, frozenset())
    gradients = [step for step in program.steps if _can_be_transposed(step)]
    copied: frozenset[str] = frozenset()
    for step in sorted(gradients, key=lambda step: -step.macs):
        trial = _build(graph, plan, copied | {step.op.name})
        if trial.arena_bytes <= program.arena_bytes:
            program, copied = trial, copied | {step.op.name}
    return program


def _can_be_transposed(step: Step) -> bool:
    return (
        step.kernel == "convolution_input_gradient"
        and isinstance(step.op, Conv)
        and step.op.weight.shape[1:3] == (1, 1)
    )


def _build(graph: Graph, plan: Plan, copied: frozenset[str]) -> Program:
    """The program in which the input gradients of the layers ``copied`` transpose their weights."""
    segments, state_bytes = _segments(graph, plan)
    builder = _Builder(graph, plan, {segment.tensor for segment in segments}, copied)
    builder.forward()
    builder.loss()
    builder.backward()
    buffers = builder.buffers_with_lifetimes()
    return Program(
        graph=graph,
        plan=plan,
        steps=tuple(builder.steps),
        buffers=buffers,
        offsets=MappingProxyType(memory_plan.plan_offsets(buffers)),
        error_index=MappingProxyType(dict(builder.error_index)),
        segments=segments,
        state_bytes=state_bytes,
    )


def _delta_shift(graph: Graph, plan: Plan, tensor: BlobTensor) -> int:
    """Bits dropped from a delta, stochastically: the average over devices keeps them.

    What remains is a sixteenth of a weight's step, and a quarter of an output step for what
    moves outputs directly (biases and head): finer, a value would cost bits that vanish among
    the differences between devices.
    """
    if tensor.kind == "weight" and tensor.values.dtype == np.int8:
        return 8 if plan.state == "int8-stochastic" else 4
    if tensor.kind == "weight":
        return 6
    op = next(op for op in graph.ops if op.name == tensor.layer)
    if isinstance(op, Head):
        return 10
    assert isinstance(op, (Conv, DepthwiseConv))
    output_steps = max(tensor.step) / graph.tensors[op.output].scale
    return int(np.clip(math.floor(-math.log2(4 * output_steps)), 0, 20))


def _segments(graph: Graph, plan: Plan) -> tuple[tuple[Segment, ...], int]:
    tensors = {tensor.name: tensor for tensor in layout(graph)}
    wanted: list[tuple[BlobTensor, int, int]] = []
    for layer in plan.biases:
        bias = tensors[f"{layer}.bias"]
        wanted.append((bias, 0, bias.values.size))
    for weight in plan.weights:
        wanted.append((tensors[f"{weight.layer}.weight"], weight.start, weight.count))
    if plan.head:
        for kind in ("bias", "weight"):
            tensor = tensors[f"{graph.head.name}.{kind}"]
            wanted.append((tensor, 0, tensor.values.shape[-1]))

    segments = []
    offset = first_value = 0
    for tensor, start, count in wanted:
        values = tensor.values.size // tensor.values.shape[-1] * count
        copy, offset = offset, offset + _align(tensor.size)
        fraction = None
        if tensor.values.dtype == np.int8 and plan.state == "q8.8":
            fraction, offset = offset, offset + _align(values)
        shift = _delta_shift(graph, plan, tensor)
        segments.append(
            Segment(tensor.name, start, count, values, first_value, copy, fraction, shift)
        )
        first_value += values
    return tuple(segments), offset


class _Builder:
    """Emits steps in order and remembers which buffers each of them touches."""

    def __init__(self, graph: Graph, plan: Plan, trained: set[str], copied: frozenset[str]) -> None:
        self.graph = graph
        self.copied = copied
        self.plan = plan
        self.trained = trained
        self.steps: list[Step] = []
        self.sizes: dict[str, int] = {}
        self.error_index: dict[str, int] = {}
        self.errors: dict[str, str] = {}
        self.needs_error = self._tensors_that_need_errors()

    def _tensors_that_need_errors(self) -> set[str]:
        """Tensors whose error some trained value depends on: backward stops at the others."""
        needed: set[str] = set()
        for op in self.graph.ops:
            if isinstance(op, Head):
                continue
            trained = {f"{op.name}.weight", f"{op.name}.bias"} & self.trained
            if trained or any(name in needed for name in inputs_of(op)):
                needed.add(op.output)
        return needed

    def _buffer(self, name: str, size: int) -> str:
        self.sizes[name] = size
        return name

    def _error(self, name: str, tensor: str) -> str:
        self.error_index[name] = len(self.error_index)
        return self._buffer(name, 2 * self.graph.tensors[tensor].size)

    def _step(
        self,
        phase: str,
        kernel: str,
        op: Op,
        buffers: dict[str, str],
        *,
        macs: int = 0,
        operand: int = 0,
    ) -> None:
        self.steps.append(
            Step(
                name=f"{kernel}_{op.name}",
                phase=phase,
                kernel=kernel,
                op=op,
                buffers=MappingProxyType(buffers),
                operand=operand,
                macs=macs,
            )
        )

    def _activation(self, tensor: str) -> str:
        return INPUT if tensor == self.graph.input else f"activation {tensor}"

    def _macs(self, op: Conv | DepthwiseConv) -> int:
        height, width, _ = self.graph.tensors[op.output].shape
        return height * width * op.weight.size

    # Forward: every op once, masks where an error will pass through.

    def forward(self) -> None:
        for op in self.graph.ops:
            if isinstance(op, Head):
                buffers = {"input": self._activation(op.input)}
                self._step("forward", "head_forward", op, buffers, macs=op.weight.size)
                continue
            size = self.graph.tensors[op.output].size
            buffers = {"output": self._buffer(self._activation(op.output), size)}
            if op.output in self.needs_error and not isinstance(op, GlobalAveragePool):
                buffers["mask"] = self._buffer(f"mask {op.output}", -(-size // 8))
            if isinstance(op, Add):
                buffers["a"], buffers["b"] = map(self._activation, op.inputs)
                self._step("forward", "add_forward", op, buffers)
                continue
            buffers["input"] = self._activation(inputs_of(op)[0])
            if isinstance(op, Conv):
                columns = 2 * 2 * _align(math.prod(op.weight.shape[1:]))
                buffers["scratch"] = self._buffer(f"columns {op.name}", columns)
                self._step("forward", "convolution_forward", op, buffers, macs=self._macs(op))
            elif isinstance(op, DepthwiseConv):
                self._step("forward", "depthwise_forward", op, buffers, macs=self._macs(op))
            else:
                self._step("forward", "pool_forward", op, buffers)

    def loss(self) -> None:
        head = self.graph.head
        self.error_index["error logits"] = len(self.error_index)
        error = self._buffer("error logits", 2 * head.bias.size)
        self._step("loss", "cross_entropy", head, {"error": error})

    # Backward: gradients as a table, one method per op.

    def backward(self) -> None:
        rules: dict[type, Callable[[Any], None]] = {
            Head: self._head_backward,
            GlobalAveragePool: self._pool_backward,
            Add: self._add_backward,
            Conv: self._convolution_backward,
            DepthwiseConv: self._convolution_backward,
        }
        for op in reversed(self.graph.ops):
            if isinstance(op, Head) or op.output in self.needs_error:
                rules[type(op)](op)

    def _propagate(
        self,
        kernel: str,
        op: Op,
        tensor: str,
        buffers: dict[str, str],
        *,
        macs: int = 0,
        operand: int = 0,
    ) -> None:
        """A step that sends an error to ``tensor``, added to what other consumers have sent."""
        first = tensor not in self.errors
        name = f"error {tensor}" if first else f"error {tensor} from {op.name}"
        target = self._error(name, tensor)
        operands = {**buffers, "out": target}
        self._step("backward", kernel, op, operands, macs=macs, operand=operand)
        if first:
            self.errors[tensor] = target
        else:
            self._step("backward", "error_sum", op, {"a": self.errors[tensor], "b": target})

    def _head_backward(self, op: Head) -> None:
        error = {"error": "error logits"}
        macs = op.weight.size
        if op.input in self.needs_error:
            self._propagate("head_input_gradient", op, op.input, error, macs=macs)
        if self.plan.head:
            buffers = {**error, "input": self._activation(op.input)}
            self._step("backward", "head_update", op, buffers, macs=macs)

    def _pool_backward(self, op: GlobalAveragePool) -> None:
        self._propagate("pool_input_gradient", op, op.input, {"error": self.errors[op.output]})

    def _mask(self, op: Add | Conv | DepthwiseConv) -> dict[str, str]:
        error = {"error": self.errors[op.output]}
        self._step("backward", "error_mask", op, {**error, "mask": f"mask {op.output}"})
        return error

    def _add_backward(self, op: Add) -> None:
        error = self._mask(op)
        for operand, tensor in enumerate(op.inputs):
            if tensor in self.needs_error:
                self._propagate("error_scale", op, tensor, error, operand=operand)

    def _convolution_backward(self, op: Conv | DepthwiseConv) -> None:
        error = self._mask(op)
        kind = "convolution" if isinstance(op, Conv) else "depthwise"
        # The input's error is due to the weights of the forward pass: it comes before updates.
        if op.input in self.needs_error:
            buffers = dict(error)
            if isinstance(op, Conv):
                columns = 2 * 2 * _align(op.weight.shape[0])
                buffers["scratch"] = self._buffer(f"error columns {op.name}", columns)
                if op.name in self.copied:
                    # The last row is read in whole groups of four bytes.
                    copy = self._buffer(f"transposed {op.name}", op.weight.size + 4)
                    buffers["transposed"] = copy
            macs = self._macs(op)
            self._propagate(f"{kind}_input_gradient", op, op.input, buffers, macs=macs)
        if f"{op.name}.bias" in self.trained:
            self._step("backward", "bias_update", op, error)
        if f"{op.name}.weight" in self.trained:
            share = next(w.count for w in self.plan.weights if w.layer == op.name)
            macs = self._macs(op) * share // op.weight.shape[-1]
            buffers = {**error, "input": self._activation(op.input)}
            self._step("backward", f"{kind}_weight_update", op, buffers, macs=macs)

    def buffers_with_lifetimes(self) -> tuple[memory_plan.Buffer, ...]:
        """Every arena buffer from the first to the last step that touches it."""
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for index, step in enumerate(self.steps):
            for name in step.buffers.values():
                first.setdefault(name, index)
                last[name] = index
        self._buffer(SCALES, SCALE_BYTES * len(self.error_index))
        first[SCALES] = min(i for i, step in enumerate(self.steps) if step.phase == "loss")
        last[SCALES] = len(self.steps) - 1
        return tuple(
            memory_plan.Buffer(name, size, first[name], last[name])
            for name, size in self.sizes.items()
        )
