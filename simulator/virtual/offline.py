"""What is computed about devices without any of their time: scores, and training without a fleet.

All of it is the C engine's, bit for bit what a device would compute.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codegen.firmware.host_engine import HostEngine
from simulator.virtual.population import HeldSamples, Population
from simulator.world.draws import generator

LEARNING_RATE_ONE = 1 << 20
"""tf_frame's learning_rate_q20 for 1.0."""


class Score(NamedTuple):
    """How a model does on some samples."""

    samples: int
    correct: int


@functools.lru_cache(maxsize=8)
def _engine(library: Path, plan: str) -> HostEngine:
    return HostEngine(library, plan)


def score(engine: HostEngine, held: HeldSamples) -> Score:
    """With the weights that the engine has."""
    predicted = [
        engine.score(sample, int(label))
        for sample, label in zip(held.codes, held.labels, strict=True)
    ]
    return Score(len(predicted), int(np.sum(np.array(predicted) == held.labels)))


def _loaded(population: Population, board: str, weights: bytes) -> HostEngine:
    """An engine with these weights; any plan's forward pass is the model's."""
    plan = population.bundle(board).manifest.plans[0]
    engine = _engine(population.firmware[board].library, plan.id)
    engine.load(weights)
    return engine


@dataclass(frozen=True)
class ScoreDevice:
    """A job: how a version does on a device's own held-out samples."""

    weights: bytes

    def __call__(self, population: Population, number: int) -> Score:
        """The score."""
        board = population.world.device(number).board
        return score(
            _loaded(population, board, self.weights), population.held_out_of_device(number)
        )


def score_never_trained(population: Population, weights: bytes) -> list[Score]:
    """Of each device that never trains, on all of its samples."""
    board = next(iter(population.firmware))
    engine = _loaded(population, board, weights)
    return [score(engine, held) for held in population.never_trained()]


MIXES = (256, 192, 128, 64)
"""Of personal values, in 256ths, that a device tries (docs/specification/wire.md)."""


@dataclass(frozen=True)
class Tuning:
    """How newcomers train their personal tensors, with which of the bundle's plans."""

    plan: str
    epochs: int
    learning_rate: float
    seed: int


def tuned_newcomers(
    population: Population, weights: bytes, tuning: Tuning
) -> tuple[list[Score], list[Score]]:
    """Of each device that never trains: with a version, and once it has tuned and chosen."""
    board = next(iter(population.firmware))
    engine = _trainer(population, board, tuning.plan, weights)
    before, after = [], []
    for number, one in enumerate(population.newcomers()):
        engine.load(weights)
        engine.set_updates("personal")
        for epoch in range(tuning.epochs):
            random = generator(tuning.seed, "newcomer", number, epoch)
            _train(engine, one.trained, tuning.learning_rate, random)
        kept = engine.kept(personal_only=True)
        scores = {}
        for mix in (0, *MIXES):
            engine.load(weights)
            engine.lay_over(kept, personal_only=True, mix=mix)
            scores[mix] = (_quality(engine, one.held_out), score(engine, one.scored))
        before.append(scores[0][1])
        after.append(max(scores.values(), key=lambda found: found[0])[1])
    return before, after


def _quality(engine: HostEngine, held: HeldSamples) -> tuple[int, int]:
    """What a device compares: right answers, then loss, whose sign is turned."""
    right, loss = 0, 0
    for sample, label in zip(held.codes, held.labels, strict=True):
        right += engine.score(sample, int(label)) == label
        loss += engine.loss_q16
    return right, -loss


@dataclass(frozen=True)
class TrainAlone:
    """A job: a device trains by itself, and is scored after each of so many rounds."""

    weights: bytes
    plan: str
    rounds: int
    epochs: int
    learning_rate: float
    seed: int

    def __call__(self, population: Population, number: int) -> list[Score]:
        """The scores, that before the first round included."""
        board = population.world.device(number).board
        held_out = population.held_out_of_device(number)
        engine = _trainer(population, board, self.plan, self.weights)
        scores = [score(engine, held_out)]
        samples = population.trained_by_device(number)
        for round_number in range(1, self.rounds + 1):
            for epoch in range(self.epochs):
                random = generator(self.seed, "alone", number, round_number, epoch)
                _train(engine, samples, self.learning_rate, random)
            scores.append(score(engine, held_out))
        return scores


def _trainer(population: Population, board: str, plan: str, weights: bytes) -> HostEngine:
    found = population.bundle(board).manifest.plan(plan)
    engine = _engine(population.firmware[board].library, found.id)
    engine.load(weights)
    return engine


def _train(
    engine: HostEngine, samples: HeldSamples, learning_rate: float, random: np.random.Generator
) -> None:
    """One epoch, in an order of its own."""
    rate, seed = round(learning_rate * LEARNING_RATE_ONE), int(random.integers(2**32))
    for index in random.permutation(len(samples.labels)):
        engine.train_step(samples.codes[index], int(samples.labels[index]), rate, seed)


def pooled_samples(population: Population) -> HeldSamples:
    """All that devices train on, in order of devices."""
    parts = [population.trained_by_device(number) for number in population.numbers]
    return HeldSamples(
        np.concatenate([one.codes for one in parts]), np.concatenate([one.labels for one in parts])
    )


def trained_delta(
    population: Population,
    plan: str,
    weights: bytes,
    samples: HeldSamples,
    epochs: int,
    learning_rate: float,
    random: np.random.Generator,
) -> NDArray[np.int32]:
    """The delta of a device that had these weights and these samples."""
    engine = _trainer(population, next(iter(population.firmware)), plan, weights)
    for _ in range(epochs):
        _train(engine, samples, learning_rate, random)
    return engine.delta()
