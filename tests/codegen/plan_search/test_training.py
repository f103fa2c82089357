"""Candidates train on what they touch only, to the bits of training the whole graph."""

from __future__ import annotations

import numpy as np
import pytest

from codegen.graph.ir import Graph
from codegen.plan_search.candidates import Selection, order_by_norm
from codegen.plan_search.contributions import Journal
from codegen.plan_search.finetune import (
    Trial,
    candidates,
    finetune_contributions,
    measure,
    name_of,
)
from codegen.plan_search.samples import Samples, hold_out
from codegen.plan_search.training import (
    Features,
    Schedule,
    Score,
    engines,
    score,
    train,
    with_trained_head,
)
from codegen.program.lowering import lower
from codegen.program.plans import PlanSpec, resolve
from codegen.program.subgraph import cut_tensors, frozen_cut
from codegen.reference.float_autodiff import forward_integers
from codegen.reference.interpreter import Interpreter
from tests.codegen.random_graphs import full_plan, random_graph

SCHEDULE = Schedule(epochs=2, learning_rate=0.02, seed=3)


def silent(stage: str, done: int, of: int) -> None:
    pass


def trial(seed: int = 4, repeats: int = 1) -> Trial:
    graph, codes = random_graph(seed)
    # Labels that can be learnt: by the brightness of the sample.
    brightness = codes.astype(int).mean(axis=(1, 2, 3))
    labels = np.argsort(np.argsort(brightness)) * graph.head.bias.size // len(codes)
    training, held_out = hold_out(Samples(codes, labels), 1)
    order = order_by_norm(graph)
    return Trial(graph, order, training, held_out, SCHEDULE, repeats=repeats)


def test_training_behind_a_cut_gives_the_bits_of_training_everything() -> None:
    given = trial()
    last = given.graph.convolutions[-1].name
    selection = Selection(1, ((last, 2),))
    plan = given.plan(selection)
    cut = frozen_cut(given.graph, plan)
    assert cut != given.graph.input
    features = Features(given.graph, given.training, [cut], silent)
    with engines(given.graph, cut, [plan]) as (engine,):
        train(engine, features.at(cut), SCHEDULE)
        delta = engine.delta()
    whole = Interpreter(lower(given.graph, plan))
    for index, rate in SCHEDULE.steps(len(given.training)):
        label = int(given.training.labels[index])
        whole.train_step(given.training.codes[index], label, rate, SCHEDULE.seed)
    assert delta.any()
    assert np.array_equal(delta, whole.delta())


def test_features_are_the_tensors_of_the_whole_graph() -> None:
    given = trial()
    cuts = cut_tensors(given.graph)
    features = Features(given.graph, given.training, cuts, silent)
    interpreter = Interpreter(lower(given.graph, full_plan(given.graph)))
    for index, codes in enumerate(given.training.codes):
        interpreter.score(codes, 0)
        activations, _ = forward_integers(interpreter)
        for cut in cuts:
            assert np.array_equal(features.at(cut).codes[index], activations[cut]), cut


def test_the_schedule_visits_every_sample_each_epoch_and_falls_to_zero() -> None:
    steps = list(Schedule(epochs=3, learning_rate=0.5, seed=1).steps(10))
    for epoch in range(3):
        visited = [index for index, _ in steps[10 * epoch : 10 * epoch + 10]]
        assert sorted(visited) == list(range(10))
    rates = [rate for _, rate in steps]
    assert rates[0] == 2**19
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 2**19 / 100
    assert steps == list(Schedule(epochs=3, learning_rate=0.5, seed=1).steps(10))
    assert steps != list(Schedule(epochs=3, learning_rate=0.5, seed=2).steps(10))


def test_a_score_is_that_of_the_engines_outputs() -> None:
    given = trial()
    plan = given.plan(Selection())
    with engines(given.graph, given.graph.input, [plan]) as (engine,):
        result = score(engine, given.held_out)
        losses, hits = [], []
        for codes, label in zip(given.held_out.codes, given.held_out.labels.tolist(), strict=True):
            hits.append(engine.score(codes, label) == label)
            losses.append(engine.loss_q16 / 2**16)
    assert result.hits == pytest.approx(np.mean(hits))
    assert result.losses == tuple(losses)
    assert result.loss == pytest.approx(np.mean(losses))


def test_a_trained_head_does_better_and_nothing_else_changes() -> None:
    given = trial()
    longer = Schedule(epochs=8, learning_rate=0.05, seed=1)
    trained = with_trained_head(given.graph, given.training, longer, silent)
    plan = resolve(PlanSpec(name="head"), given.graph)

    def loss(graph: Graph) -> float:
        with engines(graph, given.graph.input, [plan]) as (engine,):
            return score(engine, given.training).loss

    assert loss(trained) < loss(given.graph)
    assert trained.ops[:-1] == given.graph.ops[:-1]
    assert trained.head.weight_scale == given.graph.head.weight_scale


def test_scores_follow_from_the_seed() -> None:
    selections = [Selection(), Selection(2)]
    first, second = (measure(trial(), selections, Journal(None, {}), silent) for _ in range(2))
    assert first == second
    assert first[Selection()] != first[Selection(2)]


def test_what_the_journal_knows_is_not_trained_again() -> None:
    journal = Journal(None, {})
    known = Score(hits=0.25, losses=(7.0, 5.0))
    journal.add(name_of(Selection(1)), {"hits": 0.25, "losses": [7.0, 5.0]})
    told: list[tuple[int, int]] = []
    scores = measure(
        trial(),
        [Selection(), Selection(1)],
        journal,
        lambda stage, done, of: told.append((done, of)) if stage == "training candidates" else None,
    )
    assert scores[Selection(1)] == known
    assert told[0] == (1, 2)
    assert told[-1] == (2, 2)


def test_repeats_are_averaged() -> None:
    one, two = (
        measure(trial(repeats=repeats), [Selection(1)], Journal(None, {}), silent)[Selection(1)]
        for repeats in (1, 2)
    )
    assert one != two


def test_gains_of_weights_are_over_their_biases_and_gains_of_biases_over_the_head() -> None:
    graph, _ = random_graph(4)
    op = graph.convolutions[-1]
    found = candidates(graph, 1)
    assert found[:2] == [Selection(), Selection(1)]
    scores = {
        selection: Score(
            0.0, (0.5 - 0.1 * selection.depth - 0.01 * sum(c for _, c in selection.channels),) * 3
        )
        for selection in found
    }
    gains = finetune_contributions(graph, scores)
    assert gains.biases == pytest.approx((0.0, 0.1))
    assert list(gains.weights) == [op.name]
    for count, gain in gains.weights[op.name].items():
        assert gain == pytest.approx(0.01 * count)


def test_a_gain_that_few_samples_have_is_not_sure() -> None:
    before = Score(0.5, (1.0,) * 10)
    everywhere = Score(0.5, (0.9,) * 10)
    on_one = Score(0.5, (1.0,) * 9 + (0.0,))
    assert on_one.loss == pytest.approx(everywhere.loss)
    assert everywhere.sure_gain(before) == pytest.approx(0.1)
    # The standard error of nine zeros and a one is a tenth, all of their mean.
    assert on_one.sure_gain(before) == pytest.approx(0.0)
    assert before.sure_gain(everywhere) == pytest.approx(-0.1)
