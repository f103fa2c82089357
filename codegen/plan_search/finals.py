"""Finalists trained as the fleet will train them, with several seeds, for the race.

Unlike contributions, which are many and begin with a trained head, a finalist begins with the
model's own weights and is trained for the fleet's whole schedule.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.layers import logit_scale
from codegen.firmware.host_engine import HostEngine
from codegen.graph.ir import Graph
from codegen.host_toolchain import Progress
from codegen.plan_search.contributions import Journal
from codegen.plan_search.race import Outcome, Result, Rules, race
from codegen.plan_search.samples import Samples, split
from codegen.plan_search.training import Features, Schedule, cut_for, engines, train
from codegen.program.plans import Plan

COLDEST, HOTTEST = 2.0**-20, 2.0**20
"""Between which the temperature of a finalist's logits is looked for."""


@dataclass(frozen=True)
class Finals:
    """How finalists are judged: ``epochs`` and ``learning_rate`` are the fleet's, all rounds
    together; each seed draws what is held out and the order of the rest."""

    rules: Rules = field(default_factory=Rules)
    epochs: int = 30
    learning_rate: float = 0.01

    def schedule(self, seed: int) -> Schedule:
        """The schedule with ``seed``."""
        return Schedule(self.epochs, self.learning_rate, seed)


def compete(
    graph: Graph,
    samples: Samples,
    plans: Mapping[str, Plan],
    sizes: Mapping[str, int],
    finals: Finals,
    first_seed: int,
    journal: Journal,
    progress: Progress,
) -> Result:
    """The race of ``plans``, by name, of which ``sizes`` has the bytes of SRAM.

    Seeds are ``first_seed`` and those after it. What ``journal`` knows isn't trained again.
    """
    groups = np.arange(len(samples)) if samples.groups is None else samples.groups
    with _Track(graph, samples, plans, finals, progress) as track:

        def run(number: int, names: Sequence[str]) -> dict[str, Outcome]:
            schedule = finals.schedule(first_seed + number)
            keys = {name: f"final of plan {plans[name].id}, {schedule}" for name in names}
            missing = [name for name in names if keys[name] not in journal]
            stage = f"final, seed {number + 1}"
            progress(stage, len(names) - len(missing), len(names))
            for name, outcome in track.trained(missing, schedule):
                journal.add(keys[name], dataclasses.asdict(outcome))
                missing.remove(name)
                progress(stage, len(names) - len(missing), len(names))
            kept = {name: journal[keys[name]] for name in names}
            return {
                name: Outcome(*(tuple(entry[key]) for key in ("samples", "losses", "right")))
                for name, entry in kept.items()
            }

        return race(sizes, run, groups, finals.rules)


class _Track(ExitStack):
    """Engines and features of all finalists, made when the first one is trained."""

    def __init__(
        self,
        graph: Graph,
        samples: Samples,
        plans: Mapping[str, Plan],
        finals: Finals,
        progress: Progress,
    ) -> None:
        super().__init__()
        self._graph = graph
        self._samples = samples
        self._finals = finals
        self._progress = progress
        self._plans = plans
        self._cuts = {name: cut_for(graph, plan) for name, plan in plans.items()}
        self._engines: dict[str, HostEngine] = {}
        self._features: Features | None = None

    def trained(self, names: Sequence[str], schedule: Schedule) -> Iterator[tuple[str, Outcome]]:
        """What plans make of held-out samples after training, as they come: one per core at once.

        Engines have nothing in common, and Python waits for none of them.
        """
        if names and self._features is None:
            self._features = self._prepared()
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            running = {pool.submit(self._one, name, schedule): name for name in names}
            for done in as_completed(running):
                yield running[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _one(self, name: str, schedule: Schedule) -> Outcome:
        assert self._features is not None
        samples = self._features.at(self._cuts[name])
        rest, held = split(self._samples, schedule.seed)
        engine = self._engines[name]
        engine.load()
        train(engine, samples.take(rest), schedule)
        return _outcome(engine, samples, held, logit_scale(self._graph))

    def _prepared(self) -> Features:
        for cut in dict.fromkeys(self._cuts.values()):
            names = [name for name, of in self._cuts.items() if of == cut]
            plans = [self._plans[name] for name in names]
            made = self.enter_context(engines(self._graph, cut, plans))
            self._engines |= dict(zip(names, made, strict=True))
        return Features(self._graph, self._samples, self._cuts.values(), self._progress)


def _outcome(engine: HostEngine, samples: Samples, held: NDArray[np.int64], unit: float) -> Outcome:
    labels = samples.labels[held]
    found, logits = [], []
    for index in held:
        found.append(engine.score(samples.codes[index], int(samples.labels[index])))
        logits.append(engine.logits * unit)
    losses = calibrated_losses(np.array(logits), labels)
    return Outcome(
        tuple(held.tolist()),
        tuple(losses.round(6).tolist()),
        tuple((np.array(found) == labels).tolist()),
    )


def calibrated_losses(
    logits: NDArray[np.float64], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Cross-entropies (n,) in nats of ``logits`` (n, classes) at the temperature that suits best.

    A plan that is trained for long becomes surer than it is right, and its loss rises while its
    answers get better. One temperature for all samples (Guo et al., On Calibration of Modern Neural
    Networks, 2017) changes no answer and takes that away: what remains is how well the logits tell
    classes apart (Berta, Holzmüller, Jordan, Bach, Rethinking Early Stopping: Refine, Then
    Calibrate, 2025). None counts for more than guessing would, the logarithm of the classes: else a
    few samples whose answer is surely wrong rule the mean.
    """
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]  # slow to import

    centred = logits - logits.max(axis=1, keepdims=True)
    right = np.arange(len(labels)), labels

    def losses(inverse_log: float) -> NDArray[np.float64]:
        scaled = np.exp2(inverse_log) * centred
        found: NDArray[np.float64] = np.log(np.exp(scaled).sum(axis=1)) - scaled[right]
        return found

    bounds = (-np.log2(HOTTEST), -np.log2(COLDEST))
    best = minimize_scalar(lambda power: float(losses(power).mean()), bounds=bounds)
    return np.minimum(losses(float(best.x)), math.log(logits.shape[1]))
