"""Pruning by plan: what a program computes, keeps and leaves out."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from codegen.graph.ir import Conv, Graph, Head, Tensor, inputs_of
from codegen.operators.add import Add
from codegen.operators.global_average_pool import GlobalAveragePool
from codegen.operators.lookup import Lookup
from codegen.operators.max_pool import MaxPool
from codegen.operators.requantize import Requantize
from codegen.program import lowering
from codegen.program.lowering import lower
from codegen.program.plans import Plan, WeightUpdate, default_plans
from codegen.program.steps import Program
from codegen.quantization.quantize import quantize
from tests.codegen.exported import exported
from tests.codegen.random_graphs import full_plan, random_graph, random_plan


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
    assert touched == {"head", "pool", "end", "last"}


def test_inputs_are_kept_only_for_layers_whose_weights_train_and_for_slopes() -> None:
    graph, _ = random_graph(2)
    biases_only = lower(graph, dataclasses.replace(full_plan(graph), weights=()))
    loss = next(i for i, step in enumerate(biases_only.steps) if step.phase == "loss")
    kept = [
        buffer.name
        for buffer in biases_only.buffers
        if buffer.name.startswith("activation") and buffer.last > loss
    ]
    looked_up = [f"activation {op.input}" for op in graph.ops if isinstance(op, Lookup)]
    assert len(looked_up) == 2
    assert kept == [*looked_up, "activation pool.y"]  # the last for the head


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


def _streamed(program: Program) -> set[str]:
    return {name for step in program.steps for name in step.rings}


def test_tensors_that_backward_or_two_layers_read_are_never_streamed() -> None:
    seen = 0
    for seed in range(30):
        graph, _ = random_graph(seed)
        plan = random_plan(graph, seed)
        program = lower(graph, plan)
        names = {name.removeprefix("activation ") for name in _streamed(program)}
        seen += len(names)
        masked = {b.name.removeprefix("mask ") for b in program.buffers if "mask" in b.name}
        kept = {op.input for op in graph.convolutions if op.name in {w.layer for w in plan.weights}}
        read_twice = {t for t in names if sum(t in inputs_of(op) for op in graph.ops) > 1}
        assert not names & (masked | kept | read_twice)
    assert seen > 0


def test_streaming_never_needs_more_memory_than_whole_tensors() -> None:
    saved = 0
    for seed in range(30):
        graph, _ = random_graph(seed)
        program = lower(graph, dataclasses.replace(full_plan(graph), biases=(), weights=()))
        whole = {
            f"activation {op.output}": graph.tensors[op.output].size
            for op in graph.ops
            if not isinstance(op, Head)
        }
        rings = {b.name: b.bytes for b in program.buffers if b.name in _streamed(program)}
        assert all(size <= whole[name] for name, size in rings.items())
        saved += sum(whole[name] - size for name, size in rings.items())
    assert saved > 0


def test_a_tensor_is_streamed_after_all_where_the_bound_is_missed_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    float_graph = exported("preactivation_script.onnx")
    x = np.random.default_rng(0).normal(size=(16, *float_graph.sample_shape))
    graph = quantize(float_graph, float_graph.arrange(x.astype(np.float32)))
    plan = default_plans(graph)[0]
    found = lower(graph, plan)
    monkeypatch.setattr(lowering, "MOST_STREAMED_AGAIN", 0)
    without = lower(graph, plan)
    assert found.arena_bytes < without.arena_bytes
    stages = [sum(len(step.stages) for step in program.steps) for program in (found, without)]
    assert stages[0] > stages[1]


def test_state_has_trained_channels_only() -> None:
    graph, _ = random_graph(6)
    plan = dataclasses.replace(full_plan(graph, "int8-stochastic"), biases=(), head=False)
    layer = next(op for op in graph.convolutions if isinstance(op, Conv) and op.weight.size > 64)
    plan = dataclasses.replace(plan, weights=(WeightUpdate(layer.name, (1,)),))
    program = lower(graph, plan)
    outputs, height, width, _ = layer.weight.shape
    assert program.delta_values == outputs * height * width
    assert program.state_bytes <= 2 * -(-outputs // 2) * -(-height * width // 4) * 4


def test_an_activation_that_is_added_at_once_needs_no_scratch() -> None:
    tensors = {name: Tensor(name, (6, 6, 4), 0.1, 0) for name in "xabc"}
    tensors["mean"] = Tensor("mean", (1, 1, 4), 0.1, 0)
    ops = (
        MaxPool("pool", "x", "a", (1, 1), (1, 1)),
        Requantize("bend", "a", "b", low=0),
        Add("join", ("b", "x"), "c"),
        GlobalAveragePool("average", "c", "mean"),
        Head("head", "mean", np.ones((2, 4), np.int16), 0.01, np.zeros(2, np.int32)),
    )
    program = lower(Graph("g", "x", tensors, ops), Plan("head", (), (), True, "q8.8"))
    called = [call.op.name for step in program.phase("forward") for call in step.calls()]
    assert called == ["pool", "bend", "join", "average", "head"]


def test_a_program_is_the_same_in_every_process() -> None:
    # Of this network either of two tensors of one size can be streamed; sets order them by hash.
    script = (
        "from codegen.firmware import program_file\n"
        "from codegen.program import lowering\n"
        "from tests.codegen.random_graphs import random_graph, random_plan\n"
        "graph, _ = random_graph(7)\n"
        "program = lowering.lower(graph, random_plan(graph, 7))\n"
        "print(program_file.describe(program).model_dump_json())"
    )
    described = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "3")
    }
    assert len(described) == 1
