"""Costs are those of the compiled program and of the linked image, bits those of real deltas."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from codegen.compile import compile_graph
from codegen.firmware.boards import load_board
from codegen.firmware.toolchain import find_toolchain
from codegen.graph.ir import Graph
from codegen.plan_search import costs
from codegen.plan_search.candidates import Selection, channel_counts, order_by_norm, plan_spec
from codegen.plan_search.costs import (
    CostModel,
    Costs,
    DeltaBits,
    Limits,
    measured_delta_bits,
    rest_of,
    sizes_of,
)
from codegen.program.instructions import estimated_instructions
from codegen.program.lowering import lower
from codegen.program.plans import Plan, State, resolve
from codegen.program.steps import Program
from tests.codegen.random_graphs import full_plan, random_graph

CDDL = Path(__file__).parents[3] / "fleet" / "protocol" / "tinyfleet.cddl"
BITS = DeltaBits(weight=5.0, bias=3.0, head=4.0)


def some_selections(graph: Graph) -> list[Selection]:
    ops = graph.convolutions
    single = [Selection(0, ((op.name, channel_counts(op)[0]),)) for op in ops]
    last = [(op.name, channel_counts(op)[-1]) for op in ops[-2:]]
    return [Selection(), Selection(2), *single, Selection(len(ops), tuple(last))]


@pytest.mark.parametrize("state", ["q8.8", "int8-stochastic"])
def test_costs_are_those_of_the_lowered_program(state: State) -> None:
    graph, _ = random_graph(4)
    order = order_by_norm(graph)
    model = CostModel(graph, order, 7_000, BITS, state)
    for selection in some_selections(graph):
        plan = resolve(plan_spec(selection, order, state=state), graph)
        program = lower(graph, plan)
        found = model.of(selection)
        assert found.sram_bytes == 7_000 + program.pool_bytes
        assert found.instructions == estimated_instructions(program)
        sizes = sizes_of(program)
        assert sizes.weights + sizes.biases + sizes.head == program.delta_values
        assert sizes.biases == sum(
            op.bias.size for op in graph.convolutions if op.name in plan.biases
        )
        assert found.delta_bytes == math.ceil(
            (5 * sizes.weights + 3 * sizes.biases + 4 * sizes.head) / 8
        )


def test_increments_are_what_each_layer_adds_to_the_state_and_to_the_delta() -> None:
    graph, _ = random_graph(9)
    order = order_by_norm(graph)
    model = CostModel(graph, order, 0, BITS)
    layers = graph.convolutions
    increments = model.increments([op.name for op in layers])
    assert set(increments) == {(op.name, count) for op in layers for count in channel_counts(op)}

    def made(*channels: tuple[str, int]) -> Program:
        return lower(graph, resolve(plan_spec(Selection(1, channels), order), graph))

    for pair, added in increments.items():
        assert added.state_bytes == made(pair).state_bytes - made().state_bytes
        values = made(pair).delta_values - made().delta_values
        assert added.delta_bytes == values * 5 // 8
        more = estimated_instructions(made(pair)) - estimated_instructions(made())
        assert 0 < added.instructions <= more + 1
    some = [(op.name, channel_counts(op)[-1]) for op in layers]
    together = sum(increments[pair].state_bytes for pair in some)
    assert made(*some).state_bytes == made().state_bytes + together


def test_a_program_is_lowered_once_and_new_rates_apply_to_what_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph, _ = random_graph(4)
    lowered: list[Plan] = []
    monkeypatch.setattr(
        costs, "lower", lambda graph, plan: (lowered.append(plan), lower(graph, plan))[1]
    )
    model = CostModel(graph, order_by_norm(graph), 0, BITS)
    before = model.of(Selection(1))
    model.rest_bytes, model.bits = 100, DeltaBits(10.0, 6.0, 8.0)
    after = model.of(Selection(1))
    assert after.sram_bytes == before.sram_bytes + 100
    assert abs(after.delta_bytes - 2 * before.delta_bytes) <= 1
    assert after.instructions == before.instructions
    assert len(lowered) == 1


def test_what_was_measured_goes_before_estimates_and_improves_them() -> None:
    graph, _ = random_graph(4)
    model = CostModel(graph, order_by_norm(graph), 0, BITS)
    head, one, two = Selection(), Selection(1), Selection(2)
    before = {selection: model.of(selection) for selection in (head, one, two)}
    model.measured[head] = Costs(1, 2, before[head].instructions + 5_000)
    assert model.of(head) == model.measured[head]
    assert model.estimated(head).instructions == model.of(head).instructions
    # All have the forward pass in common, so that they are off by the same at first.
    assert model.of(one).instructions == before[one].instructions + 5_000
    on_top = before[one].instructions - before[head].instructions
    model.measured[one] = Costs(1, 2, model.of(head).instructions + 2 * on_top)
    model.learn_instructions(one)
    assert model.estimated(one).instructions == model.of(one).instructions
    assert model.of(two).instructions == pytest.approx(
        model.of(head).instructions + 2 * (before[two].instructions - before[head].instructions),
        abs=1,
    )


@pytest.mark.parametrize(
    ("limits", "allowed"),
    [
        (Limits(100), True),
        (Limits(99), False),
        (Limits(100, delta_bytes=20), True),
        (Limits(100, delta_bytes=19), False),
        (Limits(100, instructions=5), True),
        (Limits(100, instructions=4), False),
    ],
)
def test_limits_allow_what_is_within_all_of_them(limits: Limits, allowed: bool) -> None:
    assert limits.allow(Costs(sram_bytes=100, delta_bytes=20, instructions=5)) is allowed


def test_bits_only_grow_when_more_is_known() -> None:
    known = DeltaBits(weight=5.0, bias=3.0, head=4.0)
    assert known.at_least(DeltaBits(6.0, 2.0, 4.0)) == DeltaBits(6.0, 3.0, 4.0)
    assert known.times(2.0) == DeltaBits(10.0, 6.0, 8.0)


def test_bits_are_measured_by_kind_and_a_missing_kind_takes_the_worst() -> None:
    graph, _ = random_graph(4)
    order = order_by_norm(graph)
    full = lower(graph, full_plan(graph))
    sizes = {"bias": 1, "weight": 2, "head": 4}

    def kind_of(tensor: str) -> str:
        layer, kind = tensor.rsplit(".", 1)
        return "head" if layer == graph.head.name else kind

    delta = np.concatenate(
        [np.full(s.values, sizes[kind_of(s.tensor)], np.int32) for s in full.segments]
    )
    # A coding of as many bytes per value as the value says.
    bits = measured_delta_bits(full, delta, lambda values: int(values.sum()))
    assert bits == DeltaBits(weight=16.0, bias=8.0, head=32.0)
    head = lower(graph, resolve(plan_spec(Selection(), order), graph))
    assert measured_delta_bits(
        head, np.ones(head.delta_values, np.int32), lambda values: values.size
    ) == DeltaBits(8.0, 8.0, 8.0)


@pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="no arm-none-eabi-gcc")
def test_the_linked_image_has_the_sram_that_was_predicted(tmp_path: Path) -> None:
    graph, _ = random_graph(4)
    order = order_by_norm(graph)

    def linked(selection: Selection) -> tuple[int, int]:
        bundle = compile_graph(
            graph,
            load_board("stm32f746"),
            [resolve(plan_spec(selection, order), graph)],
            onnx_sha256="00" * 32,
            out=tmp_path / "out",
            protocol_cddl=CDDL,
            toolchain=find_toolchain("gcc"),
        )
        report = bundle.report.plans[0]
        return rest_of(report), report.sram_bytes.total

    rest, _ = linked(Selection())
    model = CostModel(graph, order, rest, BITS)
    for selection in some_selections(graph)[1::3]:
        assert model.of(selection).sram_bytes == linked(selection)[1]
