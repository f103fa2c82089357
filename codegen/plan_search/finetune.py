"""Contributions measured: each candidate trained alone with the device's arithmetic.

Paper: arXiv 2206.15472, section 3.2. The gain of biases is that over training the head alone; the
gain of a layer's weights is that over training the biases up to that layer. A gain is what the
loss on held-out samples falls by for sure (``Score.sure_gain``): of a hundred candidates some look
good by chance, and the search would take them all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from codegen.graph.ir import Graph
from codegen.host_toolchain import Progress
from codegen.plan_search.candidates import ChannelOrder, Selection, channel_counts, plan_spec
from codegen.plan_search.contributions import Contributions, Journal
from codegen.plan_search.samples import Samples
from codegen.plan_search.training import (
    Features,
    Schedule,
    Score,
    cut_for,
    engines,
    score,
    train,
)
from codegen.program.plans import Plan, State, resolve

UNIT = "nats of held-out loss"


@dataclass(frozen=True)
class Trial:
    """Everything that a training run depends on, besides the plan."""

    graph: Graph
    order: ChannelOrder
    training: Samples
    held_out: Samples
    schedule: Schedule
    state: State = "q8.8"
    repeats: int = 1
    """Runs with different seeds per plan, whose scores are averaged."""

    def plan(self, selection: Selection) -> Plan:
        """The plan that ``selection`` stands for."""
        return resolve(plan_spec(selection, self.order, state=self.state), self.graph)


def name_of(selection: Selection) -> str:
    """The name that a journal keeps a score under."""
    parts = [f"biases {selection.depth}"]
    return ", ".join(parts + [f"{layer} {count}" for layer, count in selection.channels])


def measure(
    trial: Trial, selections: Sequence[Selection], journal: Journal, progress: Progress
) -> dict[Selection, Score]:
    """Scores after training each of ``selections``; what ``journal`` knows isn't run again."""
    missing = [s for s in dict.fromkeys(selections) if name_of(s) not in journal]
    groups: dict[str, list[Selection]] = {}
    for selection in missing:
        groups.setdefault(cut_for(trial.graph, trial.plan(selection)), []).append(selection)
    training = Features(trial.graph, trial.training, groups, progress)
    held_out = Features(trial.graph, trial.held_out, groups, progress)
    done = len(selections) - len(missing)
    for cut, group in groups.items():
        with engines(trial.graph, cut, [trial.plan(selection) for selection in group]) as made:
            for selection, engine in zip(group, made, strict=True):
                progress("training candidates", done, len(selections))
                runs = []
                for repeat in range(trial.repeats):
                    engine.load()
                    seed = trial.schedule.seed + repeat
                    train(engine, training.at(cut), dataclasses.replace(trial.schedule, seed=seed))
                    runs.append(score(engine, held_out.at(cut)))
                journal.add(name_of(selection), dataclasses.asdict(_mean(runs)))
                done += 1
    progress("training candidates", done, len(selections))
    kept = {selection: journal[name_of(selection)] for selection in selections}
    return {key: Score(entry["hits"], tuple(entry["losses"])) for key, entry in kept.items()}


def _mean(runs: Sequence[Score]) -> Score:
    losses = np.mean([run.losses for run in runs], axis=0)
    return Score(float(np.mean([run.hits for run in runs])), tuple(losses.round(6).tolist()))


def candidates(graph: Graph, depth: int) -> list[Selection]:
    """Bias depths 0 … ``depth``, and each (layer, ratio) of those layers on top of its depth."""
    layers = graph.convolutions
    found = [Selection()]
    for last in range(1, depth + 1):
        op = layers[len(layers) - last]
        found.append(Selection(last))
        found += [Selection(last, ((op.name, count),)) for count in channel_counts(op)]
    return found


def finetune_contributions(graph: Graph, scores: Mapping[Selection, Score]) -> Contributions:
    """Contributions from the scores of ``candidates``; those without a score are left out."""
    layers = graph.convolutions
    base = scores[Selection()]
    biases = [0.0]
    weights: dict[str, dict[int, float]] = {}
    for last in range(1, len(layers) + 1):
        if Selection(last) not in scores:
            break
        alone = scores[Selection(last)]
        biases.append(alone.sure_gain(base))
        op = layers[len(layers) - last]
        gains = {}
        for count in channel_counts(op):
            trained = scores.get(Selection(last, ((op.name, count),)))
            if trained is not None:
                gains[count] = trained.sure_gain(alone)
        weights[op.name] = gains
    in_order = {op.name: weights[op.name] for op in layers if op.name in weights}
    return Contributions("finetune", UNIT, tuple(biases), in_order)
