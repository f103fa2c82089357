"""Integers with the discrete Gaussian distribution, exactly (docs/specification/noise.md).

P(x) is proportional to exp(-x² / 2V) over all integers x. The sampler is the rejection of Canonne,
Kamath, Steinke, "The Discrete Gaussian for Differential Privacy" (NeurIPS 2020, arXiv 2004.00010),
with a power of two as the scale of its Laplace proposals, and comparisons that take one byte of
randomness at a time. Integers only: nothing is rounded. Devices have the same in C, and
the same key gives the same values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

KEY_BYTES = 32
# What devices can do in 64 bits.
MAX_DEVICE_VARIANCE = 1 << 24
MAX_VARIANCE = 1 << 60
# A proposal of so many scales is refused: 45 deviations at least, accepted once in 2^1470 values.
MAX_SCALES = 64
_COUNTER_AND_NONCE = bytes(16)
_BLOCK = bytes(1 << 16)


class Keystream:
    """The bytes of ChaCha20 (RFC 8439) with this key, a nonce of zeros, from block 0 on."""

    def __init__(self, key: bytes) -> None:
        """``key``: 32 bytes that have drawn nothing else; ValueError for another length."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {KEY_BYTES} bytes is wanted, not {len(key)}")
        self._cipher = Cipher(ChaCha20(key, _COUNTER_AND_NONCE), mode=None).encryptor()
        self._block = b""
        self._next = 0

    def byte(self) -> int:
        """The next byte."""
        if self._next == len(self._block):
            self._block = self._cipher.update(_BLOCK)
            self._next = 0
        value = self._block[self._next]
        self._next += 1
        return value


def discrete_gaussian(key: bytes, variance: int, count: int) -> npt.NDArray[np.int64]:
    """``count`` values (int64) of the discrete Gaussian of parameter V = ``variance`` (≥ 1).

    A key draws once: what two calls with one key give begins alike.
    """
    if not 1 <= variance < MAX_VARIANCE:
        raise ValueError(f"a variance of {variance} isn't between 1 and 2^60 - 1")
    stream = Keystream(key)
    return np.fromiter((_value(stream, variance) for _ in range(count)), np.int64, count)


def _value(stream: Keystream, variance: int) -> int:
    """One value: |x| = u + t·g of a discrete Laplace of scale t, kept as the Gaussian says."""
    bits = variance.bit_length() // 2  # t = 2^bits is between √(V/2) and √(2V)
    places = bits // 8 + 1  # bytes for u and a sign
    mask = (1 << bits) - 1
    denominator = variance << (2 * bits + 1)
    while True:
        draw = 0
        for place in range(places):
            draw |= stream.byte() << (8 * place)
        low = draw & mask
        if not _exponential(stream, low, 1 << bits):
            continue
        scales = 0
        while scales < MAX_SCALES and _exponential_of_one(stream):
            scales += 1
        magnitude = low + (scales << bits)
        negative = draw >> (8 * places - 1)
        if scales == MAX_SCALES or (negative and magnitude == 0):
            continue
        distance = (magnitude << bits) - variance
        if _exponential(stream, distance * distance, denominator):
            return -magnitude if negative else magnitude


def _exponential(stream: Keystream, numerator: int, denominator: int) -> bool:
    """True with probability exp(-numerator / denominator)."""
    while numerator >= denominator:
        if not _exponential_of_one(stream):
            return False
        numerator -= denominator
    trial = 1
    while (trial == 1 or _bernoulli(stream, 1, trial)) and _bernoulli(
        stream, numerator, denominator
    ):
        trial += 1
    return trial % 2 == 1


def _exponential_of_one(stream: Keystream) -> bool:
    """True with probability 1/e: a uniform number is from 1/3! to 1/2!, or from 1/5! to 1/4!, …"""
    first = stream.byte()
    while first >= 240:
        first = stream.byte()
    for trial, bound in ((2, 120), (3, 40), (4, 10), (5, 2)):  # first / 240 and 1 / trial!
        if first >= bound:
            return trial % 2 == 1
    trial = 6
    while _bernoulli(stream, 1, trial):
        trial += 1
    return trial % 2 == 1


def _bernoulli(stream: Keystream, numerator: int, denominator: int) -> bool:
    """True with probability numerator / denominator (below 1): is a uniform number less?

    The number's digits to base 256 are drawn until they decide, nearly always the first.
    """
    rest = numerator
    while True:
        rest = (rest << 8) - stream.byte() * denominator
        if rest <= 0:
            return False
        if rest >= denominator:
            return True
