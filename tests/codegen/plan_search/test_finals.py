"""Finalists: trained from the model's own weights, scored on groups that each seed holds out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from codegen.arithmetic.layers import logit_scale
from codegen.graph.ir import Graph
from codegen.plan_search import finals as module
from codegen.plan_search.contributions import Journal
from codegen.plan_search.finals import Finals, calibrated_losses, compete
from codegen.plan_search.race import Result, Rules
from codegen.plan_search.samples import Samples, hold_out
from codegen.plan_search.training import Schedule, engines, train
from codegen.program.plans import LastLayers, Plan, PlanSpec, WeightSpec, resolve
from tests.codegen.random_graphs import random_graph

FINALS = Finals(Rules(seeds=3), epochs=2, learning_rate=0.02)


def silent(stage: str, done: int, of: int) -> None:
    pass


def case() -> tuple[Graph, Samples, dict[str, Plan]]:
    """Samples that differ by brightness, of 30 groups."""
    graph, _ = random_graph(4)
    rng = np.random.default_rng(4)
    shape = graph.tensors[graph.input].shape
    codes = rng.normal(rng.uniform(-60, 60, (120, 1, 1, 1)), 40, (120, *shape))
    codes = codes.clip(-128, 127).astype(np.int8)
    brightness = codes.astype(int).mean(axis=(1, 2, 3))
    labels = np.argsort(np.argsort(brightness)) * graph.head.bias.size // len(codes)
    groups = rng.integers(0, 30, len(codes))
    last = graph.convolutions[-1].name
    specs = {
        "head": PlanSpec(),
        "biases": PlanSpec(biases=LastLayers(last=2)),
        "weights": PlanSpec(biases=LastLayers(last=1), weights=[WeightSpec(layer=last)]),
    }
    plans = {name: resolve(spec, graph) for name, spec in specs.items()}
    return graph, Samples(codes, labels, groups), plans


def raced(journal: Path | None = None) -> Result:
    graph, samples, plans = case()
    sizes = {name: index for index, name in enumerate(plans)}
    return compete(graph, samples, plans, sizes, FINALS, 5, Journal(journal, {}), silent)


@pytest.fixture(scope="module")
def whole() -> Result:
    return raced()


def test_a_finalist_is_trained_on_the_fleets_schedule_from_the_models_own_weights(
    whole: Result,
) -> None:
    graph, samples, plans = case()
    outcome, seed = whole.standings["weights"].outcomes[1], 6  # the second one's
    training, held = hold_out(samples, seed)
    with engines(graph, graph.input, [plans["weights"]]) as (engine,):
        train(engine, training, Schedule(2, 0.02, seed))
        answers, logits = [], []
        for codes, label in zip(held.codes, held.labels.tolist(), strict=True):
            answers.append(engine.score(codes, label))
            logits.append(engine.logits * logit_scale(graph))
    assert outcome.right == tuple((np.array(answers) == held.labels).tolist())
    expected = calibrated_losses(np.array(logits), held.labels)
    assert outcome.losses == pytest.approx(expected.tolist(), abs=1e-6)


def test_each_seed_holds_out_other_groups_whole_and_the_same_for_all_plans(whole: Result) -> None:
    _, samples, _ = case()
    assert samples.groups is not None
    parts = []
    for runs in zip(*(of.outcomes for of in whole.standings.values()), strict=True):
        assert len({run.samples for run in runs}) == 1
        held = np.array(runs[0].samples)
        rest = np.setdiff1d(np.arange(len(samples)), held)
        assert not {*samples.groups[held]} & {*samples.groups[rest]}
        parts.append(runs[0].samples)
    assert len({*parts}) == FINALS.rules.seeds


def test_a_killed_race_goes_on_where_it_was(
    whole: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = module._Track._one
    begun: list[str] = []

    def killed(self: module._Track, name: str, schedule: Schedule) -> module.Outcome:
        begun.append(name)
        if len(begun) == 5:
            raise KeyboardInterrupt
        return one(self, name, schedule)

    path = tmp_path / "journal.jsonl"
    monkeypatch.setattr(module._Track, "_one", killed)
    with pytest.raises(KeyboardInterrupt):
        raced(path)
    finished = len(path.read_text().splitlines()) - 1
    assert 3 <= finished < 6
    begun[:] = [""] * 5
    assert raced(path) == whole
    runs = sum(len(standing.outcomes) for standing in whole.standings.values())
    assert len(begun) - 5 == runs - finished
    assert raced(path) == whole
    assert len(begun) - 5 == runs - finished


def test_other_finals_are_trained_anew(whole: Result, tmp_path: Path) -> None:
    graph, samples, plans = case()
    journal = Journal(tmp_path / "journal.jsonl", {})
    head = {"head": plans["head"]}
    short = dataclasses.replace(FINALS, rules=Rules(seeds=1))
    longer = dataclasses.replace(short, epochs=3)
    for finals in (short, longer, short):
        result = compete(graph, samples, head, {"head": 1}, finals, 5, journal, silent)
        same = result.standings["head"].outcomes == whole.standings["head"].outcomes[:1]
        assert same == (finals is short)


def test_calibrated_losses_tell_nothing_of_how_sure_a_plan_is() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 60)
    logits = rng.normal(0, 1, (60, 4)) + 2 * np.eye(4)[labels]
    losses = calibrated_losses(logits, labels)
    assert calibrated_losses(7 * logits, labels) == pytest.approx(losses, rel=1e-3, abs=1e-3)
    # Nor are they above those of any temperature, nor better where answers are guesses.
    for factor in (0.3, 1.0, 5.0):
        scaled = factor * logits
        plain = np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(60), labels]
        assert losses.mean() <= plain.mean() + 1e-6
    guesses = calibrated_losses(50 * rng.normal(0, 1, (60, 4)), labels)
    assert losses.mean() < guesses.mean() <= np.log(4) + 1e-3
