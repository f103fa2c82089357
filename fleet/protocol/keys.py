"""Keys of a fleet and of its devices: who signs what, in which bytes (masking.md).

An *authority*, whose secret can lie offline, signs a *keyring*: the key that signs tasks, and the
keys of the unmaskers. Devices have the authority's public key from their provisioning and keep the
keyring with the highest generation that they have seen. Signatures are Monocypher's EdDSA
(Curve25519, BLAKE2b) over a BLAKE2b digest, so that a device needs no more of a message at a time
than it has.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import monocypher
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fleet.errors import KeysError
from fleet.protocol import fields, topics
from fleet.protocol.messages import Task

KEY_BYTES = 32
SECRET_KEY_BYTES = 64  # of a signing key: its seed, and the public key
SIGNATURE_BYTES = 64
MAX_UNMASKERS = 3

_KEYRING_HEAD = struct.Struct("<IB")
_KEYRING_DOMAIN = b"tinyfleet-keyring/1"
_TASK_DOMAIN = b"tinyfleet-task/1"
_ENROLMENT_DOMAIN = b"tinyfleet-enrolment/1"
_UNMASKERS_DOMAIN = b"tinyfleet-unmaskers/1"


def digest_of(domain: bytes, *parts: bytes) -> bytes:
    """BLAKE2b with 32 bytes over the domain, a zero byte, and the parts."""
    return hashlib.blake2b(b"".join((domain, b"\0", *parts)), digest_size=32).digest()


def named(text: str) -> bytes:
    """A name behind its length, so that two of them have one reading."""
    data = text.encode()
    return bytes([len(data)]) + data


@dataclass(frozen=True)
class SigningKey:
    """A key pair of EdDSA; ``secret`` is the seed and behind it the public key."""

    secret: bytes

    def __post_init__(self) -> None:
        """Refuse what is no key."""
        if len(self.secret) != SECRET_KEY_BYTES:
            raise KeysError(
                f"a signing key has {SECRET_KEY_BYTES} bytes, not {len(self.secret)}; "
                "`tinyfleet keys` makes one"
            )

    @classmethod
    def generate(cls) -> SigningKey:
        """A new one, from the system's entropy."""
        secret, _ = monocypher.generate_signing_key_pair()
        return cls(bytes(secret))

    @classmethod
    def of_seed(cls, seed: bytes) -> SigningKey:
        """The one that 32 bytes have."""
        return cls(seed + monocypher.compute_signing_public_key(seed))

    @property
    def public(self) -> bytes:
        """What checks its signatures."""
        return self.secret[KEY_BYTES:]

    @property
    def is_pair(self) -> bool:
        """Whether the public key is the seed's."""
        return is_signed(self.public, bytes(KEY_BYTES), self.sign(bytes(KEY_BYTES)))

    def sign(self, digest: bytes) -> bytes:
        """The signature of a digest."""
        return bytes(monocypher.signature_sign(self.secret, digest))


def is_signed(public: bytes, digest: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is that of ``digest`` by the key of ``public``."""
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    return bool(monocypher.signature_check(signature, public, digest))


@dataclass(frozen=True)
class Keyring:
    """What devices are told by the authority; ``generation`` counts from 1."""

    generation: int
    task_key: bytes
    """Public key of whoever signs tasks."""
    unmaskers: tuple[bytes, ...] = ()
    """Public X25519 keys; a mask's seeds are sealed for each of them."""

    def __post_init__(self) -> None:
        """Refuse what has no encoding."""
        if not 1 <= self.generation <= fields.uint32.most:
            raise KeysError(f"generation {self.generation} of a keyring: they count from 1")
        if len(self.unmaskers) > MAX_UNMASKERS:
            raise KeysError(f"{len(self.unmaskers)} unmaskers; a keyring has {MAX_UNMASKERS}")
        if len(set(self.unmaskers)) != len(self.unmaskers):
            raise KeysError("a keyring has an unmasker twice")
        for key in (self.task_key, *self.unmaskers):
            if len(key) != KEY_BYTES:
                raise KeysError(f"a public key has {KEY_BYTES} bytes, not {len(key)}")

    def body(self) -> bytes:
        """The bytes that are signed."""
        head = _KEYRING_HEAD.pack(self.generation, len(self.unmaskers))
        return b"".join((head, self.task_key, *self.unmaskers))

    def digest(self, fleet: str) -> bytes:
        """What the authority signs."""
        return digest_of(_KEYRING_DOMAIN, named(fleet), self.body())

    @property
    def unmaskers_digest(self) -> bytes:
        """What a task says as `unmaskers`: zeros where there are none."""
        return unmaskers_digest(self.unmaskers)


def unmaskers_digest(unmaskers: Sequence[bytes]) -> bytes:
    """The first 8 bytes of the keys' digest; zeros where there are none."""
    if not unmaskers:
        return bytes(fields.PREFIX_BYTES)
    return digest_of(_UNMASKERS_DOMAIN, *unmaskers)[: fields.PREFIX_BYTES]


@dataclass(frozen=True)
class SignedKeyring:
    """A keyring as it travels: its body, and the authority's signature."""

    keyring: Keyring
    signature: bytes

    @classmethod
    def sign(cls, authority: SigningKey, fleet: str, keyring: Keyring) -> SignedKeyring:
        """A keyring for the devices of ``fleet``."""
        return cls(keyring, authority.sign(keyring.digest(fleet)))

    def encode(self) -> bytes:
        """As in a task and in flash."""
        return self.keyring.body() + self.signature

    @classmethod
    def decode(cls, data: bytes) -> SignedKeyring:
        """What ``encode`` gave; the signature isn't checked. KeysError for anything else."""
        if len(data) < _KEYRING_HEAD.size:
            raise KeysError(f"{len(data)} bytes are no keyring")
        generation, count = _KEYRING_HEAD.unpack_from(data)
        size = _KEYRING_HEAD.size + KEY_BYTES * (1 + count) + SIGNATURE_BYTES
        if len(data) != size or count > MAX_UNMASKERS:
            raise KeysError(f"{len(data)} bytes are no keyring with {count} unmaskers")
        start = _KEYRING_HEAD.size
        keys = [data[at : at + KEY_BYTES] for at in range(start, size - 64, KEY_BYTES)]
        return cls(Keyring(generation, keys[0], tuple(keys[1:])), data[-SIGNATURE_BYTES:])

    def is_of(self, authority: bytes, fleet: str) -> bool:
        """Whether the authority with this public key signed it for ``fleet``."""
        return is_signed(authority, self.keyring.digest(fleet), self.signature)


def task_digest(fleet: str, gateway: str, device: str, task: bytes) -> bytes:
    """What is signed of a task for a device that is to answer this gateway.

    ``task``: encoded, without keyring and signature.
    """
    answer = topics.delta(fleet, gateway, device)
    return digest_of(_TASK_DOMAIN, named(fleet), named(device), named(answer), task)


def sign_task(key: SigningKey, fleet: str, gateway: str, device: str, task: Task) -> bytes:
    """The signature of ``task``; its fields ``keyring`` and ``signature`` don't count."""
    return key.sign(task_digest(fleet, gateway, device, task.unsigned()))


@dataclass(frozen=True)
class TaskKeys:
    """What whoever makes tasks signs them with, and the keyring that says to devices that it may.

    Raises `KeysError` where the keyring names another key.
    """

    fleet: str
    key: SigningKey
    keyring: SignedKeyring

    def __post_init__(self) -> None:
        """Refuse keys that devices wouldn't believe."""
        if self.keyring.keyring.task_key != self.key.public:
            raise KeysError(
                f"keyring {self.keyring.keyring.generation} names another task key than the one "
                "that is to sign: devices would decline every task; sign a keyring with this key"
            )

    def sign(self, gateway: str, device: str, task: Task) -> bytes:
        """The signature of the task that this gateway gives a device."""
        return sign_task(self.key, self.fleet, gateway, device, task)


@dataclass(frozen=True)
class Enrolment:
    """The public side of a device's keys, signed by itself: what unmaskers are given."""

    fleet: str
    device: str
    exchange_key: bytes
    """Public X25519 key."""
    signing_key: bytes
    signature: bytes

    def digest(self) -> bytes:
        """What the device signs."""
        return digest_of(
            _ENROLMENT_DOMAIN,
            named(self.fleet),
            named(self.device),
            self.exchange_key,
            self.signing_key,
        )

    @property
    def is_right(self) -> bool:
        """Whether the device that has the keys signed it."""
        return is_signed(self.signing_key, self.digest(), self.signature)


@dataclass(frozen=True)
class DeviceKeys:
    """What a device alone has: the record of kind 2 in its identity region (flash.md)."""

    exchange: bytes
    """Private X25519 key; what a device draws in secret is derived from it as well."""
    signing: SigningKey

    @classmethod
    def generate(cls) -> DeviceKeys:
        """New ones, from the system's entropy."""
        return cls(X25519PrivateKey.generate().private_bytes_raw(), SigningKey.generate())

    @classmethod
    def decode(cls, data: bytes) -> DeviceKeys:
        """What ``encode`` gave; KeysError for what has another length."""
        if len(data) != KEY_BYTES + SECRET_KEY_BYTES:
            raise KeysError(
                f"a device's keys have {KEY_BYTES + SECRET_KEY_BYTES} bytes, not {len(data)}"
            )
        return cls(data[:KEY_BYTES], SigningKey(data[KEY_BYTES:]))

    def encode(self) -> bytes:
        """The record's payload: private X25519 key, then the signing key."""
        return self.exchange + self.signing.secret

    @property
    def exchange_public(self) -> bytes:
        """The public X25519 key."""
        return exchange_public(self.exchange)

    def enrol(self, fleet: str, device: str) -> Enrolment:
        """What unmaskers are given."""
        public, signing = self.exchange_public, self.signing.public
        blank = Enrolment(fleet, device, public, signing, b"")
        return Enrolment(fleet, device, public, signing, self.signing.sign(blank.digest()))


def exchange_public(private: bytes) -> bytes:
    """The public X25519 key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
