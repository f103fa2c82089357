"""Programs as data: what a reader finds agrees with the program, and with itself."""

import json
import math

import numpy as np
import pytest
from pydantic import ValidationError

from codegen.firmware.program_file import BufferInfo, ProgramInfo, Programs, describe, pack
from codegen.graph.ir import Conv, Graph, Head, Tensor
from codegen.operators.add import Add
from codegen.operators.concat import Concat
from codegen.operators.global_average_pool import GlobalAveragePool
from codegen.program.lowering import lower
from codegen.program.memory_plan import aligned
from codegen.program.steps import CHAIN, Program
from tests.codegen.random_graphs import full_plan, random_graph, random_plan, random_pooled_graph


def programs() -> list[Program]:
    made = []
    for seed in range(8):
        for graph, _ in (random_graph(seed, size=16, smooth=seed < 4), random_pooled_graph(seed)):
            made += [lower(graph, full_plan(graph)), lower(graph, random_plan(graph, seed))]
    return made


@pytest.fixture(scope="module", params=programs(), ids=lambda p: f"{len(p.steps)}-steps")
def program(request: pytest.FixtureRequest) -> Program:
    found: Program = request.param
    return found


@pytest.fixture(scope="module")
def info(program: Program) -> ProgramInfo:
    return describe(program)


def test_the_programs_under_test_have_every_kind_of_buffer_and_chains() -> None:
    infos = [describe(program) for program in programs()]
    kinds = {buffer.kind for info in infos for buffer in info.buffers}
    assert kinds == {"activation", "ring", "kept", "mask", "error", "scratch"}
    assert any(step.chain for info in infos for step in info.steps)


def test_macs_of_the_steps_and_of_the_stages_add_up_to_the_programs(
    program: Program, info: ProgramInfo
) -> None:
    def macs(phase: str) -> int:
        return sum(step.macs for step in info.steps if step.phase == phase)

    assert macs("forward") == program.macs_forward
    assert macs("backward") == program.macs_backward
    for step in info.steps:
        if step.chain:
            assert sum(stage.macs for stage in step.chain.stages) == step.macs


def test_the_peak_step_needs_the_lower_bound(program: Program, info: ProgramInfo) -> None:
    assert info.steps[info.peak_step].live_bytes == program.arena_lower_bound_bytes
    assert max(step.live_bytes for step in info.steps) == info.arena_lower_bound_bytes
    assert info.arena_bytes == max(b.offset + aligned(b.bytes) for b in info.buffers)


def test_live_bytes_are_what_the_steps_buffers_take_by_their_places(info: ProgramInfo) -> None:
    compared = 0
    for number, step in enumerate(info.steps):
        live = info.live_at(number)
        occupied: set[int] = set()
        for buffer in live:
            occupied.update(range(buffer.offset, buffer.offset + aligned(buffer.bytes)))
        names = {buffer.name for buffer in live}
        if any(names & set(buffer.over) for buffer in live):
            # Overlaps may be used less than they could be.
            assert step.live_bytes <= len(occupied)
        else:
            assert step.live_bytes == len(occupied)
            compared += 1
        assert set(step.buffers.values()) - {"input"} <= names
    assert compared > len(info.steps) // 3


def allowed(new: BufferInfo, old: BufferInfo) -> bool:
    """Whether ``new`` may share bytes with ``old`` where they lie."""
    if old.name not in new.over or new.first != old.last:
        return False
    lead = new.over[old.name]
    return new.offset == old.offset if lead is None else new.offset + lead <= old.offset


def test_buffers_share_bytes_only_where_the_file_says_that_they_may(info: ProgramInfo) -> None:
    for index, a in enumerate(info.buffers):
        for b in info.buffers[:index]:
            in_time = a.first <= b.last and b.first <= a.last
            in_space = a.offset < b.offset + b.bytes and b.offset < a.offset + a.bytes
            assert not (in_time and in_space) or allowed(a, b) or allowed(b, a), (a, b)


def test_shapes_have_as_many_elements_as_the_buffers_hold(info: ProgramInfo) -> None:
    sizes = {buffer.name: buffer.bytes for buffer in info.buffers}
    for step in info.steps:
        produced = step.buffers.get("output" if step.phase == "forward" else "out")
        if produced is not None:
            element = 1 if step.phase == "forward" else 2
            assert sizes[produced] == element * math.prod(step.outputs[0]), step
        if "mask" in step.buffers:
            assert sizes[step.buffers["mask"]] == -(-math.prod(step.outputs[0]) // 8), step
        if step.kernel == "error_sum":
            assert sizes[step.buffers["a"]] == 2 * math.prod(step.outputs[0]), step
        if step.phase == "backward" and "error" in step.buffers:
            assert sizes[step.buffers["error"]] == 2 * math.prod(step.inputs[0]), step


def test_errors_that_meet_at_a_later_input_of_a_concatenation_have_its_shape() -> None:
    def conv(name: str, source: str, inputs: int, outputs: int) -> Conv:
        weight, scale = np.ones((outputs, 1, 1, inputs), np.int8), np.full(outputs, 0.1)
        return Conv(name, source, f"{name}.y", weight, scale, np.zeros(outputs, np.int32))

    channels = {"x": 3, "fork.y": 4, "side.y": 2, "both": 6, "back.y": 4, "sum": 4}
    tensors = {name: Tensor(name, (5, 5, count), 0.1, 0) for name, count in channels.items()}
    tensors["mean"] = Tensor("mean", (1, 1, 4), 0.1, 0)
    ops = (
        conv("fork", "x", 3, 4),
        conv("side", "fork.y", 4, 2),
        Concat("join", ("side.y", "fork.y"), "both"),
        conv("back", "both", 6, 4),
        Add("add", ("back.y", "fork.y"), "sum"),
        GlobalAveragePool("pool", "sum", "mean"),
        Head("head", "mean", np.ones((2, 4), np.int16), 0.01, np.zeros(2, np.int32)),
    )
    graph = Graph("g", "x", tensors, ops)
    steps = describe(lower(graph, full_plan(graph))).steps
    found = [step for step in steps if step.kernel == "error_sum" and step.layer == "join"]
    assert [step.outputs for step in found] == [((5, 5, 4),)]


def test_rings_hold_the_rows_that_the_file_says(info: ProgramInfo) -> None:
    sizes = {buffer.name: buffer.bytes for buffer in info.buffers}
    for step in info.steps:
        assert (step.kernel == CHAIN) == (step.chain is not None)
        if step.chain is None:
            continue
        for stage, after in zip(step.chain.stages, step.chain.stages[1:], strict=False):
            height, width, channels = stage.outputs[0]
            assert stage.outputs[0] in after.inputs
            ring = f"activation {stage.layer}.y"
            assert step.chain.rings[ring] <= height
            assert sizes[ring] == step.chain.rings[ring] * width * channels
        made = [0] * len(step.chain.stages)
        for stage_number, first, end in step.chain.schedule:
            assert made[stage_number] == first < end
            made[stage_number] = end
        assert made == [stage.outputs[0][0] for stage in step.chain.stages]


def test_kept_buffers_are_the_activations_that_a_backward_step_reads(info: ProgramInfo) -> None:
    forward = {
        name for step in info.steps if step.phase == "forward" for name in step.buffers.values()
    }
    backward = {
        name for step in info.steps if step.phase == "backward" for name in step.buffers.values()
    }
    kept = {buffer.name for buffer in info.buffers if buffer.kind == "kept"}
    masks = {buffer.name for buffer in info.buffers if buffer.kind == "mask"}
    assert kept == forward & backward - masks - {"input"}


def test_the_state_of_the_tensors_adds_up(program: Program, info: ProgramInfo) -> None:
    assert sum(state.bytes for state in info.state) == program.state_bytes
    assert [state.tensor for state in info.state] == [s.tensor for s in program.segments]
    assert all(0 < state.channels <= state.of_channels for state in info.state)


def test_what_is_written_is_what_is_read(program: Program, info: ProgramInfo) -> None:
    packed = pack([program, program])
    first, second = Programs.model_validate_json(packed).plans
    assert first == info
    assert [step.function for step in second.steps] == [
        step.function.replace("plan_0", "plan_1", 1) for step in first.steps
    ]
    assert len({step.function for plan in (first, second) for step in plan.steps}) == 2 * len(
        info.steps
    )


@pytest.mark.parametrize(
    "change",
    [{"format": "tinyfleet-program/2"}, {"plans": []}, {"more": 1}],
    ids=["format", "no plans", "unknown field"],
)
def test_another_format_is_refused(change: dict[str, object]) -> None:
    graph, _ = random_graph(0)
    content = json.loads(pack([lower(graph, full_plan(graph))]))
    with pytest.raises(ValidationError):
        Programs.model_validate_json(json.dumps({**content, **change}))
