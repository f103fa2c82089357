"""program.json: the programs of a bundle as data, for people and for tools that show them.

``describe`` makes it from a program, ``load_programs`` reads it from a bundle; the format stands
in docs/specification/bundle.md. Nothing on a device or in a fleet depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from codegen.errors import BundleError
from codegen.firmware.bundle import PROGRAM, Bundle, Count, Digest
from codegen.graph.ir import (
    Conv,
    DepthwiseConv,
    Graph,
    Head,
    Op,
    Operation,
    TensorOutput,
    inputs_of,
)
from codegen.operators import operator_of
from codegen.program import memory_plan
from codegen.program.steps import CHAIN, KEEP, SCALES, Phase, Program, Step, step_function

PROGRAM_FORMAT: Literal["tinyfleet-program/1"] = "tinyfleet-program/1"

Shape: TypeAlias = tuple[int, ...]
Kind = Literal["activation", "ring", "kept", "mask", "error", "scratch"]
"""What a buffer is for. ``ring``: some rows of a tensor within a chain; ``kept``: an activation
that the backward pass reads; ``mask``: which outputs were clamped, or where a maximum stood;
``error`` includes the errors' scales."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CallInfo(_Strict):
    """One kernel call; shapes are (height, width, channels), (classes), or those of a weight."""

    kernel: str
    layer: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    macs: Count


class ChainInfo(_Strict):
    """How a chain interleaves its calls: rows [first, end) of the output of a stage, in order."""

    stages: tuple[CallInfo, ...]
    schedule: tuple[tuple[Count, Count, Count], ...]
    rings: dict[str, Count]
    """Rows that the buffer of a tensor between two stages holds."""


class StepInfo(CallInfo):
    """One step. A chain has the first stage's inputs, the last one's outputs and all MACs."""

    phase: Phase
    function: str
    """Symbol of the step's function in the image."""
    buffers: dict[str, str]
    """Operand → buffer; ``input`` is the sample, which lies outside the arena."""
    live_bytes: Count
    """Bytes of the arena that the step needs at least; see ``memory_plan.live_bytes``."""
    chain: ChainInfo | None


class BufferInfo(_Strict):
    """Bytes [offset, offset + bytes) of the arena from step ``first`` to step ``last``."""

    name: str
    kind: Kind
    bytes: Count
    offset: Count
    first: Count
    last: Count
    over: dict[str, int | None]
    """Older buffers that this one may overlap at step ``first``, which is their last: by how many
    bytes it must start before them at least; None: only on exactly the same place."""

    def lives_at(self, step: int) -> bool:
        """Whether ``step`` needs the buffer."""
        return self.first <= step <= self.last


class StateInfo(_Strict):
    """Update state of a tensor: trained channels of all, and what they take with their padding."""

    tensor: str
    channels: Count
    of_channels: Count
    bytes: Count


class ProgramInfo(_Strict):
    """The program of one plan."""

    id: Digest
    name: str
    arena_bytes: Count
    arena_lower_bound_bytes: Count
    state_bytes: Count
    steps: tuple[StepInfo, ...]
    buffers: tuple[BufferInfo, ...]
    state: tuple[StateInfo, ...]

    @property
    def peak_step(self) -> int:
        """The first of the steps that need the most bytes: the one that sets the lower bound."""
        return max(range(len(self.steps)), key=lambda step: self.steps[step].live_bytes)

    def live_at(self, step: int) -> list[BufferInfo]:
        """Buffers that ``step`` needs, largest first."""
        live = [buffer for buffer in self.buffers if buffer.lives_at(step)]
        return sorted(live, key=lambda buffer: (-buffer.bytes, buffer.offset))


class Programs(_Strict):
    """Content of program.json."""

    format: Literal["tinyfleet-program/1"]
    plans: Annotated[tuple[ProgramInfo, ...], Field(min_length=1)]


def pack(programs: Sequence[Program]) -> bytes:
    """program.json of a bundle with ``programs``, in the order of its plans."""
    plans = tuple(describe(program, index) for index, program in enumerate(programs))
    return (Programs(format=PROGRAM_FORMAT, plans=plans).model_dump_json() + "\n").encode()


def load_programs(bundle: Bundle) -> Mapping[str, ProgramInfo]:
    """Plan id → program of a bundle whose files have been verified.

    Raises BundleError for a bundle that was compiled before programs were written, or by a
    compiler with another format.
    """
    file = bundle.path / PROGRAM
    if PROGRAM not in bundle.manifest.files:
        raise BundleError(
            f"{bundle.path} has no {PROGRAM}: an older tinyfleet compiled it; "
            "compile it again with tinyfleet compile"
        )
    try:
        programs = Programs.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BundleError(
            f"{file} is of another version of tinyfleet ({place}: {first['msg']}); "
            "compile the bundle again with tinyfleet compile"
        ) from error
    return {plan.id: plan for plan in programs.plans}


def describe(program: Program, index: int = 0) -> ProgramInfo:
    """``program`` as data; ``index`` is the place of its plan in the bundle."""
    live = memory_plan.live_bytes(program.buffers)
    kinds = _kinds(program)
    buffers = (
        BufferInfo(
            name=buffer.name,
            kind=kinds[buffer.name],
            bytes=buffer.bytes,
            offset=program.offsets[buffer.name],
            first=buffer.first,
            last=buffer.last,
            over={name: overlap.lead for name, overlap in buffer.over.items()},
        )
        for buffer in program.buffers
    )
    return ProgramInfo(
        id=program.plan.id,
        name=program.plan.name,
        arena_bytes=program.arena_bytes,
        arena_lower_bound_bytes=program.arena_lower_bound_bytes,
        state_bytes=program.state_bytes,
        steps=tuple(
            _step(program, step, step_function(index, number, step), live[number])
            for number, step in enumerate(program.steps)
        ),
        buffers=tuple(buffers),
        state=_state(program),
    )


def _step(program: Program, step: Step, function: str, live_bytes: int) -> StepInfo:
    chain = None
    calls = [_call(program, call) for call in step.calls()]
    if step.kernel == CHAIN:
        chain = ChainInfo(
            stages=tuple(calls),
            schedule=tuple((rows.stage, rows.first, rows.end) for rows in step.schedule),
            rings=dict(step.rings),
        )
    return StepInfo(
        kernel=step.kernel,
        layer=step.op.name,
        inputs=calls[0].inputs,
        outputs=calls[-1].outputs,
        macs=step.macs,
        phase=step.phase,
        function=function,
        buffers=dict(step.buffers),
        live_bytes=live_bytes,
        chain=chain,
    )


def _call(program: Program, step: Step) -> CallInfo:
    inputs, outputs = _shapes(program, step)
    return CallInfo(
        kernel=step.kernel, layer=step.op.name, inputs=inputs, outputs=outputs, macs=step.macs
    )


def _shapes(program: Program, step: Step) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
    """Shapes of the tensors that a kernel reads and writes; weights and masks it reads aside."""
    graph, op = program.graph, step.op
    sources = tuple(graph.tensors[name].shape for name in inputs_of(op))
    result = _output_shape(graph, op)
    if step.kernel == KEEP:
        count = _trained_shape(program, f"{op.name}.weight")[-1]
        return sources, ((*sources[0][:-1], count),)
    if step.kernel.endswith("_forward"):
        if isinstance(op, Operation) and operator_of(op).one_step_per_input:
            sources = (sources[step.operand],)
        return sources, (result,)
    if step.kernel.endswith("_input_gradient"):
        return (result,), (sources[step.operand],)
    if step.kernel.endswith("_weight_update"):
        return (result, *sources), (_trained_shape(program, f"{op.name}.weight"),)
    if step.kernel == "bias_update":
        return (result,), (_trained_shape(program, f"{op.name}.bias"),)
    if step.kernel == "head_update":
        trained = [_trained_shape(program, f"{op.name}.{kind}") for kind in ("weight", "bias")]
        return (result, *sources), tuple(trained)
    if step.kernel == "error_sum":
        return (sources[step.operand],) * 2, (sources[step.operand],)
    return (result,), (result,)  # the loss, masks and scales of errors: elementwise


def _output_shape(graph: Graph, op: Op) -> Shape:
    match op:
        case Head():
            return op.bias.shape
        case TensorOutput():
            return graph.tensors[op.input].shape
        case _:
            return graph.tensors[op.output].shape


def _trained_shape(program: Program, tensor: str) -> Shape:
    """Shape of the trained part: all axes but the last are whole."""
    whole = _parameter_shapes(program.graph)[tensor]
    segment = program.segment_of(tensor)
    assert segment is not None, f"a step updates {tensor}, which the plan doesn't train"
    return (*whole[:-1], segment.count)


def _parameter_shapes(graph: Graph) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for op in graph.ops:
        if isinstance(op, (Conv, DepthwiseConv, Head)):
            shapes[f"{op.name}.weight"] = op.weight.shape
            shapes[f"{op.name}.bias"] = op.bias.shape
    return shapes


def _state(program: Program) -> tuple[StateInfo, ...]:
    shapes, sizes = _parameter_shapes(program.graph), program.tensor_state_bytes
    return tuple(
        StateInfo(
            tensor=segment.tensor,
            channels=segment.count,
            of_channels=shapes[segment.tensor][-1],
            bytes=sizes[segment.tensor],
        )
        for segment in program.segments
    )


_KIND_OF_OPERAND: dict[str, Kind] = {"scratch": "scratch", "mask": "mask", "places": "mask"}


def _kinds(program: Program) -> dict[str, Kind]:
    """What each buffer is for, by the operands that it is of the steps."""
    forward = len(program.phase("forward"))
    kinds: dict[str, Kind] = {SCALES: "error"}
    for step in program.steps:
        for call in step.calls():
            for operand, name in call.buffers.items():
                if operand in _KIND_OF_OPERAND:
                    kinds[name] = _KIND_OF_OPERAND[operand]
                elif call.phase == "forward":
                    kinds[name] = "ring" if name in step.rings else "activation"
                else:
                    # A forward pass has made it, or else it is an error.
                    kinds.setdefault(name, "error")
    for buffer in program.buffers:
        if kinds[buffer.name] == "activation" and buffer.last > forward:
            kinds[buffer.name] = "kept"
    return kinds
