"""The last choice: plans race over seeds, clear losers are stopped, ties go to the smaller plan.

With each seed other samples are held out, and every plan that is still in the race is trained on
the rest and scored on them. Two plans are compared by what they make of the same sample with the
same seed: that some photos and some seeds are harder than others for all plans cancels out.

The rule is a race (Maron and Moore, Hoeffding Races, 1993; Birattari et al., F-Race, 2002) of
paired t tests, each one-sided. Bonferroni's correction for the other plans and for the looks keeps
the probability that the best plan is ever stopped below ``Rules.error``. Ties follow the rule of
one standard error (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

LEAST_SEEDS = 2
"""Before any plan is stopped: one seed says nothing of how much seeds differ."""

LEAST_GROUPS = 8
"""Held-out groups from which on errors are those over groups, not over samples."""


@dataclass(frozen=True)
class Rules:
    """How long a race goes on, and how sure it has to be."""

    seeds: int = 5
    error: float = 0.05
    """Probability that the best plan is stopped, at most. Intervals have this one's confidence."""


@dataclass(frozen=True)
class Outcome:
    """A plan trained with one seed.

    ``samples`` are the numbers of those held out, ``losses`` what they are compared by (less is
    better), ``right`` whether the class was.
    """

    samples: tuple[int, ...]
    losses: tuple[float, ...]
    right: tuple[bool, ...]


@dataclass(frozen=True)
class Difference:
    """A mean paired difference, with its standard errors over groups and over seeds.

    Each error comes with the degrees of freedom that it is known with. What they are made of is in
    part the same, so the one that is less sure counts, not their sum.
    """

    mean: float
    of_groups: tuple[float, int]
    of_seeds: tuple[float, int]

    def interval(self, error: float) -> tuple[float, float]:
        """Between what the true mean lies but for a probability of ``error``."""
        half = self._half(error / 2)
        return self.mean - half, self.mean + half

    def is_sure(self, error: float) -> bool:
        """Whether the true mean is above zero but for a probability of ``error``."""
        return self.mean > self._half(error)

    def _half(self, error: float) -> float:
        both = (self.of_groups, self.of_seeds)
        return max(deviation * _student(error, freedom) for deviation, freedom in both)


@dataclass(frozen=True)
class Standing:
    """Where a plan is when its race is over.

    ``behind`` is the plan of lowest loss then, which has stopped it if ``stopped``; None for that
    plan itself. ``loss`` and ``right`` (a share) are by how much it has more of them than that one.
    """

    outcomes: tuple[Outcome, ...]
    behind: str | None
    loss: Difference | None
    right: Difference | None
    stopped: bool

    @property
    def mean_loss(self) -> float:
        """Mean of the losses of all samples and seeds."""
        return float(np.mean(np.concatenate([run.losses for run in self.outcomes])))

    @property
    def hits(self) -> float:
        """Share of samples, of all seeds, that were right."""
        return float(np.mean(np.concatenate([run.right for run in self.outcomes])))

    @property
    def ties(self) -> bool:
        """Whether its loss is within one standard error, that over groups, of the lowest.

        The one over seeds belongs to all plans together: of a race in which some are unsteady it
        says too much of two that aren't.
        """
        return self.loss is None or self.loss.mean <= self.loss.of_groups[0]


@dataclass(frozen=True)
class Result:
    """A finished race. ``leader`` has the lowest loss; ``chosen`` is the smallest that ties."""

    standings: Mapping[str, Standing]
    leader: str
    chosen: str


Run = Callable[[int, Sequence[str]], Mapping[str, Outcome]]
"""Trains plans, by name, with the seed of this number, from 0; all on the same samples."""


def race(sizes: Mapping[str, int], run: Run, groups: NDArray[np.int64], rules: Rules) -> Result:
    """Lets plans race. ``sizes`` has them by name: of those that tie the smallest is chosen.

    ``groups`` (n,) numbers whom each sample comes from; where nothing is known, each is its own.
    """
    looks = max(1, rules.seeds - LEAST_SEEDS)
    level = rules.error / (looks * max(1, len(sizes) - 1))
    outcomes: dict[str, list[Outcome]] = {name: [] for name in sizes}
    standings: dict[str, Standing] = {}
    left = [*sizes]
    for seed in range(rules.seeds):
        for name, outcome in run(seed, left).items():
            outcomes[name].append(outcome)
        last = seed + 1 == rules.seeds
        if seed + 1 < LEAST_SEEDS and not last:
            continue
        for name, standing in _standings({name: outcomes[name] for name in left}, groups).items():
            stopped = not last and standing.loss is not None and standing.loss.is_sure(level)
            if stopped or last:
                standings[name] = replace(standing, stopped=stopped)
        left = [name for name in left if last or name not in standings]
    tied = [name for name in left if standings[name].ties]
    chosen = min(tied, key=lambda name: sizes[name])
    (leader,) = (name for name in left if standings[name].behind is None)
    return Result({name: standings[name] for name in sizes}, leader, chosen)


def _standings(
    outcomes: Mapping[str, Sequence[Outcome]], groups: NDArray[np.int64]
) -> dict[str, Standing]:
    """Where plans are that all have had the same seeds."""
    names = [*outcomes]
    first = outcomes[names[0]]
    samples = np.concatenate([np.array(run.samples, np.int64) for run in first])
    clusters = groups[samples]
    if len(np.unique(clusters)) < LEAST_GROUPS:
        clusters = samples
    seeds = np.repeat(np.arange(len(first)), [len(run.samples) for run in first])
    losses = np.array([np.concatenate([run.losses for run in outcomes[name]]) for name in names])
    right = np.array([np.concatenate([run.right for run in outcomes[name]]) for name in names])
    best = int(np.argmin(losses.mean(axis=1)))
    more = [_differences(values.astype(float), best, clusters, seeds) for values in (losses, right)]
    return {
        name: Standing(tuple(outcomes[name]), None, None, None, stopped=False)
        if index == best
        else Standing(
            tuple(outcomes[name]), names[best], more[0][index], more[1][index], stopped=False
        )
        for index, name in enumerate(names)
    }


def _differences(
    values: NDArray[np.float64],
    best: int,
    clusters: NDArray[np.int64],
    seeds: NDArray[np.int64],
) -> list[Difference]:
    """How much more than row ``best`` each row of ``values`` (plans, samples of all seeds) is.

    By seeds the error is that of an analysis of variance with plans and seeds as its two factors:
    what is left, the interaction of both, is estimated from all plans together (Montgomery, Design
    and Analysis of Experiments, section 4.1). That lends two seeds enough degrees of freedom.
    """
    plans, count = len(values), int(seeds.max()) + 1
    means = np.array([values[:, seeds == seed].mean(axis=1) for seed in range(count)])
    left_over = means - means.mean(axis=0) - means.mean(axis=1, keepdims=True) + means.mean()
    freedom = (plans - 1) * (count - 1)
    # With one seed nothing is known of how seeds differ: what is left is the error over groups.
    spread = 2 * float(np.sum(left_over**2)) / freedom / count if freedom else 0.0
    _, numbers = np.unique(clusters, return_inverse=True)
    found = []
    for row in values:
        rest = row - values[best]
        mean = float(rest.mean())
        sums = np.bincount(numbers, weights=rest - mean)
        small = len(sums) / max(1, len(sums) - 1)
        error = math.sqrt(small * float(np.sum(sums**2))) / len(rest)
        found.append(
            Difference(mean, (error, max(1, len(sums) - 1)), (math.sqrt(spread), max(1, freedom)))
        )
    return found


def _student(error: float, freedom: int) -> float:
    """The value that Student's t exceeds with probability ``error``."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # slow to import

    return -float(stdtrit(freedom, error))
