"""Cutting graphs: what comes after the cut computes and trains as it does in the whole graph."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.compile import build_host_engine
from codegen.errors import ModelError
from codegen.firmware.host_engine import HostEngine
from codegen.graph.ir import Graph
from codegen.operators.add import Add
from codegen.program.lowering import lower
from codegen.program.plans import Plan, WeightUpdate
from codegen.program.subgraph import cut_graph, cut_tensors, frozen_cut
from codegen.reference.interpreter import Interpreter
from tests.codegen.random_graphs import random_graph
from tests.conftest import examples

LEARNING_RATE = 2**20 // 50


def plan_from(graph: Graph, first: int) -> Plan:
    """Trains every layer from the ``first``-th convolution on."""
    layers = graph.convolutions[first:]
    weights = tuple(WeightUpdate(op.name, tuple(range(op.weight.shape[-1]))) for op in layers)
    return Plan("late", tuple(op.name for op in layers), weights, True, "q8.8")


def values_of(interpreter: Interpreter, tensor: str) -> np.ndarray:
    return interpreter.arrays[f"activation {tensor}"].astype(np.int8)


@given(seed=st.integers(0, 10_000))
@examples(10)
def test_training_after_the_cut_gives_the_bits_of_training_the_whole_graph(seed: int) -> None:
    graph, samples = random_graph(seed)
    plan = plan_from(graph, len(graph.convolutions) // 2)
    cut = frozen_cut(graph, plan)
    whole, frozen = Interpreter(lower(graph, plan)), Interpreter(lower(graph, plan))
    tail = Interpreter(lower(cut_graph(graph, cut), plan))
    for step in range(4):
        frozen.score(samples[step], 0)
        whole.train_step(samples[step], step % 2, LEARNING_RATE, 7)
        features = samples[step] if cut == graph.input else values_of(frozen, cut)
        tail.train_step(features, step % 2, LEARNING_RATE, 7)
        assert np.array_equal(whole.logits, tail.logits)
        assert whole.loss_q16 == tail.loss_q16
    assert np.array_equal(whole.delta(), tail.delta())
    assert whole.delta().any()


def test_the_host_engine_trains_a_cut_graph_as_it_trains_the_whole(tmp_path: Path) -> None:
    graph, samples = random_graph(11)
    plan = plan_from(graph, len(graph.convolutions) - 2)
    cut = frozen_cut(graph, plan)
    assert cut != graph.input
    features = Interpreter(lower(graph, plan))
    engines = []
    for name, part in (("whole", graph), ("tail", cut_graph(graph, cut))):
        library = build_host_engine((part, [lower(part, plan)]), tmp_path / f"{name}.so")
        engines.append(HostEngine(library, plan.id))
    for step in range(6):
        features.score(samples[step], 0)
        engines[0].train_step(samples[step], step % 2, LEARNING_RATE, 7)
        engines[1].train_step(values_of(features, cut), step % 2, LEARNING_RATE, 7)
        assert np.array_equal(engines[0].logits, engines[1].logits)
    assert engines[0].state == engines[1].state


@given(seed=st.integers(0, 10_000))
@examples(20)
def test_a_cut_keeps_just_the_operations_after_it(seed: int) -> None:
    graph, _ = random_graph(seed)
    for tensor in cut_tensors(graph):
        tail = cut_graph(graph, tensor)
        made = {tail.input, *(op.output for op in tail.ops[:-1])}
        assert tail.ops == graph.ops[len(graph.ops) - len(tail.ops) :]
        assert set(tail.tensors) == made
        assert tail.input == tensor


def test_the_own_input_of_a_graph_cuts_nothing_off() -> None:
    graph, _ = random_graph(3)
    assert cut_graph(graph, graph.input) is graph


def with_an_addition() -> tuple[Graph, str]:
    """A graph, and a tensor in it that an addition's other operand passes by."""
    for seed in range(100):
        graph, _ = random_graph(seed)
        additions = [op for op in graph.ops if isinstance(op, Add)]
        passed_by = set(graph.tensors) - set(cut_tensors(graph))
        if additions and passed_by:
            return graph, sorted(passed_by)[0]
    raise AssertionError("no random graph has an addition")


def test_a_cut_that_a_branch_passes_by_is_refused_with_one_that_works() -> None:
    graph, tensor = with_an_addition()
    with pytest.raises(ModelError, match=r"another branch passes it by; cut at '(.+)'") as error:
        cut_graph(graph, tensor)
    nearest = str(error.value).rsplit("'", 2)[1]
    assert cut_graph(graph, nearest).input == nearest


def test_a_tensor_that_is_not_there_is_named() -> None:
    graph, _ = random_graph(3)
    with pytest.raises(ModelError, match="no tensor 'elsewhere'"):
        cut_graph(graph, "elsewhere")


def test_a_plan_that_trains_the_head_alone_leaves_only_the_head() -> None:
    graph, _ = random_graph(3)
    plan = Plan("head", (), (), True, "q8.8")
    tail = cut_graph(graph, frozen_cut(graph, plan))
    assert tail.ops == (graph.head,)
