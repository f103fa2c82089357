"""Integer arithmetic of the device in numpy: rounding, gains, random bits, error tensors.

The building blocks of `codegen.reference.interpreter`, written from
docs/specification/arithmetic.md over arrays of int64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.layers import INT32_MAX, SHIFT_BITS, Gain

Ints: TypeAlias = NDArray[np.int64]
Integers = TypeVar("Integers", int, Ints)

STATE_BITS, STEP_BITS, BIAS_BITS = 14, 16, 8
"""Bits below one unit of the state (q8.8), one step of an int8 weight, one step of a bias that a
change has before it is rounded at random."""
LARGEST_CHANGE = 1 << 30


def random_bits(key: int, stream: int, counter: Ints) -> Ints:
    """``tf_random`` for an array of counters."""

    def mix(x: Ints) -> Ints:
        mask = np.uint64(0xFFFFFFFF)
        y = x.astype(np.uint64) & mask
        y ^= y >> np.uint64(16)
        y = y * np.uint64(0x7FEB352D) & mask
        y ^= y >> np.uint64(15)
        y = y * np.uint64(0x846CA68B) & mask
        y ^= y >> np.uint64(16)
        return y.astype(np.int64)

    start = mix(np.array([key + 0x9E3779B9], np.int64))
    bits: Ints = mix(mix(start + stream) + counter)
    return bits


def round_shift(value: Integers, shift: int) -> Integers:
    """Round half up by ``shift`` bits; to the left where negative."""
    if shift <= 0:
        return value << -shift
    return (value + (1 << (shift - 1))) >> shift


def requantized(sums: Ints, pre_shift: int | Ints, words: Ints) -> Ints:
    """Sums in the steps of an output, by the words of multipliers that broadcast against them.

    Sums go left by ``pre_shift`` bits first; those that no longer fit 32 bits saturate.
    """
    raised = np.clip(sums << pre_shift, -INT32_MAX, INT32_MAX)
    shift = words & ((1 << SHIFT_BITS) - 1)
    scaled: Ints = (((raised * words) >> 32) + (1 << (shift - 1))) >> shift
    return scaled


def mean_codes(total: Ints, count: Ints, zero: int) -> Ints:
    """Means of codes, halves to even; ``total`` is the sum of the codes less ``zero``."""
    raised = total + (zero + 128) * count
    mean = raised // count
    rest = 2 * (raised - mean * count)
    up = (rest > count) | ((rest == count) & (mean % 2 == 1))
    return np.asarray(mean + up - 128)


def random_move(change: Ints, bits: int, seed: int, step: int, first_value: int) -> Ints:
    """-change / 2**bits, up or down at random with the right odds; values in delta order."""
    counter = first_value + np.arange(change.size).reshape(change.shape)
    chance = random_bits(seed, step, counter) & ((1 << bits) - 1)
    move: Ints = (chance - np.clip(change, -LARGEST_CHANGE, LARGEST_CHANGE)) >> bits
    return move


def step_gain(gain: Gain, learning_rate_q20: int) -> Gain:
    """gain * learning rate with a mantissa below 2**31."""
    product = gain.mantissa * learning_rate_q20
    excess = max(0, product.bit_length() - 31)
    return Gain(product >> excess, gain.exponent - 20 + excess)


def apply_gain(gradient: Ints, gain: Gain, exponent: int) -> Ints:
    """gradient * gain * 2**exponent, rounded and saturated to 32 bits."""
    shift = -(gain.exponent + exponent)
    if shift > 62:
        return np.zeros_like(gradient)
    exact = gradient.astype(object) * gain.mantissa
    moved = exact * 2**-shift if shift <= 0 else (exact + (1 << (shift - 1))) // (1 << shift)
    saturated: Ints = np.clip(moved, -INT32_MAX, INT32_MAX).astype(np.int64)
    return saturated


@dataclass
class Error:
    """An error tensor: real value = codes * 2**exponent."""

    codes: Ints
    exponent: int

    @property
    def magnitude(self) -> int:
        """Largest absolute code."""
        return int(np.abs(self.codes).max(initial=0))

    @property
    def headroom(self) -> int:
        """Bits by which the codes can go left and still fit 15 bits and a sign."""
        return 15 - self.magnitude.bit_length()
