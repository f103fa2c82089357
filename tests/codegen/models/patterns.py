"""Samples of a small task, in any shape: what the networks of this folder are trained on.

Networks of random weights give nearly all inputs the same class, so that agreeing with them means
nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WAVES = 4
NOISE = 1.0


def patterns(
    shape: tuple[int, ...], classes: int, count: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Samples (``count``, *``shape``) and their classes: waves of a class, more or less, in noise.

    The waves are the same for every ``seed``.
    """
    fixed = np.random.default_rng(20261130)
    angles = np.stack(
        np.meshgrid(*(2 * np.pi * np.arange(size) / size for size in shape), indexing="ij")
    )
    waves = np.zeros((classes, *shape))
    for wave in waves:
        for _ in range(WAVES):
            cycles, phase = fixed.integers(0, 3, len(shape)), fixed.uniform(0, 2 * np.pi)
            strength = fixed.uniform(0.3, 1.0)
            wave += strength * np.cos(np.tensordot(cycles, angles, 1) + phase)
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    gain = random.uniform(0.2, 1.2, (count, *(1 for _ in shape)))
    samples = gain * waves[labels] + random.normal(0, NOISE, (count, *shape))
    return samples.astype(np.float32), labels
