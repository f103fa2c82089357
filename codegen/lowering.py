"""From a graph and a plan to a program.

``lower`` differentiates and prunes by plan (only gradients that something needs come into being),
orders the calls, decides which tensors of the forward pass are streamed row by row, and gives every
buffer a lifetime and a place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from codegen import memory_plan, scratch, streaming
from codegen.blob import BlobTensor, layout, packed_bytes
from codegen.ir import (
    Add,
    AveragePool,
    Concat,
    Conv,
    DepthwiseConv,
    GlobalAveragePool,
    Graph,
    Head,
    MaxPool,
    Op,
    Requantize,
    inputs_of,
)
from codegen.memory_plan import Overlap
from codegen.plans import Plan
from codegen.program import CHAIN, INPUT, SCALE_BYTES, SCALES, Program, Rows, Segment, Step
from codegen.scheduling import scheduled
from codegen.scratch import round_up

Parameterized = Conv | DepthwiseConv
OfOne: TypeAlias = Parameterized | GlobalAveragePool | MaxPool | AveragePool | Requantize
"""Operations that read one tensor and make another."""

VELOCITY_BYTES = 4
BANDS = (8, 4, 2, 1)
"""Rows of a chain's output made at a time: more are quicker, fewer need less memory."""


def lower(graph: Graph, plan: Plan) -> Program:
    """The program that trains ``graph`` by ``plan``.

    Chains are made only where they lower the peak: everything that can be streamed is streamed at
    first, then tensors get memory of their own again while the arena's lower bound stays.
    """
    segments, state_bytes = _segments(graph, plan)
    ordered = replace(graph, ops=scheduled(graph))

    def build(streamed: frozenset[str], bands: dict[str, int]) -> _Builder:
        builder = _Builder(ordered, plan, segments, streamed, bands)
        builder.forward()
        builder.loss()
        builder.backward()
        return builder

    streamed = _streamable(ordered, plan, segments)
    best = build(streamed, {})
    bound = best.lower_bound()
    for tensor in sorted(streamed, key=lambda name: graph.tensors[name].size):
        trial = build(streamed - {tensor}, {})
        if trial.lower_bound() <= bound:
            best, streamed, bound = trial, streamed - {tensor}, trial.lower_bound()
    bands: dict[str, int] = {}
    for output in best.chain_outputs:
        for band in BANDS:
            trial = build(streamed, {**bands, output: band})
            if trial.lower_bound() <= bound:
                best, bands[output] = trial, band
                break
    buffers = best.buffers_with_lifetimes()
    return Program(
        graph=graph,
        plan=plan,
        steps=tuple(best.steps),
        buffers=buffers,
        offsets=MappingProxyType(memory_plan.plan_offsets(buffers)),
        error_index=MappingProxyType(dict(best.error_index)),
        segments=segments,
        state_bytes=state_bytes,
    )


def _streamable(graph: Graph, plan: Plan, segments: Sequence[Segment]) -> frozenset[str]:
    """Tensors that can live in a ring buffer: read once, by the next layer, and not kept."""
    trained = {segment.tensor for segment in segments}
    masked = _tensors_that_need_errors(graph, trained)
    kept = {op.input for op in graph.convolutions if f"{op.name}.weight" in trained}
    readers: dict[str, int] = {}
    for op in graph.ops:
        for name in inputs_of(op):
            readers[name] = readers.get(name, 0) + 1
    found = set()
    for op, after in zip(graph.ops, graph.ops[1:], strict=False):
        if not isinstance(op, Parameterized | Requantize) or not isinstance(after, streaming.Stage):
            continue
        once = op.output in inputs_of(after) and readers[op.output] == 1
        # A layer that keeps a mask makes all its rows in one go.
        if once and after.output not in masked and op.output not in masked | kept:
            found.add(op.output)
    return frozenset(found)


def _tensors_that_need_errors(graph: Graph, trained: set[str]) -> set[str]:
    """Tensors whose error some trained value depends on: backward stops at the others."""
    needed: set[str] = set()
    for op in graph.ops:
        if isinstance(op, Head):
            continue
        own = {f"{op.name}.weight", f"{op.name}.bias"} & trained
        if own or any(name in needed for name in inputs_of(op)):
            needed.add(op.output)
    return needed


def _delta_shift(graph: Graph, plan: Plan, tensor: BlobTensor) -> int:
    """Bits dropped from a delta, stochastically: the average over devices keeps them.

    What remains is a sixteenth of a weight's step, and a quarter of an output step for what
    moves outputs directly (biases and head): finer, a value would cost bits that vanish among
    the differences between devices.
    """
    if tensor.kind == "weight" and tensor.values.dtype == np.int8:
        return 8 if plan.state == "int8-stochastic" else 4
    if tensor.kind == "weight":
        return 4
    op = next(op for op in graph.ops if op.name == tensor.layer)
    if isinstance(op, Head):
        return 8
    assert isinstance(op, (Conv, DepthwiseConv))
    output_steps = max(tensor.step) / graph.tensors[op.output].scale
    return int(np.clip(math.floor(-math.log2(4 * output_steps)), 0, 20))


def _segments(graph: Graph, plan: Plan) -> tuple[tuple[Segment, ...], int]:
    tensors = {tensor.name: tensor for tensor in layout(graph)}
    wanted: list[tuple[BlobTensor, Sequence[int]]] = []
    for layer in plan.biases:
        bias = tensors[f"{layer}.bias"]
        wanted.append((bias, range(bias.values.size)))
    for weight in plan.weights:
        wanted.append((tensors[f"{weight.layer}.weight"], weight.channels))
    if plan.head:
        for kind in ("bias", "weight"):
            tensor = tensors[f"{graph.head.name}.{kind}"]
            wanted.append((tensor, range(tensor.values.shape[-1])))

    segments = []
    offset = first_value = 0
    for tensor, channels in wanted:
        shape = (*tensor.values.shape[:-1], len(channels))
        values = math.prod(shape)
        size = values * tensor.values.dtype.itemsize
        if tensor.order == "row-pairs":
            size = packed_bytes(shape[0], math.prod(shape[1:]))
        copy, offset = offset, offset + round_up(size, 4)
        fraction = None
        if tensor.values.dtype == np.int8 and plan.state == "q8.8":
            fraction, offset = offset, offset + round_up(size, 4)
        velocity = None
        if plan.keeps_velocity:
            places = size // tensor.values.dtype.itemsize
            velocity, offset = offset, offset + VELOCITY_BYTES * places
        segments.append(
            Segment(
                tensor=tensor.name,
                channels=tuple(channels),
                values=values,
                first_value=first_value,
                state_offset=copy,
                fraction_offset=fraction,
                velocity_offset=velocity,
                shift=_delta_shift(graph, plan, tensor),
            )
        )
        first_value += values
    return tuple(segments), offset


class _Builder:
    """Emits steps in order and remembers which buffers each of them touches."""

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        segments: Sequence[Segment],
        streamed: frozenset[str],
        bands: dict[str, int],
    ) -> None:
        self.graph = graph
        self.plan = plan
        self.trained_channels = {s.tensor: s.count for s in segments}
        self.streamed = streamed
        self.bands = bands
        self.steps: list[Step] = []
        self.sizes: dict[str, int] = {}
        self.over: dict[str, dict[str, Overlap]] = {}
        self.chain_outputs: list[str] = []
        self.error_index: dict[str, int] = {}
        self.errors: dict[str, str] = {}
        self.needs_error = _tensors_that_need_errors(graph, set(self.trained_channels))

    def _buffer(self, name: str, size: int) -> str:
        self.sizes[name] = size
        return name

    def _may_overlap(self, new: str, old: str, lead: int | None) -> None:
        """``new`` may lie over ``old`` if that one isn't needed after the step that makes it."""
        self.over.setdefault(new, {})[old] = Overlap(lead)

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

    def _macs(self, op: Parameterized) -> int:
        height, width, _ = self.graph.tensors[op.output].shape
        return height * width * op.weight.size

    def _partly_trained(self, op: Parameterized) -> int:
        """Trained channels of the weights; 0 where none are, or all: those are used as they are."""
        count = self.trained_channels.get(f"{op.name}.weight", 0)
        return 0 if count == op.weight.shape[-1] else count

    # Forward: every op once, masks where an error will pass through.

    def forward(self) -> None:
        start = 0
        for index, op in enumerate(self.graph.ops):
            self._forward_op(op)
            if isinstance(op, Head) or op.output not in self.streamed:
                if index > start:
                    self._chain(index - start + 1)
                start = index + 1

    def _forward_op(self, op: Op) -> None:
        if isinstance(op, Head):
            buffers = {"input": self._activation(op.input)}
            self._step("forward", "head_forward", op, buffers, macs=op.weight.size)
            return
        output = self.graph.tensors[op.output]
        buffers = {"output": self._buffer(self._activation(op.output), output.size)}
        if op.output in self.needs_error and self._saturates(op):
            buffers["mask"] = self._buffer(f"mask {op.output}", -(-output.size // 8))
        match op:
            case Add():
                buffers["a"], buffers["b"] = map(self._activation, op.inputs)
                for side in ("a", "b"):
                    self._may_overlap(buffers["output"], buffers[side], 0)
                self._step("forward", "add_forward", op, buffers)
            case Concat():
                for operand, name in enumerate(op.inputs):
                    part = {**buffers, "input": self._activation(name)}
                    self._step("forward", "concat_forward", op, part, operand=operand)
            case _:
                buffers["input"] = self._activation(op.input)
                self._forward_of_one(op, buffers)

    def _forward_of_one(self, op: OfOne, buffers: dict[str, str]) -> None:
        source, output = self.graph.tensors[op.input], self.graph.tensors[op.output]
        match op:
            case Conv():
                size = scratch.convolution_forward_bytes(op, self._partly_trained(op))
                buffers["scratch"] = self._buffer(f"columns {op.name}", size)
                if not self._partly_trained(op):
                    lead = streaming.convolution_lead(self.graph, op)
                    self._may_overlap(buffers["output"], buffers["input"], lead)
                self._step("forward", "convolution_forward", op, buffers, macs=self._macs(op))
            case DepthwiseConv():
                size = scratch.depthwise_forward_bytes(op, source, output, output.shape[0])
                buffers["scratch"] = self._buffer(f"plane {op.name}", size)
                if source.shape == output.shape:
                    self._may_overlap(buffers["output"], buffers["input"], None)
                self._step("forward", "depthwise_forward", op, buffers, macs=self._macs(op))
            case GlobalAveragePool():
                self._step("forward", "pool_forward", op, buffers)
            case MaxPool():
                if op.output in self.needs_error:
                    width = 2 if math.prod(op.window) > 256 else 1
                    places = self._buffer(f"places {op.output}", width * output.size)
                    buffers["places"] = places
                self._pool_overlap(op, buffers)
                self._step("forward", "max_pool_forward", op, buffers)
            case AveragePool():
                self._pool_overlap(op, buffers)
                self._step("forward", "average_pool_forward", op, buffers)
            case Requantize():
                self._may_overlap(buffers["output"], buffers["input"], 0)
                self._step("forward", "requantize_forward", op, buffers)

    def _saturates(self, op: Op) -> bool:
        """Whether codes of the output may be clamped, so that errors pass through a mask."""
        if isinstance(op, AveragePool):
            source, output = self.graph.tensors[op.input], self.graph.tensors[op.output]
            return (source.scale, source.zero_point) != (output.scale, output.zero_point)
        return isinstance(op, (Conv, DepthwiseConv, Add, Requantize))

    def _pool_overlap(self, op: MaxPool | AveragePool, buffers: dict[str, str]) -> None:
        lead = streaming.pool_lead(self.graph, op)
        self._may_overlap(buffers["output"], buffers["input"], lead)

    def _chain(self, length: int) -> None:
        """Makes the last ``length`` steps one that executes them row by row."""
        stages = self.steps[-length:]
        del self.steps[-length:]
        ops = [step.op for step in stages if isinstance(step.op, streaming.Stage)]
        output = ops[-1].output
        self.chain_outputs.append(output)
        rows = streaming.schedule(self.graph, ops, self.bands.get(output, 1))
        rings: dict[str, int] = {}
        for op, ring in zip(ops, streaming.ring_rows(self.graph, ops, rows), strict=False):
            _, width, channels = self.graph.tensors[op.output].shape
            rings[self._activation(op.output)] = ring
            self._buffer(self._activation(op.output), ring * width * channels)
        shared = self._shared_scratch(stages, rows)
        buffers = {}
        for number, step in enumerate(stages):
            own = dict(step.buffers)
            if "scratch" in own:
                own["scratch"] = shared
            stages[number] = replace(step, buffers=MappingProxyType(own))
            buffers.update({f"{operand} {number}": name for operand, name in own.items()})
        target = self._activation(output)
        self.over.pop(target, None)
        for name in {n for op in ops for n in inputs_of(op)} - {op.output for op in ops}:
            lead = streaming.chain_lead(self.graph, ops, rows, name)
            self._may_overlap(target, self._activation(name), lead)
        self.steps.append(
            Step(
                name=f"chain_{ops[0].name}_to_{ops[-1].name}",
                phase="forward",
                kernel=CHAIN,
                op=ops[-1],
                buffers=MappingProxyType(buffers),
                macs=sum(step.macs for step in stages),
                stages=tuple(stages),
                schedule=rows,
                rings=MappingProxyType(rings),
            )
        )

    def _shared_scratch(self, stages: Sequence[Step], rows: Sequence[Rows]) -> str:
        """One scratch buffer that is large enough for every stage."""
        size = 0
        for number, step in enumerate(stages):
            self.over.pop(step.buffers["output"], None)
            if "scratch" not in step.buffers:
                continue
            needed = self.sizes.pop(step.buffers["scratch"])
            if isinstance(step.op, DepthwiseConv):
                most = max(item.end - item.first for item in rows if item.stage == number)
                source, output = (self.graph.tensors[n] for n in (step.op.input, step.op.output))
                needed = scratch.depthwise_forward_bytes(step.op, source, output, most)
            size = max(size, needed)
        return self._buffer(f"scratch of chain to {stages[-1].op.name}", size)

    def loss(self) -> None:
        head = self.graph.head
        self.error_index["error logits"] = len(self.error_index)
        error = self._buffer("error logits", 2 * head.bias.size)
        kernel = "mean_squared_error" if head.loss == "mse" else "cross_entropy"
        self._step("loss", kernel, head, {"error": error})

    # Backward: gradients as a table, one method per op.

    def backward(self) -> None:
        rules: dict[type, Callable[[Any], None]] = {
            Head: self._head_backward,
            GlobalAveragePool: self._pool_backward,
            MaxPool: self._max_pool_backward,
            AveragePool: self._average_pool_backward,
            Concat: self._concat_backward,
            Requantize: self._requantize_backward,
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
        over_error: Overlap | None = None,
    ) -> None:
        """A step that sends an error to ``tensor``, added to what other consumers have sent.

        ``over_error`` tells where the new error may lie over the one that it is made from.
        """
        first = tensor not in self.errors
        name = f"error {tensor}" if first else f"error {tensor} from {op.name}"
        target = self._error(name, tensor)
        operands = {**buffers, "out": target}
        if over_error is not None:
            self._may_overlap(target, buffers["error"], over_error.lead)
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

    def _max_pool_backward(self, op: MaxPool) -> None:
        buffers = {"error": self.errors[op.output], "places": f"places {op.output}"}
        self._propagate("max_pool_input_gradient", op, op.input, buffers)

    def _average_pool_backward(self, op: AveragePool) -> None:
        error = self._mask(op) if self._saturates(op) else {"error": self.errors[op.output]}
        self._propagate("average_pool_input_gradient", op, op.input, error)

    def _concat_backward(self, op: Concat) -> None:
        error = {"error": self.errors[op.output]}
        for operand, tensor in enumerate(op.inputs):
            if tensor in self.needs_error:
                self._propagate("concat_input_gradient", op, tensor, error, operand=operand)

    def _requantize_backward(self, op: Requantize) -> None:
        error = self._mask(op)
        self._propagate("error_scale", op, op.input, error, over_error=Overlap(None))

    def _mask(self, op: Add | Parameterized | AveragePool | Requantize) -> dict[str, str]:
        error = {"error": self.errors[op.output]}
        self._step("backward", "error_mask", op, {**error, "mask": f"mask {op.output}"})
        return error

    def _add_backward(self, op: Add) -> None:
        error = self._mask(op)
        for operand, tensor in enumerate(op.inputs):
            if tensor in self.needs_error:
                self._propagate(
                    "error_scale", op, tensor, error, operand=operand, over_error=Overlap(None)
                )

    def _convolution_backward(self, op: Parameterized) -> None:
        error = self._mask(op)
        kind = "convolution" if isinstance(op, Conv) else "depthwise"
        if f"{op.name}.bias" in self.trained_channels:
            self._step("backward", "bias_update", op, error)
        # The input's error is due to the weights of the forward pass: it comes before their update.
        if op.input in self.needs_error:
            self._input_gradient(op, kind, error)
        count = self.trained_channels.get(f"{op.name}.weight", 0)
        if count:
            source, output = self.graph.tensors[op.input], self.graph.tensors[op.output]
            if isinstance(op, Conv):
                size = scratch.convolution_weight_update_bytes(output)
            else:
                size = scratch.depthwise_weight_update_bytes(op, source, output)
            buffers = {**error, "input": self._activation(op.input)}
            buffers["scratch"] = self._buffer(f"gradient columns {op.name}", size)
            macs = self._macs(op) * count // op.weight.shape[-1]
            self._step("backward", f"{kind}_weight_update", op, buffers, macs=macs)

    def _input_gradient(self, op: Parameterized, kind: str, error: dict[str, str]) -> None:
        source, output = self.graph.tensors[op.input], self.graph.tensors[op.output]
        over = None
        if isinstance(op, Conv):
            size = scratch.convolution_input_gradient_bytes(op, self._partly_trained(op))
            if streaming.is_pointwise(op) and not self._partly_trained(op):
                pixels = output.shape[0] * output.shape[1]
                over = Overlap(2 * max(0, source.shape[2] - output.shape[2]) * pixels)
        else:
            size = scratch.depthwise_input_gradient_bytes(op, source, output)
            over = Overlap(None) if source.shape == output.shape else None
        name = self._buffer(f"error columns {op.name}", size)
        buffers = {**error, "scratch": name}
        macs = self._macs(op)
        self._propagate(f"{kind}_input_gradient", op, op.input, buffers, macs=macs, over_error=over)

    def lower_bound(self) -> int:
        """Bytes that the arena needs at least."""
        return memory_plan.lower_bound(self.buffers_with_lifetimes())

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

        def overlaps(name: str) -> dict[str, Overlap]:
            allowed = self.over.get(name, {})
            return {old: over for old, over in allowed.items() if last.get(old) == first[name]}

        return tuple(
            memory_plan.Buffer(name, size, first[name], last[name], overlaps(name))
            for name, size in self.sizes.items()
        )
