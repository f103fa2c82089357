"""Ways to train the same tensors by the same schedule: float, device, and what others do.

Every way gets a quantized graph (cut where it is frozen), a plan and int8 samples, and returns a
``Run``: accuracy on the test samples and mean training loss, epoch by epoch. Order of samples and
learning rates are the same for all. Rates belong to batches: where a way takes every sample as a
step of its own, its rate is that of the batch divided by the size of a batch.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.accuracy.network import Network, channels_first
from benchmarks.accuracy.samples import Samples
from codegen.compile import build_host_engine
from codegen.firmware.host_engine import HostEngine
from codegen.graph.ir import Graph
from codegen.program.lowering import lower
from codegen.program.plans import Plan

RATE_UNIT = 2**20
TESTED_EVERY = 5
"""Epochs between tests; the last one is tested in any case."""
GIVE_UP_AFTER = 3
"""Epochs in a row with a loss above that of guessing: such a run counts as diverged."""
NO_LOSS = 1e9
"""Stands for a loss that isn't a number."""


@dataclass(frozen=True)
class Schedule:
    """SGD without momentum; the rate goes to zero as half a cosine over all batches."""

    epochs: int = 30
    rate: float = 0.025
    batch: int = 32

    def order(self, samples: int, seed: int) -> Iterator[list[tuple[float, NDArray[np.intp]]]]:
        """Per epoch the batches: rate, and the indices of the samples."""
        random = np.random.default_rng(seed)
        per_epoch = -(-samples // self.batch)
        for epoch in range(self.epochs):
            shuffled = random.permutation(samples)
            batches = []
            for index in range(per_epoch):
                done = (epoch * per_epoch + index) / (self.epochs * per_epoch)
                rate = self.rate * 0.5 * (1 + math.cos(math.pi * done))
                first = index * self.batch
                batches.append((rate, shuffled[first : first + self.batch]))
            yield batches


@dataclass
class Run:
    """Accuracy before (``start``) and by epochs done; mean loss of each epoch's steps."""

    start: float = 0.0
    accuracy: dict[int, float] = field(default_factory=dict)
    loss: list[float] = field(default_factory=list)
    diverged: bool = False

    @property
    def end(self) -> float:
        """Accuracy after the last epoch."""
        return self.accuracy[len(self.loss)]

    def note(
        self, losses: list[float], guessing: float, epochs: int, test: Callable[[], float]
    ) -> bool:
        """Takes an epoch's losses, tests where it is time; True when there is no point in going on.

        ``guessing`` is the loss of guessing, ``epochs`` how many there are to be.
        """
        mean = float(np.mean(losses))
        self.loss.append(round(mean, 6) if math.isfinite(mean) else NO_LOSS)
        late = self.loss[-GIVE_UP_AFTER:]
        lost = len(late) == GIVE_UP_AFTER and min(late) > guessing
        self.diverged = lost or not math.isfinite(mean)
        done = len(self.loss)
        if done % TESTED_EVERY == 0 or done == epochs or self.diverged:
            self.accuracy[done] = round(test(), 6)
        return self.diverged


Update = Callable[[Network, dict[str, Tensor], float], None]
"""Applies gradients with respect to steps, at a rate, to the network's trained parameters."""


def scaled(network: Network, gradients: dict[str, Tensor], rate: float) -> None:
    """SGD in real units: a gradient per step is divided by the square of the step."""
    for name, gradient in gradients.items():
        step = network.steps[name]
        network.parameters[name] -= rate * gradient * network.trained[name] / step**2


def unscaled(network: Network, gradients: dict[str, Tensor], rate: float) -> None:
    """SGD on integer steps as if they were the weights; the head, which is float, as usual."""
    head = f"{network.graph.head.name}."
    for name, gradient in gradients.items():
        step = network.steps[name] if name.startswith(head) else 1.0
        network.parameters[name] -= rate * gradient * network.trained[name] / step**2


def truncated(network: Network, gradients: dict[str, Tensor], rate: float) -> None:
    """int8 weights and int32 biases less a float, converted as C does: cut off, wrapped."""
    for name, gradient in gradients.items():
        moved = network.parameters[name] - rate * gradient / network.steps[name] ** 2
        kept = torch.trunc(moved).clamp(-(2.0**31), 2.0**31 - 128)
        if name.endswith(".weight"):
            kept = torch.remainder(kept + 128, 256) - 128
        frozen = network.trained[name] == 0
        network.parameters[name].copy_(torch.where(frozen, network.parameters[name], kept))


def train_network(
    network: Network,
    update: Update,
    samples: Samples,
    schedule: Schedule,
    seed: int,
    *,
    single: bool = False,
) -> Run:
    """Trains in PyTorch; ``single`` makes every sample a step, at a rate of one batch-th."""
    inputs, labels = channels_first(samples.train), torch.from_numpy(samples.train_labels)
    test = channels_first(samples.test)
    guessing = math.log(int(samples.train_labels.max()) + 1)

    def accuracy() -> float:
        return float((network.predict(test) == samples.test_labels).mean())

    run = Run(start=accuracy())
    names = list(network.trained)
    for batches in schedule.order(len(inputs), seed):
        losses = []
        for rate, batch in batches:
            for indices in np.split(batch, len(batch)) if single else [batch]:
                logits = network.forward(inputs[indices])
                loss = F.cross_entropy(logits, labels[indices], reduction="sum")
                losses += [loss.item() / len(indices)] * len(indices)
                gradients = torch.autograd.grad(loss, [network.parameters[n] for n in names])
                with torch.no_grad():
                    step = rate / schedule.batch
                    update(network, dict(zip(names, gradients, strict=True)), step)
        if run.note(losses, guessing, schedule.epochs, accuracy):
            break
    return run


def train_on_device_arithmetic(
    graph: Graph, plan: Plan, samples: Samples, schedule: Schedule, seed: int
) -> Run:
    """Trains with the C engine as host library: the bits of the boards."""
    with tempfile.TemporaryDirectory() as folder:
        library = build_host_engine((graph, [lower(graph, plan)]), Path(folder) / "engine.so")
        engine = HostEngine(library, plan.id)
    guessing = math.log(int(samples.train_labels.max()) + 1)

    def accuracy() -> float:
        pairs = zip(samples.test, samples.test_labels, strict=True)
        return float(np.mean([engine.score(codes, int(label)) == label for codes, label in pairs]))

    run = Run(start=accuracy())
    for batches in schedule.order(len(samples.train), seed):
        losses = []
        for index, rate_q20 in device_steps(batches, schedule):
            engine.train_step(
                samples.train[index], int(samples.train_labels[index]), rate_q20, seed
            )
            losses.append(engine.loss_q16 / 2**16)
        if run.note(losses, guessing, schedule.epochs, accuracy):
            break
    return run


def device_steps(
    batches: list[tuple[float, NDArray[np.intp]]], schedule: Schedule
) -> Iterator[tuple[int, int]]:
    """Samples of an epoch one by one, with the learning rate of each in 2**-20."""
    for rate, batch in batches:
        rate_q20 = round(rate / schedule.batch * RATE_UNIT)
        for index in batch:
            yield int(index), rate_q20
