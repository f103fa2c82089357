"""Ways to train: the same order and rates for all, and each its own arithmetic."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="accuracy studies need PyTorch: pip install torch")

import torch

from benchmarks.accuracy.frozen import trained_tail
from benchmarks.accuracy.network import Network
from benchmarks.accuracy.samples import Samples
from benchmarks.accuracy.training import (
    Run,
    Schedule,
    device_steps,
    scaled,
    train_network,
    train_on_device_arithmetic,
    truncated,
)
from codegen.graph.ir import Graph
from codegen.program.plans import Plan
from tests.codegen.random_graphs import full_plan, random_graph

SHORT = Schedule(epochs=4, rate=0.05, batch=8)


def separable(seed: int) -> tuple[Graph, Samples]:
    """A random network, and two classes of samples that differ in one channel."""
    graph, _ = random_graph(seed, smooth=False)
    random = np.random.default_rng(seed)
    shape = graph.tensors[graph.input].shape
    labels = np.arange(48) % 2
    codes = random.integers(-60, 60, (48, *shape))
    codes[labels == 1, :, :, 0] += 60
    samples = codes.astype(np.int8)
    return graph, Samples(samples[:32], labels[:32], samples[32:], labels[32:])


def test_batches_hold_every_sample_once_at_rates_of_half_a_cosine() -> None:
    schedule = Schedule(epochs=3, rate=0.4, batch=4)
    epochs = list(schedule.order(10, seed=5))
    assert [[len(batch) for _, batch in epoch] for epoch in epochs] == [[4, 4, 2]] * 3
    assert all(sorted(np.concatenate([b for _, b in e])) == list(range(10)) for e in epochs)
    rates = [rate for epoch in epochs for rate, _ in epoch]
    assert rates[0] == 0.4
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.02


def test_the_device_takes_the_samples_of_a_batch_one_by_one_at_a_part_of_the_rate() -> None:
    schedule = Schedule(epochs=1, rate=0.5, batch=4)
    batches = next(schedule.order(8, seed=5))
    steps = list(device_steps(batches, schedule))
    assert [index for index, _ in steps] == [int(i) for _, batch in batches for i in batch]
    assert steps[0][1] == round(0.5 / 4 * 2**20)


@pytest.mark.parametrize("seed", [0, 3])
def test_device_and_float_training_learn_alike(seed: int) -> None:
    graph, samples = separable(seed)
    plan = full_plan(graph)
    on_device = train_on_device_arithmetic(graph, plan, samples, SHORT, 0)
    network = Network(graph, plan, rounded=False)
    in_float = train_network(network, scaled, samples, SHORT, 0)
    assert on_device.loss[-1] < 0.8 * on_device.loss[0]
    assert on_device.loss[-1] == pytest.approx(in_float.loss[-1], rel=0.3)


def test_frozen_layers_are_left_out_without_changing_a_bit_of_training() -> None:
    graph, samples = separable(1)
    last = graph.convolutions[-1].name
    plan = Plan("late", (last,), (), True, "q8.8")
    tail, arriving = trained_tail(graph, plan, samples)
    assert len(tail.ops) < len(graph.ops)
    whole = train_on_device_arithmetic(graph, plan, samples, SHORT, 0)
    assert train_on_device_arithmetic(tail, plan, arriving, SHORT, 0) == whole


def test_truncated_updates_cut_towards_zero_and_wrap() -> None:
    graph, _ = random_graph(2, smooth=False)
    network = Network(graph, full_plan(graph), rounded=True, head_bits=8)
    name = f"{graph.head.name}.weight"
    with torch.no_grad():
        network.parameters[name].zero_()
        network.parameters[name][0, :4] = torch.tensor([5.0, -5.0, 127.0, 5.0])
        gradient = torch.zeros_like(network.parameters[name])
        # A hundredth of a step down, up, two steps up beyond the end, and none.
        gradient[0, :3] = torch.tensor([0.01, -0.01, -2.0]) * network.steps[name] ** 2
        truncated(network, {name: gradient}, 1.0)
    assert network.parameters[name][0, :4].tolist() == [4.0, -4.0, -127.0, 5.0]


def test_a_run_that_stays_worse_than_guessing_is_given_up() -> None:
    run = Run()
    assert not run.note([9.0], 2.3, 30, lambda: 0.1)
    assert not run.note([2.4], 2.3, 30, lambda: 0.1)
    assert run.note([2.5], 2.3, 30, lambda: 0.1)
    assert run.diverged
    assert run.end == 0.1


def test_a_healthy_run_is_tested_now_and_then_and_at_the_end() -> None:
    run = Run()
    assert not any(run.note([1.0], 2.3, 7, lambda: 0.5) for _ in range(7))
    assert list(run.accuracy) == [5, 7]
    assert run.end == 0.5
