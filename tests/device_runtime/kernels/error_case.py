"""Errors for the kernel tests, and the C structure that comes with them."""

from __future__ import annotations

import numpy as np

from simulator.machines.kernel_call import Struct


def error_codes(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Errors of any magnitude up to the largest."""
    draw = np.random.default_rng([seed, 3])
    most = int(draw.choice([1, 40, 5000, 32767]))
    return draw.integers(-most, most + 1, shape).astype(np.int16)


def magnitude(codes: np.ndarray) -> int:
    """Largest absolute code."""
    return int(np.abs(codes.astype(np.int64)).max(initial=0))


def scale_of(codes: np.ndarray, exponent: int) -> Struct:
    """tf_scale of error codes."""
    return Struct(("i", exponent), ("i", magnitude(codes)))


def headroom_of(codes: np.ndarray) -> int:
    """Bits by which they can go left and still fit 15 bits and a sign."""
    return 15 - magnitude(codes).bit_length()
