"""Training and scoring plans with the device's arithmetic, on the part of the graph they touch.

The C engine of the device runs as a host library. What lies before the first trained layer is
frozen, so its output is computed once per sample and the rest of the graph is trained on it: the
same bits as training the whole.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codegen.compile import build_host_engine
from codegen.firmware.host_engine import HostEngine
from codegen.graph.ir import Ending, Graph, Head, Op
from codegen.host_toolchain import Progress
from codegen.plan_search.samples import Samples
from codegen.program import blob
from codegen.program.lowering import lower
from codegen.program.plans import Plan, PlanSpec, resolve
from codegen.program.subgraph import cut_graph, cut_tensors, frozen_cut

LEARNING_RATE_ONE = 2**20
MOST_READABLE = 2**16 - 1
"""Elements of a tensor that a head can read: the device counts them in 16 bits."""


@dataclass(frozen=True)
class Schedule:
    """SGD of single samples; the learning rate falls from ``learning_rate`` to 0 by a cosine."""

    epochs: int = 4
    learning_rate: float = 0.01
    seed: int = 1

    def steps(self, count: int) -> Iterator[tuple[int, int]]:
        """(index of a sample, learning rate times 2**20) of each step over ``count`` samples."""
        total = self.epochs * count
        rng = np.random.default_rng([self.seed, count])
        for epoch in range(self.epochs):
            for place, index in enumerate(rng.permutation(count).tolist()):
                done = (epoch * count + place) / total
                rate = self.learning_rate * (1 + math.cos(math.pi * done)) / 2
                yield index, round(rate * LEARNING_RATE_ONE)


@dataclass(frozen=True)
class Score:
    """How a model does on held-out samples.

    ``hits`` is the share of samples classified right, ``losses`` has the cross-entropy of each in
    nats. Their mean tells candidates apart on few samples, where hits are counted in whole samples.
    It is a proper score (Gneiting and Raftery, 2007): unlike the mean probability of the right
    class, it doesn't reward a model for being surer than it is right.
    """

    hits: float
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return float(np.mean(self.losses))

    def sure_gain(self, before: Score) -> float:
        """What the loss has fallen by since ``before``, less one standard error, in nats.

        The error is that of the mean over samples of what each one gained: with few samples, or a
        gain that only some of them have, little of it is sure.
        """
        falls = np.subtract(before.losses, self.losses)
        error = np.std(falls, ddof=1) / math.sqrt(falls.size) if falls.size > 1 else 0.0
        return float(np.mean(falls) - error)


class Features:
    """Samples as the tensors that they become at the cuts of a graph, with its present weights."""

    def __init__(
        self, graph: Graph, samples: Samples, cuts: Iterable[str], progress: Progress
    ) -> None:
        """``cuts`` are what ``cut_for`` gives; the engine runs from one to the next."""
        wanted = [name for name in cut_tensors(graph) if name in set(cuts)]
        self._labels = samples.labels
        self._of = {graph.input: samples.codes}
        at = graph.input
        for index, name in enumerate(wanted):
            progress("features", index, len(wanted))
            if name != at:
                self._of[name] = _outputs(cut_graph(graph, at), name, self._of[at])
                at = name
        progress("features", len(wanted), len(wanted))

    def at(self, cut: str) -> Samples:
        """The samples at ``cut``, as inputs of ``cut_graph(graph, cut)``."""
        return Samples(self._of[cut], self._labels)


def _output(op: Op) -> str:
    assert not isinstance(op, Ending)
    return op.output


def _outputs(graph: Graph, tensor: str, codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """``tensor`` of ``graph`` for every input of ``codes`` (n, height, width, channels)."""
    shape = graph.tensors[tensor].shape
    made = next(i for i, op in enumerate(graph.ops[:-1]) if _output(op) == tensor)
    # A head of its own keeps the tensor in the arena: it is read again when the head is trained.
    reader = Head(
        name=graph.ending.name,
        input=tensor,
        weight=np.zeros((2, math.prod(shape)), np.int16),
        weight_scale=1.0,
        bias=np.zeros(2, np.int32),
    )
    part = dataclasses.replace(graph, ops=(*graph.ops[: made + 1], reader))
    program = lower(part, resolve(PlanSpec(name="reader"), part))
    place = program.offsets[f"activation {tensor}"]
    found = np.empty((len(codes), *shape), np.int8)
    with tempfile.TemporaryDirectory(prefix="tinyfleet-plan-") as folder:
        library = build_host_engine((part, [program]), Path(folder) / "engine.so")
        engine = HostEngine(library, program.plan.id)
        for index, sample in enumerate(codes):
            engine.score(sample, 0)
            values = np.frombuffer(engine.arena, np.int8, math.prod(shape), place)
            found[index] = values.reshape(shape)
    return found


def cut_for(graph: Graph, plan: Plan) -> str:
    """The tensor after which ``plan`` is trained: all it trains lies behind, and it can be read."""
    frozen = frozen_cut(graph, plan)
    cuts = cut_tensors(graph)
    readable = [
        name
        for name in cuts[: cuts.index(frozen) + 1]
        if name == graph.input or graph.tensors[name].size <= MOST_READABLE
    ]
    return readable[-1]


@contextmanager
def engines(graph: Graph, cut: str, plans: Sequence[Plan]) -> Iterator[list[HostEngine]]:
    """An engine per plan for the part of ``graph`` after ``cut``, in the order of ``plans``."""
    part = cut_graph(graph, cut)
    programs = {plan.id: lower(part, plan) for plan in plans}
    with tempfile.TemporaryDirectory(prefix="tinyfleet-plan-") as folder:
        library = build_host_engine((part, list(programs.values())), Path(folder) / "engine.so")
        yield [HostEngine(library, plan.id) for plan in plans]


def train(engine: HostEngine, samples: Samples, schedule: Schedule) -> None:
    """Trains ``engine`` on ``samples`` by ``schedule``; the order follows from its seed."""
    for index, rate in schedule.steps(len(samples)):
        engine.train_step(samples.codes[index], int(samples.labels[index]), rate, schedule.seed)


def score(engine: HostEngine, samples: Samples) -> Score:
    """Scores ``engine`` on ``samples``."""
    hits, losses = 0, []
    for codes, label in zip(samples.codes, samples.labels.tolist(), strict=True):
        hits += engine.score(codes, label) == label
        losses.append(engine.loss_q16 / 2**16)
    return Score(hits / len(samples), tuple(losses))


def with_trained_head(
    graph: Graph, training: Samples, schedule: Schedule, progress: Progress
) -> Graph:
    """``graph`` with its head trained on ``training``, the rest as it was.

    A network with a new head says nothing about its layers before the head has learnt something.
    """
    head = graph.head
    features = Features(graph, training, [head.input], progress).at(head.input)
    plan = resolve(PlanSpec(name="head"), graph)
    with engines(graph, head.input, [plan]) as (engine,):
        train(engine, features, schedule)
        delta = engine.delta()
    program = lower(cut_graph(graph, head.input), plan)
    tensors = {tensor.name: tensor for tensor in blob.parameters(graph)}
    values: dict[str, NDArray[np.int64]] = {}
    for segment in program.segments:
        tensor = tensors[segment.tensor]
        change = delta[segment.first_value : segment.first_value + segment.values]
        moved = tensor.values.astype(np.int64) + (
            change.astype(np.int64).reshape(tensor.values.shape) << segment.shift
        )
        values[tensor.kind] = np.clip(moved, -tensor.limit, tensor.limit)
    trained = dataclasses.replace(
        head, weight=values["weight"].astype(np.int16), bias=values["bias"].astype(np.int32)
    )
    return dataclasses.replace(graph, ops=(*graph.ops[:-1], trained))
