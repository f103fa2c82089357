"""Masked deltas: what a device sends, what unmaskers add up, in bytes (masking.md).

A device adds to its values, modulo 2^bits, one ChaCha20 stream for each unmasker, whose seed it
seals for that unmasker. Whoever has the masked values alone has uniformly random numbers; their sum
less the sum of all streams is the sum of the values.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy.typing import NDArray

from fleet.errors import CodingError, MaskError
from fleet.protocol.keys import digest_of, exchange_public, named
from fleet.protocol.messages import Task

NONCE_BYTES = 12
SEED_BYTES = 32
SEAL_BYTES = SEED_BYTES + 16  # Poly1305's tag
MASK_BITS = (8, 16, 24, 32)
MOST_DEVICES = 256
"""Of a set, so that 16 bits a value are enough without noise."""
DEVIATIONS = 8
"""So many of the noise's standard deviations a sum has room for."""

_BOUND_DOMAIN = b"tinyfleet-mask/1"
_SEAL_DOMAIN = b"tinyfleet-seal/1"
_SEED_DOMAIN = b"tinyfleet-seed/1"
_NOISE_DOMAIN = b"tinyfleet-noise/1"
_BINDING = struct.Struct("<IIBHIHIH")

Words = NDArray[np.uint32]


@dataclass(frozen=True)
class MaskParameters:
    """What a task says of a masked delta's values."""

    bits: int
    value_bound: int
    clip: int = 0
    norm_share: int = 0
    noise_variance: int = 0
    least_devices: int = 2

    @classmethod
    def of(cls, task: Task) -> MaskParameters:
        """Those of a task."""
        return cls(
            task.mask_bits,
            task.value_bound,
            task.clip,
            task.norm_share,
            task.noise_variance,
            task.least_devices,
        )

    def __post_init__(self) -> None:
        """Refuse what no device can do."""
        if self.bits not in MASK_BITS:
            raise MaskError(f"values of {self.bits} bits; masks have 8, 16, 24 or 32")
        if self.norm_share and not 0 < self.norm_share <= self.value_bound:
            raise MaskError(f"norm_share {self.norm_share} is beyond the bound {self.value_bound}")
        if self.norm_share and not self.clip:
            raise MaskError("norm_share says whether a norm was clipped: it wants a clip")

    def values(self, plan_values: int) -> int:
        """How many values a delta of a plan has."""
        return plan_values + bool(self.norm_share)

    def largest_sum(self, devices: int) -> int:
        """The largest magnitude that the sum over so many devices has, but for once in 10^15."""
        noise = DEVIATIONS * math.isqrt(devices * self.noise_variance) + DEVIATIONS
        return devices * self.value_bound + (noise if self.noise_variance else 0)

    def longest_sum(self, devices: int, values: int) -> float:
        """The largest length that the sum over so many devices has, but for once in 10^13.

        ``values``: of the sum, that for the norm included. Infinite without a clip. The length of
        n Gaussians of variance 1 is above √n + t once in exp(t² / 2).
        """
        if not self.clip:
            return math.inf
        noise = math.sqrt(devices * self.noise_variance) * (math.sqrt(values) + DEVIATIONS)
        return devices * math.hypot(self.clip, self.norm_share) + noise


def bits_for(parameters: MaskParameters, devices: int) -> int:
    """The fewest bits that hold the sum over a set of so many devices with its sign."""
    wanted = (2 * parameters.largest_sum(devices)).bit_length()
    for bits in MASK_BITS:
        if bits >= wanted:
            return bits
    raise MaskError(
        f"a sum over {devices} devices takes {wanted} bits; make value bound, noise or groups less"
    )


@dataclass(frozen=True)
class Binding:
    """What a seal is good for, and for nothing else."""

    fleet: str
    device: str
    campaign: bytes
    round: int
    plan: bytes
    weights: bytes
    values: int
    """Of the masked delta, that for the norm included."""
    parameters: MaskParameters

    def digest(self) -> bytes:
        """The seal's additional data."""
        of = self.parameters
        numbers = _BINDING.pack(
            self.round,
            self.values,
            of.bits,
            of.value_bound,
            of.clip,
            of.norm_share,
            of.noise_variance,
            of.least_devices,
        )
        return digest_of(
            _BOUND_DOMAIN,
            named(self.fleet),
            named(self.device),
            self.campaign,
            self.plan,
            self.weights,
            numbers,
        )


@dataclass(frozen=True)
class MaskedDelta:
    """The coded bytes of a masked delta, taken apart."""

    nonce: bytes
    seals: tuple[bytes, ...]
    values: Words
    """Masked, each below 2^bits."""

    def encode(self, bits: int) -> bytes:
        """As it travels."""
        return b"".join((self.nonce, *self.seals, pack(self.values, bits)))

    @classmethod
    def decode(cls, coded: bytes, values: int, bits: int, unmaskers: int) -> MaskedDelta:
        """What ``encode`` gave; CodingError for bytes of another length."""
        head = NONCE_BYTES + unmaskers * SEAL_BYTES
        wanted = head + values * (bits // 8)
        if len(coded) != wanted:
            raise CodingError(f"{len(coded)} bytes where {values} masked values take {wanted}")
        seals = tuple(coded[at : at + SEAL_BYTES] for at in range(NONCE_BYTES, head, SEAL_BYTES))
        return cls(coded[:NONCE_BYTES], seals, unpack(coded[head:], bits))


def pack(values: Words, bits: int) -> bytes:
    """Values below 2^bits, little endian, each in bits / 8 bytes."""
    rows = values.astype("<u4").view(np.uint8).reshape(-1, 4)
    return rows[:, : bits // 8].tobytes()


def unpack(data: bytes, bits: int) -> Words:
    """What ``pack`` was given."""
    each = bits // 8
    if each != 3:
        return np.frombuffer(data, f"<u{each}").astype(np.uint32)
    rows = np.zeros((len(data) // each, 4), np.uint8)
    rows[:, :each] = np.frombuffer(data, np.uint8).reshape(-1, each)
    return rows.view("<u4").ravel().astype(np.uint32)


def stream(seed: bytes, values: int, bits: int) -> Words:
    """The mask of a seed: ChaCha20 (RFC 8439, counter and nonce 0), bits / 8 bytes a value."""
    cipher = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    return unpack(cipher.update(bytes(values * (bits // 8))), bits)


def sum_of_streams(seeds: Sequence[bytes], values: int, bits: int) -> Words:
    """The masks (shape [values]) of all seeds added, modulo 2^bits."""
    total = np.zeros(values, np.uint32)
    for seed in seeds:
        total += stream(seed, values, bits)  # modulo 2^32, which 2^bits divides
    return total & np.uint32((1 << bits) - 1)


def add(left: Words, right: Words, bits: int) -> Words:
    """The sum modulo 2^bits."""
    return (left + right) & np.uint32((1 << bits) - 1)


def mask(values: NDArray[np.int32], seeds: Sequence[bytes], bits: int) -> Words:
    """The values (shape [n]) with the streams of all seeds added, modulo 2^bits."""
    total = values.astype(np.int64).astype(np.uint32) & np.uint32((1 << bits) - 1)
    for seed in seeds:
        total = add(total, stream(seed, values.size, bits), bits)
    return total


def centred(values: Words, bits: int) -> NDArray[np.int64]:
    """Numbers modulo 2^bits as those from -2^(bits-1) on."""
    wide = values.astype(np.int64)
    return np.where(wide >= 1 << (bits - 1), wide - (1 << bits), wide)


def seal_key(private: bytes, public: bytes, device: bytes, unmasker: bytes) -> bytes:
    """The key between a device and an unmasker, from one's private key and the other's public.

    ``device`` and ``unmasker`` are their public keys. MaskError where ``public`` is of low order.
    """
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError:
        raise MaskError("a public key is none: everybody would know the secret") from None
    return digest_of(_SEAL_DOMAIN, shared, device, unmasker)


def seal(key: bytes, nonce: bytes, seed: bytes, binding: Binding) -> bytes:
    """A seed, encrypted and authenticated (ChaCha20-Poly1305, RFC 8439)."""
    return ChaCha20Poly1305(key).encrypt(nonce, seed, binding.digest())


def unseal(key: bytes, nonce: bytes, sealed: bytes, binding: Binding) -> bytes | None:
    """The seed; None where the seal is broken or is for something else."""
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, sealed, binding.digest())
    except InvalidTag:
        return None


def seed_of(exchange: bytes, nonce: bytes, unmasker: bytes) -> bytes:
    """The seed that a device with this private X25519 key draws for an unmasker."""
    return digest_of(_SEED_DOMAIN, exchange, nonce, unmasker)


def noise_key(exchange: bytes, nonce: bytes) -> bytes:
    """The key of the stream that a device's noise is drawn from; no unmasker has it."""
    return digest_of(_NOISE_DOMAIN, exchange, nonce)


def mask_delta(
    exchange: bytes,
    unmaskers: Sequence[bytes],
    nonce: bytes,
    values: NDArray[np.int32],
    binding: Binding,
) -> MaskedDelta:
    """What a device sends: ``values`` (clipped, with noise) masked, and the seeds sealed.

    The device's own C does this; here it is the oracle, and what emulated fleets of Python speak.
    """
    device = exchange_public(exchange)
    seeds = [seed_of(exchange, nonce, key) for key in unmaskers]
    seals = tuple(
        seal(seal_key(exchange, key, device, key), nonce, seed, binding)
        for key, seed in zip(unmaskers, seeds, strict=True)
    )
    return MaskedDelta(nonce, seals, mask(values, seeds, binding.parameters.bits))
