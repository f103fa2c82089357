"""The physical world of the demo: handwritten digits, dealt to devices that each drift.

The data are the 1,797 scans of 8x8 pixels that ship with scikit-learn (`load_digits`). A fixed
part belongs to the lab, which trains the first model on it. The rest is dealt to the devices,
non-IID by label (Dirichlet, as in Hsu et al., arXiv 1909.06335), and each device sees its share
through a sensor of its own: mounted askew, with a gain and an offset that are off, and with
strokes that look thicker or thinner. The drifts of a fleet have a part in common, so that what one
device learns helps the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from simulator.world.drift import Drift

CLASSES = 10
SIDE = 8
LAB_SAMPLES = 600
HELD_OUT_EVERY = 3
"""Every third sample of a device (ordinal % 3 == 2) is held out (docs/specification/flash.md)."""

_FULL_SCALE = 16.0  # load_digits gives pixels 0 … 16
_MIN_SAMPLES = 12  # so that every device holds out at least four


NO_DRIFT = Drift(rotation_degrees=0.0, stroke=0.0, gain=1.0, offset=0.0)


@dataclass(frozen=True, eq=False)
class DeviceSamples:
    """What one device has seen, in the order in which its log keeps it.

    `x` is float32 (n, 8, 8, 1) with real values 0 … 1, drift applied; `y` int64 (n,) labels 0 … 9.
    """

    device: str
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    drift: Drift

    @property
    def held_out(self) -> NDArray[np.bool_]:
        """True for the samples that the device scores itself on and never trains on, (n,)."""
        held: NDArray[np.bool_] = np.arange(len(self.y)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        return held


def load() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All digits as the lab's sensor sees them: x float32 (1797, 8, 8, 1) in 0 … 1, y (1797,)."""
    bunch = load_digits()
    x = (bunch.images / _FULL_SCALE).astype(np.float32)[..., np.newaxis]
    return x, bunch.target.astype(np.int64)


def lab_split(seed: int = 0) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of the lab's part (600 digits) and of the rest, both sorted and disjoint.

    The committed model belongs to seed 0; the seed of a campaign has no part in this.
    """
    labels = load()[1]
    order = np.random.default_rng([seed, 0x1AB]).permutation(len(labels))
    return np.sort(order[:LAB_SAMPLES]), np.sort(order[LAB_SAMPLES:])


def draw_drift(random: np.random.Generator) -> Drift:
    """A device's drift: one-sided rotation and loss of gain in common, the rest its own."""
    return Drift(
        rotation_degrees=float(random.uniform(15.0, 35.0)),
        stroke=float(random.uniform(-0.4, 0.4)),
        gain=float(random.uniform(0.5, 0.8)),
        offset=float(random.uniform(0.0, 0.15)),
    )


def deal(
    devices: Sequence[str], seed: int, *, concentration: float = 1.0, drifted: bool = True
) -> list[DeviceSamples]:
    """Deals the digits that are not the lab's to ``devices``, one share each.

    Every digit goes to exactly one device. Each label is split by a Dirichlet draw with the
    given ``concentration`` (small: each device sees few labels; large: all alike). The same
    devices and seed give the same shares. With ``drifted`` false the images are left alone, for
    comparison.

    Raises ValueError where there are too many devices for twelve samples each.
    """
    x, y = load()
    rest = lab_split()[1]
    if not 1 <= len(devices) <= len(rest) // _MIN_SAMPLES:
        raise ValueError(
            f"{len(rest)} digits can be dealt to 1 … {len(rest) // _MIN_SAMPLES} devices, "
            f"not to {len(devices)}"
        )
    random = np.random.default_rng([seed, 0xDEA1])
    shares = _dirichlet_shares(y[rest], len(devices), concentration, random)
    dealt = []
    for number, (device, share) in enumerate(zip(devices, shares, strict=True)):
        own = np.random.default_rng([seed, 0xD21F7, number])
        drift = draw_drift(own) if drifted else NO_DRIFT
        chosen = rest[own.permutation(share)]
        dealt.append(DeviceSamples(device, drift.apply(x[chosen]), y[chosen], drift))
    return dealt


def _dirichlet_shares(
    labels: NDArray[np.int64], count: int, concentration: float, random: np.random.Generator
) -> list[NDArray[np.intp]]:
    """Positions in ``labels`` for each of ``count`` devices, at least twelve each."""
    shares: list[list[int]] = [[] for _ in range(count)]
    for label in range(CLASSES):
        positions = random.permutation(np.flatnonzero(labels == label))
        weights = random.dirichlet(np.full(count, concentration))
        cuts = np.round(np.cumsum(weights)[:-1] * len(positions)).astype(int)
        for share, part in zip(shares, np.split(positions, cuts), strict=True):
            share.extend(part.tolist())
    for share in shares:
        while len(share) < _MIN_SAMPLES:
            richest = max(shares, key=len)
            share.append(richest.pop(int(random.integers(len(richest)))))
    return [np.array(share, dtype=np.intp) for share in shares]
