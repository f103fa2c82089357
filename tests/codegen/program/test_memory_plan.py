"""The arena planner: invariants, not offsets."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codegen.graph.floats import (
    ChannelsFirst,
    Clamp,
    FloatConv,
    FloatGraph,
    FloatHead,
    FloatOp,
    conv_output_shape,
)
from codegen.graph.ir import Graph, Padding
from codegen.operators.add import FloatAdd
from codegen.operators.global_average_pool import GlobalAveragePool
from codegen.program.lowering import lower
from codegen.program.memory_plan import (
    ALIGNMENT,
    Buffer,
    Overlap,
    aligned,
    arena_bytes,
    lower_bound,
    plan_offsets,
)
from codegen.program.plans import LastLayers, PlanSpec, WeightSpec, resolve
from codegen.quantization.quantize import quantize
from tests.codegen.random_graphs import full_plan, random_graph, random_plan


@st.composite
def buffer_lists(draw: st.DrawFn) -> list[Buffer]:
    spans = draw(
        st.lists(
            st.tuples(st.integers(1, 500), st.integers(0, 30), st.integers(0, 10)), max_size=25
        )
    )
    return [Buffer(f"b{i}", size, at, at + more) for i, (size, at, more) in enumerate(spans)]


@st.composite
def lists_with_overlaps(draw: st.DrawFn) -> list[Buffer]:
    """Buffers of which some may lie over one that dies as they are made."""
    made: list[Buffer] = []
    for buffer in draw(buffer_lists()):
        dying = [old.name for old in made if old.last == buffer.first]
        over = {}
        if dying and draw(st.booleans()):
            exact = draw(st.booleans())
            lead = ALIGNMENT * draw(st.integers(0, 75)) if exact else draw(st.integers(0, 600))
            over = {draw(st.sampled_from(dying)): Overlap(lead, exact)}
        made.append(replace(buffer, over=over))
    return made


def assert_no_overlap(buffers: list[Buffer], offsets: dict[str, int]) -> None:
    for i, a in enumerate(buffers):
        for b in buffers[:i]:
            if not a.lives_with(b):
                continue
            for new, old in ((a, b), (b, a)):
                start_new, start_old = offsets[new.name], offsets[old.name]
                if start_new + new.bytes <= start_old or start_old + old.bytes <= start_new:
                    break
                if old.name in new.over:
                    behind = start_old - start_new - new.over[old.name].lead
                    exact = new.over[old.name].exact
                    assert behind == 0 if exact else behind >= 0, (new, old)
                    break
            else:
                raise AssertionError(f"{a} and {b} share bytes")


@given(lists_with_overlaps())
def test_buffers_overlap_only_where_they_may(buffers: list[Buffer]) -> None:
    offsets = plan_offsets(buffers)
    assert_no_overlap(buffers, offsets)
    assert lower_bound(buffers) <= arena_bytes(buffers, offsets)


def test_an_output_lies_over_the_tail_of_its_input() -> None:
    source = Buffer("source", 800, 0, 1)
    output = Buffer("output", 1000, 1, 2, {"source": Overlap(200)})
    offsets = plan_offsets([source, output])
    assert arena_bytes([source, output], offsets) == 1000
    assert offsets == {"output": 0, "source": 200}


def test_the_lower_bound_is_met_for_a_network_of_inverted_bottlenecks() -> None:
    for seed in range(10):
        graph, _ = random_graph(seed)
        program = lower(graph, full_plan(graph))
        assert program.arena_bytes <= 1.1 * program.arena_lower_bound_bytes + aligned(1)


def mobilenet_v2(size: int) -> Graph:
    """MobileNetV2 of width 0.35 (arXiv 1801.04381) for pictures of ``size``, random weights."""
    draw = np.random.default_rng(1)
    shapes: dict[str, ChannelsFirst] = {"x": (3, size, size)}
    ops: list[FloatOp] = []

    def conv(outputs: int, kernel: int, stride: int, *, depthwise: bool, bend: bool) -> None:
        source, side = [*shapes][-1], kernel // 2
        inputs = shapes[source][0]
        weight = draw.normal(0, 0.3, (outputs, 1 if depthwise else inputs, kernel, kernel))
        name = f"c{len(ops):02d}"
        op = FloatConv(
            name, source, f"{name}.y", weight, np.full(outputs, 0.1),
            groups=inputs if depthwise else 1, stride=(stride, stride),
            padding=Padding(side, side, side, side), clamp=Clamp(0.0, 6.0) if bend else Clamp(),
        )  # fmt: skip
        shapes[op.output] = conv_output_shape(op, shapes[source])
        ops.append(op)

    conv(16, 3, 2, depthwise=False, bend=True)
    for expand, outputs, count, stride in (
        (1, 8, 1, 1), (6, 8, 2, 2), (6, 16, 3, 2), (6, 24, 4, 2), (6, 32, 3, 1), (6, 56, 3, 2),
        (6, 112, 1, 1),
    ):  # fmt: skip
        for block in range(count):
            source = [*shapes][-1]
            if expand > 1:
                conv(shapes[source][0] * expand, 1, 1, depthwise=False, bend=True)
            width, step = shapes[[*shapes][-1]][0], stride if block == 0 else 1
            conv(width, 3, step, depthwise=True, bend=True)
            conv(outputs, 1, 1, depthwise=False, bend=False)
            last = [*shapes][-1]
            if shapes[last] == shapes[source] and step == 1:
                added = FloatAdd(f"sum{len(ops):02d}", (last, source), f"sum{len(ops):02d}.y")
                shapes[added.output] = shapes[last]
                ops.append(added)
    conv(1280, 1, 1, depthwise=False, bend=True)
    ops.append(GlobalAveragePool("pool", [*shapes][-1], "pool.y"))
    shapes["pool.y"] = (1280, 1, 1)
    head = FloatHead("head", "pool.y", "out", draw.normal(0, 0.03, (10, 1280)), np.zeros(10))
    graph = FloatGraph("mobilenet_v2", "x", shapes, (*ops, head), {})
    return quantize(graph, draw.normal(0, 1, (2, 3, size, size)).astype(np.float32))


def test_the_arena_of_a_mobilenet_meets_its_lower_bound_with_published_plans() -> None:
    graph = mobilenet_v2(144)
    layers = graph.convolutions
    # Plans 99kb and 123kb of mit-han-lab/tiny-training for this network.
    for depth, halves in ((25, {42: 8, 45: 2}), (31, {42: 2})):
        weights = [
            WeightSpec(layer=op.name, count=op.weight.shape[-1] // halves.get(index, 1))
            for index in range(27, 51, 3)
            for op in [layers[index]]
        ]
        spec = PlanSpec(biases=LastLayers(last=depth), weights=weights)
        program = lower(graph, resolve(spec, graph))
        assert program.arena_bytes <= 1.002 * program.arena_lower_bound_bytes


def test_an_output_that_begins_before_its_input_finds_room_there_in_a_deep_network() -> None:
    buffers = [
        Buffer("wide", 82944, 0, 1),
        Buffer("narrow", 41472, 1, 2, {"wide": Overlap(0)}),
        Buffer("ring", 17280, 2, 2),
        Buffer("out", 62208, 2, 3, {"narrow": Overlap(20736)}),
    ]
    for i in range(60):
        buffers.append(Buffer(f"later {i}", 10000 + 300 * i, 4 + i, 5 + i))
    assert arena_bytes(buffers, plan_offsets(buffers)) == 82944 + 20736


@given(buffer_lists())
def test_buffers_that_live_together_never_overlap(buffers: list[Buffer]) -> None:
    assert_no_overlap(buffers, plan_offsets(buffers))


@given(buffer_lists())
def test_arena_lies_between_lower_bound_and_sum_of_all(buffers: list[Buffer]) -> None:
    size = arena_bytes(buffers, plan_offsets(buffers))
    assert lower_bound(buffers) <= size <= sum(b.bytes + ALIGNMENT for b in buffers)


@given(lists_with_overlaps(), st.integers(1, 2000))
def test_an_arena_that_is_small_enough_is_found_wherever_the_smallest_is(
    buffers: list[Buffer], enough: int
) -> None:
    smallest = arena_bytes(buffers, plan_offsets(buffers))
    offsets = plan_offsets(buffers, enough)
    assert_no_overlap(buffers, offsets)
    assert (arena_bytes(buffers, offsets) <= enough) == (smallest <= enough)


@given(buffer_lists())
def test_offsets_are_aligned(buffers: list[Buffer]) -> None:
    assert all(offset % ALIGNMENT == 0 for offset in plan_offsets(buffers).values())


def test_programs_of_random_plans_have_disjoint_live_buffers() -> None:
    for seed in range(15):
        graph, _ = random_graph(seed)
        for plan in (full_plan(graph), random_plan(graph, seed)):
            program = lower(graph, plan)
            assert_no_overlap(list(program.buffers), dict(program.offsets))
