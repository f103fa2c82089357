"""The arena planner: invariants, not offsets."""

from hypothesis import given
from hypothesis import strategies as st

from codegen.memory_plan import ALIGNMENT, Buffer, arena_bytes, lower_bound, plan_offsets
from codegen.lowering import lower
from tests.codegen.random_graphs import full_plan, random_graph, random_plan


@st.composite
def buffer_lists(draw: st.DrawFn) -> list[Buffer]:
    spans = draw(
        st.lists(
            st.tuples(st.integers(1, 500), st.integers(0, 30), st.integers(0, 10)), max_size=25
        )
    )
    return [Buffer(f"b{i}", size, at, at + more) for i, (size, at, more) in enumerate(spans)]


def assert_no_overlap(buffers: list[Buffer], offsets: dict[str, int]) -> None:
    for i, a in enumerate(buffers):
        for b in buffers[:i]:
            if a.lives_with(b):
                start_a, start_b = offsets[a.name], offsets[b.name]
                assert start_a + a.bytes <= start_b or start_b + b.bytes <= start_a, (a, b)


@given(buffer_lists())
def test_buffers_that_live_together_never_overlap(buffers: list[Buffer]) -> None:
    assert_no_overlap(buffers, plan_offsets(buffers))


@given(buffer_lists())
def test_arena_lies_between_lower_bound_and_sum_of_all(buffers: list[Buffer]) -> None:
    size = arena_bytes(buffers, plan_offsets(buffers))
    assert lower_bound(buffers) <= size <= sum(b.bytes + ALIGNMENT for b in buffers)


@given(buffer_lists())
def test_offsets_are_aligned(buffers: list[Buffer]) -> None:
    assert all(offset % ALIGNMENT == 0 for offset in plan_offsets(buffers).values())


def test_programs_of_random_plans_have_disjoint_live_buffers() -> None:
    for seed in range(15):
        graph, _ = random_graph(seed)
        for plan in (full_plan(graph), random_plan(graph, seed)):
            program = lower(graph, plan)
            assert_no_overlap(list(program.buffers), dict(program.offsets))
