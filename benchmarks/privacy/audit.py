"""How little privacy one run has shown: a lower bound on ε from guesses about canaries.

Each canary is in or out by the toss of a fair coin of its own. An attacker who sees the run guesses
for some of them. With differential privacy few guesses can be right (Steinke, Nasr, Jagielski 2023,
arXiv 2305.08846), whatever the attacker does and however the canaries' traces depend on each
other. The test here is that of Mahloujifar, Melis, Chaudhuri 2024 (arXiv 2410.22235), which asks
the same of a whole trade-off curve. Ours is the curve of Gaussian noise, since that is what a
ledger claims: a mechanism of sensitivity Δ with noise of variance V is μ-GDP with μ² = Δ²/V, and
rho = μ²/2 is what the ledger adds up. The one-shot estimate of Andrew et al. 2023 (arXiv
2302.03098) stands beside it: it is near the truth, but bounds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

CONFIDENCE = 0.999
_LARGEST_MU = 64.0

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Guesses:
    """What an attacker has said of ``canaries`` canaries."""

    canaries: int
    made: int
    right: int


def guesses(scores: Reals, middle: float, members: NDArray[np.bool_], made: int) -> Guesses:
    """Guesses about those ``made`` canaries whose scores are farthest from the middle.

    ``scores`` and ``members`` have the shape (canaries,): above the middle the guess is that a
    canary is in. ``made`` has to be chosen without looking at ``members``.
    """
    chosen = np.argsort(-np.abs(scores - middle), kind="stable")[:made]
    right = (scores[chosen] > middle) == members[chosen]
    return Guesses(len(scores), made, int(right.sum()))


def is_refuted(seen: Guesses, mu: float, significance: float) -> bool:
    """Whether so many right guesses are less likely than ``significance`` under μ-GDP.

    Let p_i be the probability of i right guesses. Turning over the coin of one canary makes a right
    guess of a wrong one, so that for each count c
    Σ_{i≥c} i·p_i/m ≤ 1 - f(Σ_{i≥c-1} (made-i)·p_i/m). From the tail on, which has the weight
    ``significance`` at least, this wants more and more weight below; more than 1 can't be.
    """
    share = significance / seen.canaries
    right, wrong = share * seen.right, share * (seen.made - seen.right)
    whole = seen.made / seen.canaries
    for count in range(seen.right - 1, -1, -1):
        wanted = float(ndtr(ndtri(right) - mu))
        if wanted <= wrong:
            return False
        right += (wanted - wrong) * count / (seen.made - count)
        wrong = wanted
        if right + wrong > whole:
            return True
    return False


def least_mu(seen: Guesses, significance: float = 1.0 - CONFIDENCE) -> float:
    """The largest μ below which every claim is refuted; 0 where none is."""
    low, high = 0.0, _LARGEST_MU
    for _ in range(40):
        middle = (low + high) / 2
        if is_refuted(seen, middle, significance):
            low = middle
        else:
            high = middle
    return low


def estimated_mu(scores: Reals, members: NDArray[np.bool_]) -> float:
    """Distance of the two groups' means in standard deviations: an estimate without a guarantee."""
    inside, outside = scores[members], scores[~members]
    spread = np.sqrt((inside.var(ddof=1) + outside.var(ddof=1)) / 2)
    return float(max(0.0, inside.mean() - outside.mean()) / spread) if spread > 0 else np.inf
