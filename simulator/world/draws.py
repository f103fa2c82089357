"""Chance in the simulated world: every draw follows from the seed, its purpose and the device.

Nothing is drawn one after the other for a whole fleet. So a device is the same whoever asks first,
and the same in a larger fleet.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from itertools import count

import numpy as np

BLOCK = 10
"""Of so many devices in a row, each lies in a tenth of its own of what is drawn by share."""
SHORTEST_BLOCK_SECONDS = 3600.0


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A PCG64 generator of its own for ``purpose`` and ``numbers``, such as a device and a day.

    numpy keeps what PCG64 gives; what `Generator` makes of it may differ between its versions.
    """
    text = "/".join([str(seed), purpose, *map(str, numbers)])
    entropy = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
    return np.random.Generator(np.random.PCG64(entropy))


def place(seed: int, purpose: str, device: int) -> float:
    """Where the device lies in 0 … 1, for what is dealt out by share.

    Uniform for every single device, but stratified: the devices 10 k … 10 k + 9 lie in ten
    different tenths. So ten devices of which 30 % have something are three, not none to seven.
    """
    tenths = generator(seed, f"{purpose}/tenths", device // BLOCK).permutation(BLOCK)
    within = generator(seed, purpose, device).random()
    return float((tenths[device % BLOCK] + within) / BLOCK)


def arrivals(
    seed: int, purpose: str, device: int, *, per_second: float, since: float
) -> Iterator[tuple[float, np.random.Generator]]:
    """Instants of a Poisson process from ``since`` on, in order, endless; none at a rate of 0.

    With each instant comes a generator for what else is to be drawn about it. Time is cut into
    blocks with draws of their own, so that beginning late costs nothing and changes nothing.
    """
    if per_second <= 0.0:
        return
    length = max(SHORTEST_BLOCK_SECONDS, 1.0 / per_second)
    for block in count(math.floor(since / length)):
        random = generator(seed, purpose, device, block)
        offsets = random.uniform(0.0, length, random.poisson(per_second * length))
        for number, at in enumerate(np.sort(block * length + offsets).tolist()):
            if at >= since:
                yield at, generator(seed, purpose, device, block, number)
