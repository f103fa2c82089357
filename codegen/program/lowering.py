"""From a graph and a plan to a program.

``codegen.program.step_builder`` makes the calls; here it is decided which tensors of the forward
pass are streamed row by row, and every buffer is given a lifetime and a place.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from codegen.graph.ir import Conv, DepthwiseConv, Ending, Graph, Head, inputs_of
from codegen.program import memory_plan, scratch, streaming
from codegen.program.blob import Parameter, parameters
from codegen.program.memory_plan import Buffer, Overlap
from codegen.program.plans import Plan, trained_tensors
from codegen.program.row_pairs import stored_bytes
from codegen.program.scheduling import scheduled
from codegen.program.scratch import round_up
from codegen.program.step_builder import Part, StepBuilder, activation_buffer
from codegen.program.steps import (
    CHAIN,
    KEEP,
    LEAST_AT_ONCE,
    SCALES,
    Program,
    Rows,
    Segment,
    Step,
    bytes_beside_arena,
)

VELOCITY_BYTES = 4
BANDS = (8, 6, 5, 4, 3, 2)
"""Rows of a chain's output made at a time, if not one: more are quicker and need more memory."""
MOST_STREAMED_AGAIN = 3
"""Tensors that are tried where the arena's bound isn't met without."""


def lower(graph: Graph, plan: Plan, most_pool_bytes: int | None = None) -> Program:
    """The program that trains ``graph`` by ``plan``.

    Chains are made only where they lower the peak: everything that can be streamed is streamed at
    first, then tensors get memory of their own again while the arena's lower bound stays. Where the
    bound can't be met so, as tensors that begin before their inputs push each other up, one of the
    largest is streamed after all.

    ``most_pool_bytes`` is for those who ask no more than whether the program fits so much: its
    arena is then made no smaller than that takes, which is far quicker.
    """
    segments, state_bytes = _segments(graph, plan)
    ordered = replace(graph, ops=scheduled(graph))
    trained = {s.tensor: s.count for s in segments}
    # Parts of inputs are kept only where that lowers the peak, since copies take time.
    builder, draft, bound = min(
        (_drafted(ordered, plan, trained, keeps_part=keeps_part) for keeps_part in (False, True)),
        key=lambda drafted: drafted[2],
    )
    streamed = _streamable(builder)
    for tensor in sorted(streamed, key=lambda name: graph.tensors[name].size):
        fewer = [name for name in streamed if name != tensor]
        trial = draft.lower_bound(fewer, {})
        if trial <= bound:
            streamed, bound = fewer, trial
    enough = None
    if most_pool_bytes is not None:
        enough = most_pool_bytes - bytes_beside_arena(graph, state_bytes)
    placed = _placed(draft, streamed, bound, enough)
    for tensor in _largest_of_its_own(builder, streamed):
        if placed.bytes <= memory_plan.near_enough(bound):
            break
        if enough is not None and not bound <= enough < placed.bytes:
            break
        more = [name for name in _streamable(builder) if name in streamed or name == tensor]
        if draft.lower_bound(more, {}) <= bound:
            placed = min(placed, _placed(draft, more, bound, enough), key=lambda one: one.bytes)
    steps, buffers, offsets = _widened(
        graph,
        [step for part in placed.parts for step in part.steps],
        placed.buffers,
        placed.offsets,
    )
    return Program(
        graph=graph,
        plan=plan,
        steps=steps,
        buffers=buffers,
        offsets=MappingProxyType(offsets),
        error_index=MappingProxyType(builder.error_index),
        segments=segments,
        state_bytes=state_bytes,
    )


def _drafted(
    graph: Graph, plan: Plan, trained: Mapping[str, int], *, keeps_part: bool
) -> tuple[StepBuilder, _Draft, int]:
    """A draft, and the bytes that its arena needs at least where all is streamed that can be."""
    builder = StepBuilder(graph, plan, trained, keeps_part=keeps_part)
    draft = _Draft(graph, builder.forward(), builder.loss_and_backward())
    return builder, draft, draft.lower_bound(_streamable(builder), {})


def _streamable(builder: StepBuilder) -> list[str]:
    """Tensors that can live in a ring buffer, in order: read once, by the next layer, not kept."""
    ops, masked, trained = builder.graph.ops, builder.needs_error, builder.trained_channels
    kept = {op.input for op in builder.graph.convolutions if f"{op.name}.weight" in trained}
    readers = Counter(name for op in ops for name in inputs_of(op))
    found = []
    for op, after in itertools.pairwise(ops):
        if not streaming.passes_rows_on(op) or not streaming.is_stage(after):
            continue
        once = op.output in inputs_of(after) and readers[op.output] == 1
        # A layer that keeps a mask makes all its rows in one go.
        if once and after.output not in masked and op.output not in masked | kept:
            found.append(op.output)
    return found


def _largest_of_its_own(builder: StepBuilder, streamed: Collection[str]) -> list[str]:
    """Some tensors that could be streamed and aren't, the largest first."""
    own = [name for name in _streamable(builder) if name not in streamed]
    return sorted(own, key=lambda name: -builder.graph.tensors[name].size)[:MOST_STREAMED_AGAIN]


@dataclass(frozen=True)
class _Placed:
    """The parts of a program and where their buffers lie, in an arena of ``bytes``."""

    parts: Sequence[Part]
    buffers: tuple[Buffer, ...]
    offsets: Mapping[str, int]
    bytes: int


def _placed(draft: _Draft, streamed: Collection[str], bound: int, enough: int | None) -> _Placed:
    """With as many rows and pixels at a time as the arena's ``bound`` of bytes has room for."""
    bands: dict[range, int] = {}
    for run in draft.runs(streamed):
        for band in BANDS if len(run) > 1 else ():
            if draft.lower_bound(streamed, {**bands, run: band}) <= bound:
                bands[run] = band
                break
    parts = _at_once(draft.graph, draft.parts(streamed, bands))
    buffers = _buffers(parts)
    offsets = memory_plan.plan_offsets(buffers, enough)
    return _Placed(parts, buffers, offsets, memory_plan.arena_bytes(buffers, offsets))


class _Draft:
    """The parts of a program, put together with these or those tensors streamed."""

    def __init__(self, graph: Graph, forward: Sequence[Part], rest: Part) -> None:
        self.graph = graph
        self.forward = forward
        self.rest = rest
        # One trial differs from another in a chain or two.
        self._chains: dict[tuple[range, int], Part] = {}

    def runs(self, streamed: Collection[str]) -> list[range]:
        """All operations by index; those of one run pass on nothing but streamed tensors."""
        ends = [
            index + 1
            for index, op in enumerate(self.graph.ops)
            if isinstance(op, Ending) or op.output not in streamed
        ]
        return [range(start, end) for start, end in itertools.pairwise([0, *ends])]

    def parts(self, streamed: Collection[str], bands: Mapping[range, int]) -> list[Part]:
        """All parts in order; ``bands`` has the rows that chains make at a time, if not one."""
        runs = [self._run(run, bands.get(run, 1)) for run in self.runs(streamed)]
        return [*runs, self.rest]

    def lower_bound(self, streamed: Collection[str], bands: Mapping[range, int]) -> int:
        """Bytes that the arena needs at least."""
        return memory_plan.lower_bound(_buffers(self.parts(streamed, bands)))

    def _run(self, run: range, band: int) -> Part:
        if len(run) == 1:
            return self.forward[run.start]
        if (run, band) not in self._chains:
            self._chains[run, band] = _chain(self.graph, [self.forward[i] for i in run], band)
        return self._chains[run, band]


def _chain(graph: Graph, parts: Sequence[Part], band: int) -> Part:
    """One step that executes those of ``parts`` row by row, ``band`` rows of its output a time."""
    # Only the first stage reads a tensor that is there as a whole, and of which a part is kept.
    before = [step for step in parts[0].steps if step.kernel == KEEP]
    steps = [step for part in parts for step in part.steps if step.kernel != KEEP]
    ops = [step.op for step in steps if streaming.is_stage(step.op)]
    rows = streaming.schedule(graph, ops, band)
    rings = streaming.ring_rows(graph, ops, rows)
    chain = Part(steps=before)
    for step in before:
        chain.buffer(step.buffers["output"], parts[0].sizes[step.buffers["output"]])
    for op, ring in zip(ops, rings, strict=False):
        _, width, channels = graph.tensors[op.output].shape
        chain.buffer(activation_buffer(graph, op.output), ring * width * channels)
    names = [activation_buffer(graph, op.output) for op in ops[:-1]]
    output = graph.tensors[ops[-1].output]
    target = chain.buffer(activation_buffer(graph, output.name), output.size)
    inside = {op.output for op in ops}
    for source in dict.fromkeys(name for op in ops for name in inputs_of(op)):
        if source not in inside:
            lead = streaming.chain_lead(graph, ops, rows, source)
            chain.may_overlap(target, activation_buffer(graph, source), Overlap(lead))
    size = max(_stage_scratch(graph, part, rows, stage) for stage, part in enumerate(parts))
    if size > 0:
        shared = chain.buffer(f"scratch of chain to {ops[-1].name}", size)
        steps = [_with_scratch(step, shared) for step in steps]
    operands = {
        f"{operand} {stage}": name
        for stage, step in enumerate(steps)
        for operand, name in step.buffers.items()
    }
    chain.steps.append(
        Step(
            name=f"chain_{ops[0].name}_to_{ops[-1].name}",
            phase="forward",
            kernel=CHAIN,
            op=ops[-1],
            buffers=MappingProxyType(operands),
            macs=sum(step.macs for step in steps),
            stages=tuple(steps),
            schedule=rows,
            rings=MappingProxyType(dict(zip(names, rings, strict=True))),
        )
    )
    return chain


def _at_once(graph: Graph, parts: Sequence[Part]) -> list[Part]:
    """``parts`` in which convolutions work on many pixels at a time.

    The lower bound stays: scratch takes half of what a step leaves of it. With all of it, the
    buffers would be hard to place.
    """
    live = memory_plan.live_bytes(_buffers(parts))
    room = max(live, default=0)
    found, index = [], 0
    for part in parts:
        steps, sizes = list(part.steps), dict(part.sizes)
        for place, step in enumerate(steps):
            for name in {call.buffers["scratch"] for call in step.calls() if _grows(call)}:
                most = memory_plan.aligned(sizes[name]) + (room - live[index]) // 2
                steps[place], needed = _with_room(graph, step, most)
                sizes[name] = max(sizes[name], needed)
            index += 1
        found.append(replace(part, steps=steps, sizes=sizes))
    return found


def _widened(
    graph: Graph, steps: Sequence[Step], buffers: Sequence[Buffer], offsets: Mapping[str, int]
) -> tuple[tuple[Step, ...], tuple[Buffer, ...], dict[str, int]]:
    """The same with convolutions that work on as many pixels as the placed buffers leave room for.

    Nothing else moves: their scratch goes to the widest gap of its step.
    """
    size = memory_plan.arena_bytes(buffers, offsets)
    made, placed, where = list(steps), {b.name: b for b in buffers}, dict(offsets)
    for index, step in enumerate(steps):
        for name in {call.buffers["scratch"] for call in step.calls() if _grows(call)}:
            others = [b for b in buffers if b.first <= index <= b.last and b.name != name]
            start, room = memory_plan.widest_gap(others, offsets, size)
            wider, needed = _with_room(graph, step, room)
            if needed > placed[name].bytes:
                made[index], where[name] = wider, start
                placed[name] = replace(placed[name], bytes=needed)
    return tuple(made), tuple(placed.values()), where


def _grows(call: Step) -> bool:
    """Whether more pixels at once make ``call`` quicker."""
    if call.kernel == "convolution_input_gradient":
        return isinstance(call.op, Conv) and streaming.is_pointwise(call.op)
    return call.at_once > 0


def _with_room(graph: Graph, step: Step, most: int) -> tuple[Step, int]:
    """``step`` with at most ``most`` bytes of scratch for its convolutions, and what they need."""
    if step.stages:
        rows = {
            stage: max(item.end - item.first for item in step.schedule if item.stage == stage)
            for stage in range(len(step.stages))
        }
        made = [_call_with_room(graph, c, rows[i], most) for i, c in enumerate(step.stages)]
        return replace(step, stages=tuple(call for call, _ in made)), max(size for _, size in made)
    assert isinstance(step.op, Conv)
    return _call_with_room(graph, step, graph.tensors[step.op.output].shape[0], most)


def _call_with_room(graph: Graph, call: Step, rows: int, most: int) -> tuple[Step, int]:
    """The same for one kernel, which makes so many rows."""
    if not _grows(call):
        return call, 0
    assert isinstance(call.op, Conv)
    source, output = graph.tensors[call.op.input], graph.tensors[call.op.output]
    pixels = rows * output.shape[1]
    for groups in itertools.count(1):
        at_once = max(call.at_once, round_up(-(-pixels // groups), LEAST_AT_ONCE))
        if call.phase == "forward":
            size = scratch.convolution_forward_bytes(call.op, source, output, at_once)
        else:
            size = scratch.convolution_input_gradient_bytes(call.op, source, output, 0, at_once)
        if size <= most or at_once == call.at_once:
            break
    return replace(call, at_once=at_once), size


def _stage_scratch(graph: Graph, part: Part, rows: Sequence[Rows], stage: int) -> int:
    """Bytes of scratch that a stage needs for the most rows that it makes at a time."""
    step = part.steps[-1]
    if isinstance(step.op, DepthwiseConv):
        most = max(item.end - item.first for item in rows if item.stage == stage)
        source, output = graph.tensors[step.op.input], graph.tensors[step.op.output]
        return scratch.depthwise_forward_bytes(step.op, source, output, most)
    return part.sizes[step.buffers["scratch"]] if "scratch" in step.buffers else 0


def _with_scratch(step: Step, name: str) -> Step:
    """``step`` with buffer ``name`` as its scratch, if it needs any."""
    if "scratch" not in step.buffers:
        return step
    return replace(step, buffers=MappingProxyType({**step.buffers, "scratch": name}))


def _buffers(parts: Sequence[Part]) -> tuple[memory_plan.Buffer, ...]:
    """Every arena buffer of a program from the first to the last step that touches it."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    steps = [step for part in parts for step in part.steps]
    for index, step in enumerate(steps):
        for name in step.buffers.values():
            first.setdefault(name, index)
            last[name] = index
    behind = [index for index, step in enumerate(steps) if step.phase == "loss"]
    first[SCALES], last[SCALES] = next(iter(behind), len(steps)), len(steps) - 1
    return tuple(
        memory_plan.Buffer(
            name,
            size,
            first[name],
            last[name],
            {
                old: overlap
                for old, overlap in part.over.get(name, {}).items()
                if last[old] == first[name]
            },
        )
        for part in parts
        for name, size in part.sizes.items()
    )


def _delta_shift(graph: Graph, plan: Plan, tensor: Parameter) -> int:
    """Bits dropped from a delta, stochastically: the average over devices keeps them.

    What remains is a quarter of a weight's step, and a whole output step for what moves outputs
    directly (biases and head): finer, a value would cost bits that vanish among the differences
    between devices (docs/results/delta-step.md).
    """
    if tensor.kind == "weight" and tensor.values.dtype == np.int8:
        return 8 if plan.state == "int8-stochastic" else 6
    if tensor.kind == "weight":
        return 6
    op = next(op for op in graph.ops if op.name == tensor.layer)
    if isinstance(op, Head):
        return 10
    assert isinstance(op, (Conv, DepthwiseConv))
    output_steps = max(tensor.step) / graph.tensors[op.output].scale
    return int(np.clip(math.floor(-math.log2(output_steps)), 0, 20))


def _segments(graph: Graph, plan: Plan) -> tuple[tuple[Segment, ...], int]:
    tensors = {tensor.name: tensor for tensor in parameters(graph)}
    listed = {f"{update.layer}.weight": update.channels for update in plan.weights}
    segments = []
    offset = first_value = 0
    for name in trained_tensors(graph, plan):
        tensor = tensors[name]
        channels = listed.get(name, tuple(range(tensor.values.shape[-1])))
        shape = (*tensor.values.shape[:-1], len(channels))
        values = math.prod(shape)
        size = stored_bytes(tensor.order, shape, tensor.values.dtype.itemsize)
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
                channels=channels,
                values=values,
                first_value=first_value,
                state_offset=copy,
                fraction_offset=fraction,
                velocity_offset=velocity,
                shift=_delta_shift(graph, plan, tensor),
                personal=tensor.name in plan.personal,
            )
        )
        first_value += values
    return tuple(segments), offset
