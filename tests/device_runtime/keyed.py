"""A fleet with keys for one device: what a coordinator, a gateway and unmaskers do with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fleet.privacy.discrete_gaussian import discrete_gaussian
from fleet.protocol import Coding, Delta, Task, Weighting, masking
from fleet.protocol.keys import (
    DeviceKeys,
    Keyring,
    SignedKeyring,
    SigningKey,
    digest_of,
    exchange_public,
    named,
    sign_task,
)
from fleet.protocol.masking import Binding, MaskedDelta, MaskParameters
from simulator.devices.flash_image import Identity, identity_region

from .tiny_round import tf_random

CLIP_STREAM = 0x636C6970


# The same each time: how many instructions and how much stack a signature takes follows from them.
AUTHORITY, TASK_KEY, DEVICE_KEY = (SigningKey.of_seed(bytes([one]) * 32) for one in (1, 2, 3))
DEVICE_KEYS = DeviceKeys(bytes(range(1, 33)), DEVICE_KEY)


@dataclass(frozen=True)
class Keys:
    """Everybody's keys; ``unmaskers`` are private ones."""

    authority: SigningKey = AUTHORITY
    task: SigningKey = TASK_KEY
    unmaskers: tuple[bytes, ...] = (bytes(range(33, 65)),)
    generation: int = 1
    fleet: str = "f"
    name: str = "dev1"
    gateway: str = "gw"
    device: DeviceKeys = DEVICE_KEYS

    @property
    def keyring(self) -> Keyring:
        return Keyring(
            self.generation, self.task.public, tuple(map(exchange_public, self.unmaskers))
        )

    @property
    def signed_keyring(self) -> bytes:
        return SignedKeyring.sign(self.authority, self.fleet, self.keyring).encode()

    def region(self, identity: Identity) -> bytes:
        """The identity region of a device that knows all this."""
        return identity_region(
            identity, self.device.encode(), self.authority.public, self.signed_keyring
        )

    def sign(self, task: Task, *, with_keyring: bool = False) -> Task:
        signature = sign_task(self.task, self.fleet, self.gateway, self.name, task)
        task = replace(task, signature=signature)
        return replace(task, keyring=self.signed_keyring) if with_keyring else task

    def sign_for(self, response_topic: bytes, task: Task) -> Task:
        """The task, signed as masking.md has it for any topic; of a length its lowest byte."""
        topic = bytes([len(response_topic) % 256]) + response_topic
        parts = named(self.fleet), named(self.name), topic, task.unsigned()
        return replace(task, signature=self.task.sign(digest_of(b"tinyfleet-task/1", *parts)))

    def masked(self, task: Task, **changes: object) -> Task:
        """The task, signed, with a masked delta of 16 bits unless ``changes`` say otherwise."""
        parameters = {"mask_bits": 16, "value_bound": 1000, "least_devices": 2, **changes}
        return self.sign(
            replace(
                task,
                coding=Coding.MASKED,
                weighting=Weighting.UNIFORM,
                unmaskers=self.keyring.unmaskers_digest,
                **parameters,  # type: ignore[arg-type]
            )
        )

    def binding(self, task: Task, values: int) -> Binding:
        of = MaskParameters.of(task)
        return Binding(
            *(self.fleet, self.name, task.campaign, task.round, task.plan, task.weights),
            of.values(values),
            of,
        )

    def mask(self, task: Task, nonce: bytes, values: Sequence[int]) -> bytes:
        """What a device has to send: the oracle."""
        x = np.array(clipped(values, task), np.int64)
        if task.noise_variance:
            key = masking.noise_key(self.device.exchange, nonce)
            x += discrete_gaussian(key, task.noise_variance, len(x))
        public = [exchange_public(private) for private in self.unmaskers]
        delta = masking.mask_delta(
            *(self.device.exchange, public, nonce, x.astype(np.int32)),
            self.binding(task, len(values)),
        )
        return delta.encode(task.mask_bits)

    def unmask(self, task: Task, coded: bytes, values: int) -> NDArray[np.int64]:
        """What a set of this device alone adds up to; each seal has to be right."""
        binding = self.binding(task, values)
        bits = task.mask_bits
        delta = MaskedDelta.decode(coded, binding.values, bits, len(self.unmaskers))
        device = self.device.exchange_public
        total = delta.values
        for private, seal in zip(self.unmaskers, delta.seals, strict=True):
            key = masking.seal_key(private, device, device, exchange_public(private))
            seed = masking.unseal(key, delta.nonce, seal, binding)
            assert seed is not None, "a broken seal"
            stream = masking.stream(seed, binding.values, bits)
            total = masking.add(total, (-stream.astype(np.int64)).astype(np.uint32), bits)
        return masking.centred(total, bits)


def coded_of(deltas: Sequence[Delta]) -> bytes:
    """The coded bytes of a delta whose chunks are all there, in order."""
    assert [delta.chunk for delta in deltas] == list(range(deltas[0].chunks))
    return b"".join(delta.coded for delta in deltas)


def clipped(values: Sequence[int], task: Task) -> list[int]:
    """masking.md, "Values", steps 1 to 3."""
    bound, clip = task.value_bound, task.clip
    u = [min(max(int(value), -bound), bound) for value in values]
    squares = sum(value * value for value in u)
    share = [task.norm_share] if task.norm_share else []
    if not clip or squares <= clip * clip:
        return u + share
    first = q = (clip << 16) // (math.isqrt(squares) + 1)
    for attempt in range(16):
        rounding = [tf_random(task.seed, CLIP_STREAM + attempt, i) & 0xFFFF for i in range(len(u))]
        x = [(value * q + r) >> 16 for value, r in zip(u, rounding, strict=True)]
        if sum(value * value for value in x) <= clip * clip:
            break
        q -= q // 16
    else:
        x = [int(math.copysign(abs(value) * first >> 16, value)) for value in u]
    return x + [0] * len(share)
