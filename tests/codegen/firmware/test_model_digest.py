"""The model's digest: equal where weights mean the same, and nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from codegen.firmware.model_digest import model_digest, sample_digest, slot_word
from codegen.graph.ir import Conv, DepthwiseConv, Graph, Head, Op, Padding, Tensor
from codegen.operators.add import Add
from codegen.operators.concat import Concat
from codegen.operators.global_average_pool import GlobalAveragePool
from codegen.operators.max_pool import MaxPool
from codegen.operators.requantize import Requantize
from codegen.program.blob import all_published, published_by
from codegen.program.plans import Plan, WeightUpdate
from tests.codegen.random_graphs import random_graph

DIGEST = "3032a52388810af9ffc661bf54e76150c6e674c3413c2c769e33b84e631b0eec"
SAMPLE_DIGEST = "9ce517927036ba064f9a60266e38f5e40c8572098d5dd318d7e4368619d04aad"


def small_graph() -> Graph:
    """A graph of numbers that every machine computes alike."""
    tensors = [
        Tensor("x", (4, 4, 2), 0.5, -3),
        Tensor("conv.y", (4, 4, 2), 0.25, -128),
        Tensor("depthwise.y", (4, 4, 2), 0.125, 5),
        Tensor("most.y", (2, 2, 2), 0.125, 5),
        Tensor("coarser.y", (2, 2, 2), 0.375, 0),
        Tensor("mean.y", (1, 1, 2), 0.375, 0),
    ]
    ops: tuple[Op, ...] = (
        Conv("conv", "x", "conv.y", np.ones((2, 1, 1, 2), np.int8), np.array([0.5, 0.25]),
             np.zeros(2, np.int32)),
        DepthwiseConv("depthwise", "conv.y", "depthwise.y", np.ones((3, 3, 2), np.int8),
                      np.array([0.125, 0.25]), np.zeros(2, np.int32), (1, 1), Padding(1, 1, 1, 1)),
        MaxPool("most", "depthwise.y", "most.y", (2, 2), (2, 2)),
        Requantize("coarser", "most.y", "coarser.y", low=-100),
        GlobalAveragePool("mean", "coarser.y", "mean.y"),
        Head("head", "mean.y", np.ones((3, 2), np.int16), 0.5, np.zeros(3, np.int32)),
    )  # fmt: skip
    return Graph("small", "x", {tensor.name: tensor for tensor in tensors}, ops)


HEAD = Plan("head", (), (), True, "q8.8")


def digest_of(graph: Graph, plans: Sequence[Plan] | None = None) -> str:
    """The digest of a bundle with ``plans``; with one that trains everything where left out."""
    weights = all_published(graph) if plans is None else published_by(graph, plans)
    return model_digest(graph, weights)


def with_op(index: int, **changes: Any) -> Callable[[Graph], Graph]:
    def apply(graph: Graph) -> Graph:
        ops = list(graph.ops)
        ops[index] = dataclasses.replace(ops[index], **changes)
        return dataclasses.replace(graph, ops=tuple(ops))

    return apply


def with_tensor(name: str, **changes: Any) -> Callable[[Graph], Graph]:
    def apply(graph: Graph) -> Graph:
        tensor = dataclasses.replace(graph.tensors[name], **changes)
        return dataclasses.replace(graph, tensors={**graph.tensors, name: tensor})

    return apply


def test_the_digest_of_a_model_stays_from_version_to_version() -> None:
    """Else an update of the firmware throws away what devices have learnt."""
    assert digest_of(small_graph()) == DIGEST
    assert slot_word(DIGEST) == int(DIGEST[6:8] + DIGEST[4:6] + DIGEST[2:4] + DIGEST[0:2], 16)


@pytest.mark.parametrize(
    "change",
    [
        with_op(0, name="first"),
        with_op(0, weight_scale=np.array([0.5, np.nextafter(0.25, 1)])),
        with_op(1, padding=Padding(2, 2, 0, 0)),
        with_op(2, window=(3, 3), padding=Padding(0, 0, 1, 1)),
        with_op(3, low=-99),
        with_op(3, high=99),
        with_op(4, input="most.y"),
        with_op(5, weight_scale=0.25),
        with_op(5, weight=np.ones((4, 2), np.int16), bias=np.zeros(4, np.int32)),
        with_op(5, loss="mse"),
        with_tensor("x", scale=0.25),
        with_tensor("x", zero_point=-4),
        with_tensor("x", shape=(4, 5, 2)),
        with_tensor("mean.y", scale=0.25),
        with_tensor("mean.y", zero_point=1),
    ],
)
def test_whatever_gives_weights_another_meaning_changes_it(
    change: Callable[[Graph], Graph],
) -> None:
    assert digest_of(change(small_graph())) != DIGEST


def renamed_activations(graph: Graph) -> Graph:
    def name(old: str) -> str:
        return f"renamed {old}"

    tensors = {name(k): dataclasses.replace(t, name=name(k)) for k, t in graph.tensors.items()}
    ops: list[Op] = []
    for op in graph.ops:
        assert not isinstance(op, (Add, Concat))
        ends = {"input": name(op.input)}
        if not isinstance(op, Head):
            ends["output"] = name(op.output)
        ops.append(dataclasses.replace(op, **ends))  # type: ignore[arg-type]
    return Graph("renamed", name(graph.input), dict(reversed(tensors.items())), tuple(ops))


@pytest.mark.parametrize(
    "change",
    [
        renamed_activations,
        with_op(0, weight=np.full((2, 1, 1, 2), -7, np.int8)),
        with_op(1, bias=np.array([5, -5], np.int32)),
        with_op(5, weight=np.zeros((3, 2), np.int16)),
    ],
)
def test_values_of_weights_and_names_of_activations_do_not_count(
    change: Callable[[Graph], Graph],
) -> None:
    assert digest_of(change(small_graph())) == DIGEST


def test_the_published_tensors_count_whichever_plans_train_them() -> None:
    graph = small_graph()
    biases = Plan("biases", ("conv",), (), True, "q8.8")
    coarse = Plan("weights", (), (WeightUpdate("conv", (1,)),), False, "int8-stochastic")
    fine = Plan("weights", (), (WeightUpdate("conv", (0, 1)),), False, "q8.8", accumulate=4)
    assert len({digest_of(graph, plans) for plans in ([HEAD], [biases], [coarse], None)}) == 4
    assert digest_of(graph, [HEAD, biases]) == digest_of(graph, [biases])
    assert digest_of(graph, [coarse, HEAD]) == digest_of(graph, [HEAD, fine])


@pytest.mark.parametrize(
    "change",
    [
        with_op(0, weight=np.full((2, 1, 1, 2), -7, np.int8)),
        with_op(0, weight_scale=np.array([0.5, np.nextafter(0.25, 1)])),
        with_op(1, bias=np.array([5, -5], np.int32)),
        with_op(0, name="first"),
    ],
)
def test_values_of_frozen_tensors_count(change: Callable[[Graph], Graph]) -> None:
    assert digest_of(change(small_graph()), [HEAD]) != digest_of(small_graph(), [HEAD])


def test_values_of_published_tensors_over_frozen_ones_do_not_count() -> None:
    other = with_op(5, weight=np.zeros((3, 2), np.int16))(small_graph())
    assert digest_of(other, [HEAD]) == digest_of(small_graph(), [HEAD])


def test_networks_with_every_operation_have_digests_of_their_own() -> None:
    graphs = [random_graph(seed)[0] for seed in range(12)]
    assert len({digest_of(graph) for graph in graphs}) == len(graphs)


def test_branches_that_are_joined_in_another_order_are_another_model() -> None:
    graph = small_graph()
    before = (*graph.ops[:3], Requantize("other", "most.y", "other.y"))
    tensors = {**graph.tensors, "other.y": graph.tensors["most.y"]}

    def joined(first: str, second: str) -> Graph:
        join = Concat("join", (first, second), "mean.y")
        return Graph("joined", "x", tensors, (*before, join, graph.head))

    digests = {
        digest_of(joined(*branches)) for branches in [("most.y", "other.y"), ("other.y", "most.y")]
    }
    assert len(digests) == 2


@pytest.mark.parametrize(
    "change",
    [
        renamed_activations,
        with_op(0, weight=np.full((2, 1, 1, 2), -7, np.int8)),
        with_op(0, weight_scale=np.array([0.5, 0.125])),
        with_op(5, weight=np.zeros((3, 2), np.int16)),
    ],
)
def test_samples_mean_the_same_whatever_the_weights_are(change: Callable[[Graph], Graph]) -> None:
    assert sample_digest(change(small_graph())) == SAMPLE_DIGEST


@pytest.mark.parametrize(
    "change",
    [
        with_tensor("x", scale=0.25),
        with_tensor("x", zero_point=-4),
        with_tensor("mean.y", scale=0.5),
        with_op(2, stride=(1, 1)),
        with_op(5, weight=np.ones((4, 2), np.int16), bias=np.zeros(4, np.int32)),
    ],
)
def test_samples_of_another_network_or_other_classes_mean_something_else(
    change: Callable[[Graph], Graph],
) -> None:
    assert sample_digest(change(small_graph())) != SAMPLE_DIGEST
