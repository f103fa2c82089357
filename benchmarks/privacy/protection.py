"""What devices send with and without protection, and what the coordinator sees of it.

Devices are those of docs/specification/masking.md: they bound and clip their values, add their
share of the noise, and a mask. `View` is what an attacker has who owns the coordinator and every
gateway, but no unmasker. Each of the `Fault`s takes one protection away without a word, as a
mistake in firmware might: a harness that doesn't notice measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.integers import random_bits
from fleet.privacy import Noise, discrete_gaussian, epsilon, noise_multiplier, share_variance
from fleet.protocol.keys import digest_of
from fleet.protocol.masking import (
    MASK_BITS,
    NONCE_BYTES,
    MaskParameters,
    Words,
    add,
    bits_for,
    centred,
    mask,
    noise_key,
    seed_of,
    stream,
)

DELTA = 1e-5
CLIP_STREAM = 0x636C6970
CLIP_ATTEMPTS = 16
UNMASKER = digest_of(b"benchmarks/unmasker")
"""Stands for an unmasker's public key, which seeds are drawn for."""

Values = NDArray[np.int64]


class Fault(StrEnum):
    """What may be wrong with a device."""

    NONE = "none"
    NOISE_HALVED = "noise halved"
    CLIPPING_OFF = "clipping off"
    SEED_REUSED = "seed reused"


@dataclass(frozen=True)
class Protection:
    """A kind of protection; ``noise_multiplier`` is the set's noise over the clip."""

    name: str
    masked: bool
    clip: int = 0
    noise_multiplier: float = 0.0
    value_bound: int = 1000

    def parameters(self, devices: int) -> MaskParameters:
        """What tasks say to a set of so many devices, all of which are counted on."""
        variance = 0
        if self.noise_multiplier:
            variance = share_variance(self.noise_multiplier, self.clip**2, devices)
        made = MaskParameters(
            bits=MASK_BITS[-1],
            value_bound=self.value_bound,
            clip=self.clip,
            noise_variance=variance,
            least_devices=devices,
        )
        return replace(made, bits=bits_for(made, devices))


@dataclass(frozen=True)
class Ledger:
    """What a campaign costs each of its devices, as the coordinator's ledger says."""

    rho: float
    delta: float = DELTA

    @property
    def epsilon(self) -> float:
        """At `delta`."""
        return epsilon(self.rho, self.delta)

    @classmethod
    def of(cls, parameters: MaskParameters, values: int, rounds: int) -> Ledger:
        """For one who sees the sum of one set of ``least_devices`` in each round."""
        noise = Noise(parameters.noise_variance, parameters.least_devices)
        return cls(rounds * noise.rho(parameters.clip**2, values))


@dataclass(frozen=True)
class View:
    """A set of devices, seen by the coordinator; int64.

    ``messages`` (devices, values) are as they came, ``total`` (values,) is their sum, unmasked.
    """

    messages: Values
    total: Values


def clipped(values: Values, parameters: MaskParameters, seed: int) -> Values:
    """Steps 1 and 2 of masking.md: values within the bound, their length within the clip."""
    bound, clip = parameters.value_bound, parameters.clip
    within = np.clip(values, -bound, bound)
    square = int(within @ within)
    if clip == 0 or square <= clip**2:
        return within
    first = factor = (clip << 16) // (math.isqrt(square) + 1)
    places = np.arange(within.size)
    for attempt in range(CLIP_ATTEMPTS):
        random = random_bits(seed, CLIP_STREAM + attempt, places) & 0xFFFF
        scaled = (within * factor + random) >> 16
        if int(scaled @ scaled) <= clip**2:
            return scaled
        factor -= factor // 16
    return np.sign(within) * (np.abs(within) * first >> 16)


@dataclass(frozen=True)
class Device:
    """One that speaks the masked coding; ``exchange`` is its private key (32 bytes)."""

    exchange: bytes
    fault: Fault = Fault.NONE

    def noisy(self, values: Values, parameters: MaskParameters, nonce: bytes, seed: int) -> Values:
        """Its values clipped, with its share of the noise."""
        if self.fault is Fault.CLIPPING_OFF:
            parameters = replace(parameters, clip=0)
        sent = clipped(values, parameters, seed)
        variance = parameters.noise_variance
        if self.fault is Fault.NOISE_HALVED:
            variance //= 4
        if variance:
            key = noise_key(self.exchange, nonce)
            sent = sent + discrete_gaussian(key, variance, values.size)
        return sent


def observe(
    values: Sequence[Values], devices: Sequence[Device], protection: Protection, at: tuple[int, ...]
) -> View:
    """What is seen of a set whose devices have these deltas; ``at`` (seed, round …) is its chance.

    Where everything is right, sets whose ``at`` differ draw other nonces.
    """
    if not protection.masked:
        plain = np.stack(list(values))
        return View(plain, plain.sum(axis=0))
    parameters = protection.parameters(len(devices))
    bits = parameters.bits
    random = np.random.default_rng(at)
    masked: list[Words] = []
    streams = np.zeros(values[0].size, np.uint32)
    for delta, device in zip(values, devices, strict=True):
        nonce, seed = random.bytes(NONCE_BYTES), int(random.integers(1 << 32))
        if device.fault is Fault.SEED_REUSED:
            nonce = bytes(NONCE_BYTES)
        sent = device.noisy(delta, parameters, nonce, seed)
        mask_seed = seed_of(device.exchange, nonce, UNMASKER)
        masked.append(mask(sent.astype(np.int32), [mask_seed], bits))
        streams = add(streams, stream(mask_seed, sent.size, bits), bits)
    total = np.zeros_like(streams)
    for one in masked:
        total = add(total, one, bits)
    unmasked = add(total, np.negative(streams), bits)
    return View(centred(np.stack(masked), bits), centred(unmasked, bits))


def devices_of(seed: int, count: int, fault: Fault = Fault.NONE) -> list[Device]:
    """So many devices with keys of their own."""
    random = np.random.default_rng([seed, 0xDE])
    return [Device(random.bytes(32), fault) for _ in range(count)]


def private(epsilon_wanted: float, rounds: int, clip: int, value_bound: int = 1000) -> Protection:
    """Masks and noise that cost a device this ε at `DELTA` over so many rounds."""
    multiplier = noise_multiplier(epsilon_wanted, DELTA, rounds)
    return Protection(f"masks + noise, ε {epsilon_wanted:g}", True, clip, multiplier, value_bound)
