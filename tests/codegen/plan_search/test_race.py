"""The race's rule on synthetic plans: it keeps what it promises, whatever losses vary by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from codegen.plan_search.race import Outcome, Result, Rules, race

PER_GROUP = 3


def synthetic(
    gaps: Sequence[float],
    *,
    seed: int,
    of_samples: float = 0.3,
    of_groups: float = 0.0,
    of_seeds: float = 0.0,
    of_runs: float = 0.2,
    groups: int = 60,
    rules: Rules | None = None,
    called: Callable[[int, Sequence[str]], None] = lambda number, names: None,
) -> Result:
    """A race of plans "0", "1", …, of which each has a mean loss of its gap, the larger the later.

    Loss varies by plan and sample, plan and group, plan and seed, and from run to run.
    """
    rng = np.random.default_rng([7, seed])
    owner = np.arange(groups * PER_GROUP) // PER_GROUP
    samples = rng.normal(0, of_samples, (len(gaps), len(owner)))
    samples += rng.normal(0, of_groups, (len(gaps), groups))[:, owner]
    shared = rng.normal(2, 1, len(owner))

    def run(number: int, names: Sequence[str]) -> Mapping[str, Outcome]:
        called(number, names)
        held = np.flatnonzero(np.isin(owner, rng.permutation(groups)[: groups // 3]))
        outcomes = {}
        for name in names:
            losses = shared[held] + gaps[int(name)] + samples[int(name), held]
            losses += rng.normal(0, of_seeds) + rng.normal(0, of_runs, len(held))
            right = tuple((losses < 2).tolist())
            outcomes[name] = Outcome(tuple(held.tolist()), tuple(losses.tolist()), right)
        return outcomes

    sizes = {str(plan): 100 + plan for plan in range(len(gaps))}
    return race(sizes, run, owner, rules or Rules())


@pytest.mark.parametrize("plans", [2, 6])
@pytest.mark.parametrize(
    "noise",
    [
        {},
        {"of_groups": 0.2, "of_seeds": 0.03},
        {"of_seeds": 0.05},
        {"of_samples": 0.02, "of_runs": 0.02, "of_seeds": 0.2},
    ],
    ids=["samples", "all", "both alike", "seeds"],
)
def test_the_best_plan_is_stopped_no_more_often_than_stated(
    plans: int, noise: dict[str, float]
) -> None:
    error, races = 0.1, 60
    # The others are as good, which makes it hardest: the best of them is the one that is first.
    stopped = sum(
        synthetic([0.0] * plans, seed=seed, rules=Rules(5, error), **noise).standings["0"].stopped
        for seed in range(races)
    )
    assert stopped <= error * races + 2.5 * (races * error * (1 - error)) ** 0.5


def test_intervals_hold_the_true_difference_as_often_as_they_say() -> None:
    inside = []
    for seed in range(120):
        result = synthetic([0.0, 0.15], seed=seed, of_seeds=0.03, rules=Rules(3, 0.1))
        found = result.standings["1"].loss or result.standings["0"].loss
        assert found is not None
        truth = 0.15 if result.leader == "0" else -0.15
        low, high = found.interval(0.1)
        inside.append(low <= truth <= high)
    assert np.mean(inside) >= 0.85


def test_clear_losers_are_stopped_and_not_trained_again() -> None:
    trained: list[tuple[int, list[str]]] = []
    result = synthetic(
        [0.0, 0.02, 1.0, 2.0],
        seed=1,
        called=lambda number, names: trained.append((number, [*names])),
    )
    assert [names for _, names in trained] == [["0", "1", "2", "3"]] * 2 + [["0", "1"]] * 3
    assert [number for number, _ in trained] == [0, 1, 2, 3, 4]
    for name in ("2", "3"):
        loser = result.standings[name]
        assert loser.stopped
        assert loser.behind in ("0", "1")
        assert len(loser.outcomes) == 2
        assert loser.loss is not None
        assert loser.loss.interval(0.05)[0] > 0
    assert not result.standings["1"].stopped
    assert len(result.standings["1"].outcomes) == 5


def test_of_plans_that_tie_the_smaller_one_is_chosen_and_none_that_is_worse() -> None:
    # The smallest is clearly worse, though not so much as to be stopped; the last two are alike.
    chosen = [synthetic([0.15, 0.0, 0.0], seed=seed).chosen for seed in range(30)]
    assert chosen.count("1") > 20
    assert chosen.count("0") == 0
    exact = Outcome((0, 1, 2), (1.0, 2.0, 3.0), (True, False, True))
    sizes = {"large": 3, "small": 1, "middle": 2}
    alike = race(sizes, lambda _, names: dict.fromkeys(names, exact), np.arange(3), Rules(2))
    assert alike.chosen == "small"


def test_samples_of_one_group_do_not_count_as_many() -> None:
    owner = np.arange(80) // 10
    rng = np.random.default_rng(3)
    by_group = rng.normal(0, 1, 8)[owner]

    def run(number: int, names: Sequence[str]) -> dict[str, Outcome]:
        noise = {name: rng.normal(0, 0.1, 80) for name in names}
        losses = {"a": noise["a"], "b": noise["b"] + by_group}
        held = tuple(range(80))
        return {
            name: Outcome(held, tuple(of.tolist()), (True,) * 80) for name, of in losses.items()
        }

    def error(groups: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
        result = race({"a": 1, "b": 2}, run, groups, Rules(2))
        found = result.standings["a"].loss or result.standings["b"].loss
        assert found is not None
        return found.of_groups[0]

    assert error(owner) > 2 * error(np.arange(80))


def test_with_one_seed_the_one_of_lowest_loss_is_chosen_unless_samples_say_that_it_ties() -> None:
    result = synthetic([0.3, 0.0], seed=1, rules=Rules(1))
    assert result.chosen == result.leader == "1"
    assert not any(standing.stopped for standing in result.standings.values())
