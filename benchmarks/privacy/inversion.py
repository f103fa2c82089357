"""Gradient inversion: the picture that a device has trained with, from what it has sent.

The worst case for a device: it trained one sample, once; the attacker knows the weights, the rate
and the label. Four ways:

* *analytic*: the weights of a fully connected first layer move by multiples of the input;
* *learned*: ridge regression from observations to pictures, over public samples whose observations
  the attacker makes itself, protection included (Learning to Invert, arXiv 2210.10880). It works
  for any plan;
* *matched*: from there on by Gauss-Newton steps to the picture whose delta is that which was seen
  (Deep Leakage from Gradients, arXiv 1906.08935), with the device's own C as the function and the
  learned estimate with its error as the prior;
* the mean of the class, which needs no delta: what the others have to surpass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.privacy.protection import Protection, Values, clipped, devices_of, observe
from benchmarks.privacy.victims import (
    PEOPLE,
    RATE,
    Share,
    Victim,
    people,
    public_samples,
    public_shares,
)

SET = 16
"""Devices whose deltas are added up under masks."""
PUBLIC = 1500
OTHERS = 200
"""Deltas of whole shares that an attacker makes to know what the rest of a sum is like."""
_RIDGES = np.logspace(-4, 2, 13)
_HELD_OUT = 5
_FITS = 10
_ROUNDING = 0.5  # of a delta's step: the deviation that rounding has
_FAINT = 0.3  # of a delta's step: a tensor that hardly moves isn't made to look as if it did
_LOUDER = 8  # the rate at which gradients are compared, so that rounding doesn't count
_STEP = 6.0  # codes, of the difference quotients
_DEVIATIONS = (8.0, 5.0, 3.0, 2.0)
"""Of the differences that Gauss-Newton steps allow, in a delta's steps: from coarse to fine."""

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """How near pictures are to the true ones, mean over pictures.

    ``explained`` is the part of the squared distance from the class's mean that is gone: 0 where an
    attacker knows no more than the class, 1 where the picture is right.
    """

    pictures: int
    explained: float
    correlation: float
    psnr: float
    """In dB, of 255 codes."""


def score(found: Reals, true: Reals, means: Reals) -> Score:
    """Pictures (n, pixels) in codes, and the means of their classes."""
    square = np.mean((found - true) ** 2, axis=1)
    pairs = zip(found, true, strict=True)
    return Score(
        len(true),
        float(1 - square.sum() / np.mean((means - true) ** 2, axis=1).sum()),
        float(np.mean([np.corrcoef(one, other)[0, 1] for one, other in pairs])),
        float(np.mean(10 * np.log10(255**2 / np.maximum(square, 1e-3)))),
    )


def pixels(share: Share) -> Reals:
    """Samples as rows."""
    return share.codes.reshape(len(share), -1).astype(np.float64)


class Learned:
    """What public samples tell of the way from an observation to a picture."""

    def __init__(self, observed: Values, public: Share, scales: Reals) -> None:
        """``observed`` (n, values) are observations of devices that trained one of the samples."""
        pictures = pixels(public)
        self.means = np.stack(
            [pictures[public.labels == label].mean(axis=0) for label in range(10)]
        )
        self._scales = scales.astype(np.float32)
        self._centre = observed.mean(axis=0).astype(np.float32)
        rows = self._features(observed)
        used = len(rows) - len(rows) // _HELD_OUT
        self._rows = rows[:used]
        wanted = pictures - self.means[public.labels]
        self.spread = wanted.T @ wanted / len(wanted) + np.eye(wanted.shape[1])
        """Covariance of pictures within their classes (pixels, pixels)."""
        products = (rows @ self._rows.T).astype(np.float64)
        values, vectors = np.linalg.eigh(products[:used])
        turned = vectors.T @ wanted[:used]
        best = np.inf
        for ridge in _RIDGES * values.sum() / used:
            weights = vectors @ (turned / (np.maximum(values, 0) + ridge)[:, None])
            left = wanted[used:] - products[used:] @ weights
            if np.mean(left**2) < best:
                best = float(np.mean(left**2))
                self._weights = weights
                self.error = left.T @ left / len(left)
                """Covariance of what it gets wrong (pixels, pixels)."""

    def _features(self, observed: Values) -> NDArray[np.float32]:
        return (observed.astype(np.float32) - self._centre) / self._scales

    def pictures(self, observed: Values, labels: NDArray[np.int64]) -> Reals:
        """Of observations (n, values), whose labels are known."""
        return self._features(observed) @ self._rows.T @ self._weights + self.means[labels]


class Attacker:
    """Knows a model and a plan, has public samples, and has learnt what a protection leaves."""

    def __init__(self, victim: Victim, plan: str, public: int = PUBLIC, seed: int = 0) -> None:
        """Makes the deltas of the public samples, and of what other devices might have."""
        self.victim, self.plan, self._seed = victim, plan, seed
        self._public = public_samples(victim, public, seed)
        self._deltas = np.stack(
            [victim.delta(plan, self._public.only(at), at) for at in range(public)]
        )
        self._others = np.stack(
            [
                victim.delta(plan, share, at)
                for at, share in enumerate(public_shares(victim, OTHERS, seed))
            ]
        )

    def learn(self, protection: Protection) -> Learned:
        """From observations of sets in which one device has trained one public sample."""
        observed = self._deltas
        if protection.masked:
            observed = self._observed(protection)
        scales = np.empty(observed.shape[1])
        for segment in self.victim.programs[self.plan].segments:
            place = slice(segment.first_value, segment.first_value + segment.values)
            own = observed[:, place] - observed[:, place].mean(axis=0)
            scales[place] = _FAINT + np.sqrt(np.mean(own**2))
        return Learned(observed, self._public, scales)

    def _observed(self, protection: Protection) -> Values:
        random = np.random.default_rng([self._seed, 0x0B])
        parameters = protection.parameters(SET)
        own = np.stack([clipped(one, parameters, 0) for one in self._deltas])
        others = np.stack([clipped(one, parameters, 0) for one in self._others])
        total = own.copy()
        for number, row in enumerate(total):
            # Those behind are held out: a map that knows the others by heart would look too good.
            held = number >= len(own) - len(own) // _HELD_OUT
            known = OTHERS - OTHERS // _HELD_OUT
            pool = np.arange(known, OTHERS) if held else np.arange(known)
            row += others[random.choice(pool, SET - 1, replace=False)].sum(axis=0)
        deviation = np.sqrt(SET * parameters.noise_variance)
        if deviation:
            noise = random.normal(scale=deviation, size=total.shape)
            total = total + np.rint(noise).astype(np.int64)
        return total

    def matched(self, seen: Values, label: int, learned: Learned) -> Reals:
        """The picture (pixels,) of an unprotected delta, with the learned one as its beginning."""
        (start,) = learned.pictures(seen[None], np.array([label]))
        prior = np.linalg.inv(learned.error + np.eye(len(start)))
        found = start
        for deviation in _DEVIATIONS:
            here = self.delta_of(found, label)
            slopes = np.stack(
                [
                    (self.delta_of(found + change, label) - here) / _STEP
                    for change in _STEP * np.eye(len(found))
                ],
                axis=1,
            )
            weight = deviation**-2
            step = np.linalg.solve(
                weight * slopes.T @ slopes + prior,
                weight * slopes.T @ (seen - here) - prior @ (found - start),
            )
            tried = [np.clip(found + part * step, -128, 127) for part in (1.0, 0.5, 0.2, 0.0)]
            found = min(tried, key=lambda one: np.sum((seen - self.delta_of(one, label)) ** 2))
        return found

    def delta_of(self, picture: Reals, label: int) -> Reals:
        """What a device would send that trained this picture, hardly rounded."""
        codes = np.clip(np.rint(picture), -128, 127).astype(np.int8)
        share = Share(codes.reshape(1, 8, 8, 1), np.array([label]))
        return self.victim.delta(self.plan, share, 0, rate=_LOUDER * RATE) / _LOUDER


def analytic(victim: Victim, plan: str, seen: Values, label: int, learned: Learned) -> Reals:
    """The picture (pixels,) that a first fully connected layer gives away.

    Its weights move by u · inputᵀ, a matrix of rank one that is rounded to a delta's steps. Factors
    and input are fitted in turn, with the class's mean and spread as the input's prior: where
    little has moved, there is little to see.
    """
    segment = victim.programs[plan].segment_of("hidden.weight")
    assert segment is not None
    place = slice(segment.first_value, segment.first_value + segment.values)
    black = victim.task.graph.tensors[victim.task.graph.input].zero_point
    mean = learned.means[label] - black
    moved = seen[place].reshape(-1, mean.size)
    prior = np.linalg.inv(learned.spread)
    found = mean
    for _ in range(_FITS):
        factors = moved @ found / (found @ found)
        precision = prior + np.eye(mean.size) * (factors @ factors) / _ROUNDING**2
        found = np.linalg.solve(precision, prior @ mean + factors @ moved / _ROUNDING**2)
    return np.asarray(found + black)


@dataclass(frozen=True)
class Targets:
    """Devices of some campaigns that trained one sample, each in a set of others."""

    share: Share
    """The samples, one for each target."""
    sets: Sequence[Sequence[Share]]
    """What all devices of its set have trained, the target's first."""


def targets(victim: Victim, seeds: Sequence[int], each: int) -> Targets:
    """``each`` people of each campaign, the others of which fill the set."""
    samples, sets = [], []
    for seed in seeds:
        everybody = people(victim, PEOPLE, seed)
        for at in range(each):
            one = everybody[at].only(0)
            samples.append(one)
            others = [share for number, share in enumerate(everybody) if number != at]
            sets.append([one, *others[: SET - 1]])
    codes = np.concatenate([one.codes for one in samples])
    return Targets(Share(codes, np.concatenate([one.labels for one in samples])), sets)


def observations(
    victim: Victim, plan: str, of: Targets, protection: Protection
) -> Iterator[Values]:
    """What an attacker looks at, target by target: its own message where nothing masks it."""
    for number, shares in enumerate(of.sets):
        used = shares if protection.masked else shares[:1]
        deltas = [victim.delta(plan, share, 100 * number + at) for at, share in enumerate(used)]
        view = observe(deltas, devices_of(number, len(used)), protection, (number, 0x1))
        yield view.total
