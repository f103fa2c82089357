"""Subject membership: did a person's device take part, and was it among those that were trained?

Three questions, each asked of as many people who were in as of people who weren't. The attacker has
the person's samples.

* *delta*: is this one device's delta that person's? With masks, the message as it came;
* *sum*: is that person's delta in the sum of a set?
* *version*: has a released version been trained with that person, among others?

For the first two the attacker makes the delta that the person would have sent, and looks for it in
the observation, Gaussian in each value, with moments of public samples: LiRA (arXiv 2112.03570)
without shadow models. For the third it looks at how far the loss
on the person's samples has fallen since the version that the campaign began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.privacy.inversion import SET
from benchmarks.privacy.protection import Protection, Values, clipped, devices_of, observe
from benchmarks.privacy.victims import Share, Victim, people, public_shares
from fleet.aggregation import FedAvg, init
from fleet.aggregation.master import blob_from_master
from fleet.aggregation.mean import plan_sum_from_manifest

PUBLIC = 200
FEW = 0.05
"""Share of people who are accused wrongly, at which the share of those found is told."""

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Membership:
    """How well members are told from others."""

    members: int
    auc: float
    """Chance that a member's score is above another's; one half is guessing."""
    found_at_few: float
    """Share of members found where `FEW` of the others are taken for such."""


def membership(inside: Sequence[float], outside: Sequence[float]) -> Membership:
    """Of scores that are higher for members."""
    high, low = np.array(inside), np.array(outside)
    above = (high[:, None] > low).mean() + (high[:, None] == low).mean() / 2
    limit = np.quantile(low, 1 - FEW, method="higher")
    return Membership(len(high), float(above), float((high > limit).mean()))


class Suspicion:
    """What a delta of a person would be, and what deltas of anybody are like."""

    def __init__(self, victim: Victim, plan: str, protection: Protection, seed: int = 0) -> None:
        """Makes the deltas of public samples."""
        self._victim, self._plan = victim, plan
        self._parameters = protection.parameters(SET)
        shares = public_shares(victim, PUBLIC, seed)
        public = np.stack([self.delta(share, at) for at, share in enumerate(shares)])
        self._mean, self._variance = public.mean(axis=0), public.var(axis=0)

    def delta(self, share: Share, seed: int) -> Values:
        """As the device would send it, without noise and mask."""
        made = self._victim.delta(self._plan, share, seed)
        return clipped(made, self._parameters, seed)

    def score(self, seen: Values, share: Share, others: int) -> float:
        """What is seen along the person's delta, where ``others`` more are in it.

        A matched filter, in its own standard deviations. For one person it puts observations in
        the order of the likelihoods' quotient.
        """
        along = self.delta(share, 0) - self._mean
        noise = (others + 1) * self._parameters.noise_variance
        # A value that doesn't move in public may have moved by a step.
        variance = max(others, 1) * self._variance + noise + 1.0
        from_mean = seen - (others + 1) * self._mean
        return float((from_mean * along / variance).sum() / np.sqrt((along**2 / variance).sum()))


def in_messages_and_sums(
    victim: Victim, plan: str, protection: Protection, seeds: Sequence[int], each: int
) -> dict[str, Membership]:
    """*delta* and *sum*: people of campaigns with these seeds, ``each`` with everybody's sets.

    A set has a person's delta, or that of somebody else in its place.
    """
    suspicion = Suspicion(victim, plan, protection)
    scores: dict[tuple[str, bool], list[float]] = {}
    for seed in seeds:
        everybody = people(victim, 2 * SET, seed)
        devices = devices_of(seed, SET)
        for number in range(each):
            suspect, instead, *others = np.roll(np.arange(2 * SET), -number)[: SET + 1]
            for is_in in (True, False):
                first = suspect if is_in else instead
                members = [everybody[at] for at in (first, *others)]
                chance = seed * 1000 + number * 2 + is_in
                deltas = [
                    victim.delta(plan, share, 100 * chance + at) for at, share in enumerate(members)
                ]
                view = observe(deltas, devices, protection, (chance, 0x3B))
                person = everybody[suspect]
                of_delta = suspicion.score(view.messages[0], person, 0)
                of_sum = suspicion.score(view.total, person, SET - 1)
                scores.setdefault(("delta", is_in), []).append(of_delta)
                scores.setdefault(("sum", is_in), []).append(of_sum)
    return {what: membership(scores[what, True], scores[what, False]) for what in ("delta", "sum")}


def in_versions(
    victim: Victim, plan: str, protection: Protection, seeds: Sequence[int], rounds: int
) -> Membership:
    """*version*: campaigns of half of the people; the others are never asked."""
    inside: list[float] = []
    outside: list[float] = []
    for seed in seeds:
        everybody = people(victim, 2 * SET, seed)
        released = campaign(victim, plan, protection, everybody[:SET], rounds, seed)
        for number, share in enumerate(everybody):
            before = loss(victim, plan, victim.task.weights, share)
            fallen = before - loss(victim, plan, released, share)
            (inside if number < SET else outside).append(fallen)
    return membership(inside, outside)


def campaign(
    victim: Victim, plan: str, protection: Protection, members: Sequence[Share], rounds: int,
    seed: int,
) -> bytes:  # fmt: skip
    """The weights after so many rounds of FedAvg over one set."""
    manifest, entry = victim.task.manifest, victim.entry(plan)
    state, size = init(manifest.tensors, victim.task.weights), len(victim.task.weights)
    devices = devices_of(seed, len(members))
    for number in range(rounds):
        weights = blob_from_master(manifest.tensors, state.master, size)
        deltas = [
            victim.delta(plan, share, (seed * rounds + number) * 1000 + at, weights)
            for at, share in enumerate(members)
        ]
        total = observe(deltas, devices, protection, (seed, number, 0x3C)).total
        values = total.astype("<i8").tobytes()
        part = plan_sum_from_manifest(manifest, entry, values, len(members))
        state = FedAvg().apply(state, [[part]])
    return blob_from_master(manifest.tensors, state.master, size)


def loss(victim: Victim, plan: str, weights: bytes, share: Share) -> float:
    """Mean cross entropy of a share's samples, in nats."""
    engine = victim.engine(plan)
    engine.load(weights)
    found = []
    for codes, label in zip(share.codes, share.labels, strict=True):
        engine.score(codes, int(label))
        found.append(engine.loss_q16 / 2**16)
    return float(np.mean(found))
