"""Programs: ordered kernel calls with arena offsets for one graph and one update plan.

``codegen.program.lowering.lower`` makes them. What a step does with its buffers is told by its
``kernel``; the interpreter has one function and the device one C kernel for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias, get_args

from codegen.graph.ir import Graph, Op, TensorOutput
from codegen.graph.names import identifier
from codegen.program import memory_plan
from codegen.program.plans import Plan
from codegen.program.scratch import round_up

INPUT = "input"
SCALES = "scales"
SCALE_BYTES = 8

Phase: TypeAlias = Literal["forward", "loss", "backward"]
PHASES: tuple[Phase, ...] = get_args(Phase)

Updates: TypeAlias = Literal["shared", "personal", "all"]
"""Which of a plan's tensors a training step changes."""


@dataclass(frozen=True)
class Segment:
    """The trained values of one tensor: see docs/specification/bundle.md.

    ``channels`` are the trained positions of the tensor's last axis, ascending. The state has the
    current values of these only, in the order in which the blob has the whole tensor. Offsets are
    bytes into the plan's state. ``first_value`` is the place of the first value in the delta.
    """

    tensor: str
    channels: tuple[int, ...]
    values: int
    first_value: int
    state_offset: int
    fraction_offset: int | None
    velocity_offset: int | None
    shift: int
    personal: bool = False
    """Whether a campaign that personalizes leaves it on the device."""

    @property
    def count(self) -> int:
        """Number of trained channels."""
        return len(self.channels)


class Rows(NamedTuple):
    """Rows ``first`` … ``end - 1`` of the output of stage ``stage`` of a chain."""

    stage: int
    first: int
    end: int


CHAIN = "chain_forward"
KEEP = "keep_channels"
LEAST_AT_ONCE = 4


@dataclass(frozen=True)
class Step:
    """One kernel call, or a chain of them. ``buffers`` maps the kernel's operands to buffer names.

    A chain executes its ``stages`` row by row as its ``schedule`` says, so that the tensors between
    them never exist as a whole: ``rings`` has the number of rows that their buffers hold.
    """

    name: str
    phase: Phase
    kernel: str
    op: Op
    buffers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    operand: int = 0
    """Which input of an addition or concatenation the call is about."""
    macs: int = 0
    at_once: int = 0
    """Pixels that a full convolution works on at a time, a multiple of ``LEAST_AT_ONCE``."""
    stages: tuple[Step, ...] = ()
    schedule: tuple[Rows, ...] = ()
    rings: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def calls(self) -> Iterator[Step]:
        """The kernels that the step calls: its stages, or itself."""
        yield from self.stages or (self,)


def step_function(plan: int, number: int, step: Step) -> str:
    """Name of the function that is step ``number`` of the plan with index ``plan``."""
    return f"plan_{plan}_step_{number:03}_{identifier(step.name)}"


def bytes_beside_arena(graph: Graph, state_bytes: int) -> int:
    """What the pool has beside an arena: state, logits, alignment."""
    ending = graph.ending
    logits = 0 if isinstance(ending, TensorOutput) else ending.outputs
    return 8 + round_up(state_bytes, 8) + round_up(4 * logits, 8)


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
        beside = bytes_beside_arena(self.graph, self.state_bytes)
        return round_up(self.arena_bytes, 8) + beside

    @property
    def output_offset(self) -> int | None:
        """Where outputs that are codes lie in the arena; None where they are logits."""
        ending = self.graph.ending
        if not isinstance(ending, TensorOutput):
            return None
        return self.offsets[f"activation {ending.input}"]

    @property
    def tensor_state_bytes(self) -> dict[str, int]:
        """State of each trained tensor: values, fractions and velocities, with their padding."""
        starts = [segment.state_offset for segment in self.segments]
        spans = pairwise([*starts, self.state_bytes])
        sizes = [end - start for start, end in spans]
        return {one.tensor: size for one, size in zip(self.segments, sizes, strict=True)}

    @property
    def delta_values(self) -> int:
        """Number of values that the plan trains."""
        return sum(segment.values for segment in self.segments)

    @property
    def personal_segments(self) -> tuple[Segment, ...]:
        """Those of the tensors that a campaign that personalizes leaves on the device."""
        return tuple(segment for segment in self.segments if segment.personal)

    def updates_personal(self, step: Step) -> bool:
        """Whether ``step`` changes a personal tensor; of the head both are, or none."""
        if not step.kernel.endswith("_update"):
            return False
        kind = "bias" if step.kernel == "bias_update" else "weight"
        segment = self.segment_of(f"{step.op.name}.{kind}")
        return segment is not None and segment.personal

    def kept_bytes(self, segments: Iterable[Segment]) -> int:
        """What a device keeps of ``segments`` between rounds: values and fractions, no velocity."""
        ends = [segment.state_offset for segment in self.segments[1:]] + [self.state_bytes]
        end_of = {one.tensor: end for one, end in zip(self.segments, ends, strict=True)}
        return sum(
            (one.velocity_offset or end_of[one.tensor]) - one.state_offset for one in segments
        )

    @property
    def macs_forward(self) -> int:
        """Multiply-accumulates of one forward pass."""
        return sum(step.macs for step in self.steps if step.phase == "forward")

    @property
    def macs_backward(self) -> int:
        """Multiply-accumulates of gradients, of inputs as well as of weights."""
        return sum(step.macs for step in self.steps if step.phase == "backward")

    def phase(self, name: Phase) -> list[Step]:
        """Steps of ``forward``, ``loss`` or ``backward`` in order."""
        return [step for step in self.steps if step.phase == name]

    def segment_of(self, tensor: str) -> Segment | None:
        """The segment that trains ``tensor``, or None where it is frozen."""
        return next((s for s in self.segments if s.tensor == tensor), None)
