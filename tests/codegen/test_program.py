"""Pruning by plan: what a program computes, keeps and leaves out."""

import dataclasses

from codegen.ir import Conv
from codegen.memory_plan import arena_bytes, plan_offsets
from codegen.lowering import lower
from tests.codegen.random_graphs import full_plan, random_graph


def test_a_plan_that_trains_only_the_head_has_no_gradient_of_any_convolution() -> None:
    graph, _ = random_graph(1)
    program = lower(graph, dataclasses.replace(full_plan(graph), biases=(), weights=()))
    assert [step.kernel for step in program.phase("backward")] == ["head_update"]
    assert not [buffer for buffer in program.buffers if buffer.name.startswith("mask")]


def test_backward_stops_at_the_first_layer_that_is_trained() -> None:
    graph, _ = random_graph(1)
    plan = dataclasses.replace(full_plan(graph), biases=("last",), weights=())
    program = lower(graph, plan)
    touched = {step.op.name for step in program.phase("backward")}
    assert touched == {"head", "pool", "last"}


def test_inputs_are_kept_only_for_layers_whose_weights_train() -> None:
    graph, _ = random_graph(2)
    biases_only = lower(graph, dataclasses.replace(full_plan(graph), weights=()))
    loss = next(i for i, step in enumerate(biases_only.steps) if step.phase == "loss")
    kept = [
        buffer.name
        for buffer in biases_only.buffers
        if buffer.name.startswith("activation") and buffer.last > loss
    ]
    assert kept == ["activation pool.y"]  # for the head


def test_every_convolution_trained_costs_about_twice_the_forward_macs_again() -> None:
    graph, _ = random_graph(4)
    program = lower(graph, full_plan(graph))
    stem = graph.convolutions[0]
    assert isinstance(stem, Conv)
    height, width, _ = graph.tensors[stem.output].shape
    assert program.macs_backward == 2 * program.macs_forward - height * width * stem.weight.size


def test_delta_values_are_laid_out_biases_weights_head() -> None:
    graph, _ = random_graph(6)
    program = lower(graph, full_plan(graph))
    kinds = [segment.tensor.rsplit(".", 1) for segment in program.segments]
    expected = [[op.name, "bias"] for op in graph.convolutions]
    expected += [[op.name, "weight"] for op in graph.convolutions]
    assert kinds == [*expected, ["head", "bias"], ["head", "weight"]]
    ends = [segment.first_value + segment.values for segment in program.segments]
    assert [segment.first_value for segment in program.segments] == [0, *ends[:-1]]


def test_transposed_copies_are_made_only_where_the_arena_has_room_for_them() -> None:
    made = 0
    for seed in range(12):
        graph, _ = random_graph(seed)
        program = lower(graph, full_plan(graph))
        without = [b for b in program.buffers if not b.name.startswith("transposed")]
        made += len(program.buffers) - len(without)
        assert program.arena_bytes <= arena_bytes(without, plan_offsets(without))
    assert made > 0
