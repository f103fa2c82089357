"""Keys, keyrings and signatures: nobody else makes them, and nothing else has their bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import KeysError
from fleet.protocol import Task, keys
from fleet.protocol.keys import DeviceKeys, Keyring, SignedKeyring, SigningKey

AUTHORITY, OTHER = SigningKey.generate(), SigningKey.generate()
UNMASKER = keys.exchange_public(bytes(range(33, 65)))
PAGE = (Path(__file__).parents[3] / "docs/specification/masking.md").read_text(encoding="utf-8")


def ring(generation: int = 3, unmaskers: tuple[bytes, ...] = (UNMASKER,)) -> Keyring:
    return Keyring(generation, bytes(range(64, 96)), unmaskers)


def a_task(**changes: object) -> Task:
    task = Task(
        *(5, bytes(8), 3, 1, bytes(32), bytes(32), 1000, 512, 2, 10486, 7, 1, 1),
        *(16384, 600, 1000, 0),
    )
    return replace(task, **changes)  # type: ignore[arg-type]


def test_a_seed_has_the_key_that_monocypher_makes_of_it() -> None:
    for _ in range(20):
        made = SigningKey.generate()
        assert SigningKey.of_seed(made.secret[: keys.KEY_BYTES]) == made


@pytest.mark.parametrize("count", range(4))
def test_a_signed_keyring_comes_back_and_is_its_authoritys(count: int) -> None:
    unmaskers = tuple(bytes([n]) * 32 for n in range(count))
    signed = SignedKeyring.sign(AUTHORITY, "barn", ring(unmaskers=unmaskers))
    assert SignedKeyring.decode(signed.encode()) == signed
    assert signed.is_of(AUTHORITY.public, "barn")
    assert not signed.is_of(OTHER.public, "barn")
    assert not signed.is_of(AUTHORITY.public, "stable")


@given(st.integers(0, 8 * 165 - 1))
def test_a_keyring_with_any_bit_turned_over_is_nobodys(bit: int) -> None:
    data = bytearray(SignedKeyring.sign(AUTHORITY, "barn", ring()).encode())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    try:
        found = SignedKeyring.decode(bytes(data))
    except KeysError:
        return
    assert not found.is_of(AUTHORITY.public, "barn")


@given(st.binary(max_size=260))
def test_no_bytes_are_a_keyring_with_another_encoding(data: bytes) -> None:
    try:
        found = SignedKeyring.decode(data)
    except KeysError:
        return
    assert found.encode() == data


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: ring(0), "count from 1"),
        (lambda: ring(unmaskers=(UNMASKER, UNMASKER)), "twice"),
        (lambda: ring(unmaskers=tuple(bytes([n]) * 32 for n in range(4))), "4 unmaskers"),
        (lambda: Keyring(1, bytes(31)), "32 bytes, not 31"),
        (lambda: SigningKey(bytes(32)), "64 bytes, not 32"),
        (lambda: DeviceKeys.decode(bytes(95)), "96 bytes, not 95"),
    ],
)
def test_what_is_no_key_is_refused_with_its_reason(
    make: Callable[[], object], problem: str
) -> None:
    with pytest.raises(KeysError, match=problem):
        make()


def test_a_signature_is_for_one_task_of_one_device_of_one_fleet_and_one_gateway() -> None:
    task = a_task()
    signature = keys.sign_task(AUTHORITY, "barn", "east", "cow", task)
    told = replace(task, keyring=b"k" * 100, signature=signature)

    def is_right(fleet: str, gateway: str, device: str, task: Task) -> bool:
        digest = keys.task_digest(fleet, gateway, device, task.unsigned())
        return keys.is_signed(AUTHORITY.public, digest, task.signature)

    assert is_right("barn", "east", "cow", told)
    assert told.encode().startswith(task.unsigned()[:-2])
    assert task.unsigned().endswith(b"\x40\x40")
    assert not is_right("barn", "east", "calf", told)
    assert not is_right("bar", "east", "ncow", told)
    assert not is_right("barn", "west", "cow", told)
    for change in ({"lease": 6}, {"round": 4}, {"action": 2, "epochs": 0}, {"noise_variance": 9}):
        assert not is_right("barn", "east", "cow", replace(told, **change))


def test_a_devices_keys_come_back_and_its_enrolment_is_its_own() -> None:
    mine = DeviceKeys.generate()
    assert DeviceKeys.decode(mine.encode()) == mine
    enrolment = mine.enrol("barn", "cow")
    assert enrolment.is_right
    assert not replace(enrolment, device="calf").is_right
    assert not replace(enrolment, exchange_key=UNMASKER).is_right
    assert not replace(enrolment, signing_key=OTHER.public).is_right


def test_the_vectors_of_the_page_are_what_this_gives() -> None:
    vector = Keyring(1, bytes(range(64, 96)), (UNMASKER,))
    for value in (vector.body(), vector.digest("barn"), vector.unmaskers_digest):
        assert f"`{value.hex()}`" in PAGE
