"""The float side of the comparison: the same network, and the same gradients, as the device's."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="accuracy studies need PyTorch: pip install torch")

import torch

from benchmarks.accuracy.network import Network, channels_first
from codegen.arithmetic.layers import logit_scale
from codegen.graph.ir import DepthwiseConv, Graph
from codegen.program.lowering import lower
from codegen.program.plans import Plan
from codegen.reference.float_autodiff import forward_integers, real_gradients
from codegen.reference.interpreter import Interpreter
from tests.codegen.random_graphs import full_plan, random_graph, random_plan


@pytest.mark.parametrize("seed", range(6))
def test_the_rounded_network_has_the_logits_of_the_device(seed: int) -> None:
    graph, samples = random_graph(seed, smooth=False)
    network = Network(graph, full_plan(graph), rounded=True)
    interpreter = Interpreter(lower(graph, full_plan(graph)))
    logits = network.forward(channels_first(samples[:8])).detach().numpy()
    for ours, sample in zip(logits, samples[:8], strict=True):
        interpreter.score(sample, 0)
        expected = interpreter.logits * logit_scale(graph)
        # A tie that is rounded the other way moves a code by one.
        assert np.allclose(ours, expected, atol=0.02 * np.abs(expected).max())


def gradients(graph: Graph, network: Network, sample: np.ndarray) -> dict[str, np.ndarray]:
    loss = torch.nn.functional.cross_entropy(
        network.forward(channels_first(sample[None])), torch.tensor([1])
    )
    names = list(network.trained)
    found = torch.autograd.grad(loss, [network.parameters[name] for name in names])
    return {name: value.numpy() for name, value in zip(names, found, strict=True)}


@pytest.mark.parametrize("seed", range(4))
def test_gradients_per_step_are_those_of_exact_backpropagation(seed: int) -> None:
    graph, samples = random_graph(seed, smooth=False)
    interpreter = Interpreter(lower(graph, full_plan(graph)))
    interpreter.train_step(samples[0], 1, 0, 0)
    activations, masks = forward_integers(interpreter)
    exact = real_gradients(graph, activations, masks, interpreter.logits, 1)
    depthwise = {op.name for op in graph.ops if isinstance(op, DepthwiseConv)}
    found = gradients(graph, Network(graph, full_plan(graph), rounded=True), samples[0])
    for name, ours in found.items():
        layer, kind = name.rsplit(".", 1)
        expected = exact[name]
        if kind == "weight" and ours.ndim == 4:
            axes = (2, 0, 1) if layer in depthwise else (0, 3, 1, 2)
            expected = expected.transpose(axes)
        largest = max(float(np.abs(expected).max()), 1e-12)
        assert np.allclose(ours.reshape(expected.shape), expected, atol=0.05 * largest), name


@pytest.mark.parametrize("seed", range(4))
def test_only_what_the_plan_names_is_marked_as_trained(seed: int) -> None:
    graph, _ = random_graph(seed, smooth=False)
    plan = random_plan(graph, seed)
    network = Network(graph, plan, rounded=False)
    marked = sum(int(mask.sum()) for mask in network.trained.values())
    assert marked == lower(graph, plan).delta_values


def test_forgetting_the_zero_point_changes_weight_gradients_and_nothing_else() -> None:
    graph, samples = random_graph(2, smooth=False)
    plan = full_plan(graph)
    right = Network(graph, plan, rounded=True)
    forgetful = Network(graph, plan, rounded=True, codes_in_gradient=True)
    inputs = channels_first(samples[:4])
    assert torch.equal(right.forward(inputs), forgetful.forward(inputs))
    ours, theirs = (gradients(graph, network, samples[0]) for network in (right, forgetful))
    for name in ours:
        same = np.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-6)
        assert same == name.endswith(".bias"), name


def test_an_int8_head_has_the_same_range_with_fewer_steps() -> None:
    graph, _ = random_graph(2, smooth=False)
    plan = Plan("head", (), (), True, "q8.8")
    wide = Network(graph, plan, rounded=True)
    narrow = Network(graph, plan, rounded=True, head_bits=8)
    weight = f"{graph.head.name}.weight"
    assert narrow.parameters[weight].abs().max() <= 127
    wide_values, narrow_values = (n.parameters[weight] * n.steps[weight] for n in (wide, narrow))
    assert (wide_values - narrow_values).abs().max() <= 0.51 * narrow.steps[weight]
