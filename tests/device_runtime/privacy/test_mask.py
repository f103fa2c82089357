"""What the device sends masked is, bit for bit, what masking.md and its Python say."""

import ctypes
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.privacy.discrete_gaussian import discrete_gaussian
from fleet.protocol import masking
from fleet.protocol.keys import Keyring, exchange_public

from ..host_device import IDENTITY, PLANS
from ..keyed import Keys, clipped
from ..tiny_round import task_for
from .conftest import KeyedDevice

PAGE = (Path(__file__).parents[3] / "docs/specification/masking.md").read_text(encoding="utf-8")
KEYS = Keys()
TASK = task_for(PLANS[0], bytes(144))
NONCE = bytes.fromhex("010000000102030405060708")


def keyed(library: ctypes.CDLL, keys: Keys = KEYS) -> KeyedDevice:
    return KeyedDevice(library, keys.region(IDENTITY), keys.fleet, keys.name)


def test_the_vectors_of_the_page_come_out(library: ctypes.CDLL) -> None:
    keys = replace(KEYS, fleet="barn", name="cow-1")
    device = keyed(library, keys)
    task = replace(
        TASK,
        campaign=bytes(range(8)),
        round=3,
        plan=bytes(range(32)),
        weights=bytes(range(32, 64)),
    )
    task = keys.masked(task, value_bound=127, clip=1000, least_devices=20)
    coded, crc = device.mask(task, NONCE, [1, -1, 127, -127])
    assert f"| `{coded.hex()}` |" in PAGE
    assert crc == zlib.crc32(coded)
    assert f"| `{device.seal_keys(1)[0].hex()}` |" in PAGE
    assert f"| `{task.unmaskers.hex()}` |" in PAGE
    assert device.can_mask(task.unmaskers)


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, int], list[int]]:
    """Parameters of all kinds, and values that they have to do with."""
    bound = draw(st.sampled_from([1, 2, 127, 1000, 65535]))
    clip = draw(st.sampled_from([0, 0, 1, 7, 100, 5000, 2**32 - 1]))
    parameters = {
        "mask_bits": draw(st.sampled_from(masking.MASK_BITS)),
        "value_bound": bound,
        "clip": clip,
        "norm_share": draw(st.integers(0, bound)) if clip else 0,
        "noise_variance": draw(st.sampled_from([0, 0, 4, 9, 1000, 1 << 24])),
        "least_devices": draw(st.integers(0, 65535)),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }
    spread = draw(st.sampled_from([1, 3, 200, 70_000, 2**31 - 1]))
    values = draw(st.lists(st.integers(-spread, spread), min_size=1, max_size=120))
    return parameters, values


@given(cases(), st.integers(1, 3), st.integers(1, 400), st.binary(min_size=12, max_size=12))
def test_every_delta_has_the_bytes_of_the_oracle_however_it_is_read(
    library: ctypes.CDLL,
    case: tuple[dict[str, int], list[int]],
    unmaskers: int,
    piece: int,
    nonce: bytes,
) -> None:
    parameters, values = case
    keys = replace(KEYS, unmaskers=tuple(bytes([i + 9]) * 32 for i in range(unmaskers)))
    task = keys.masked(TASK, **parameters)
    coded, crc = keyed(library, keys).mask(task, nonce, values, piece)
    assert coded == keys.mask(task, nonce, values)
    assert crc == zlib.crc32(coded)


@given(
    st.lists(st.integers(-300, 300), min_size=1, max_size=300),
    st.sampled_from([1, 2, 5, 30, 200, 1000]),
    st.integers(0, 2**32 - 1),
)
def test_clipped_values_are_never_longer_than_the_clip(
    library: ctypes.CDLL, values: list[int], clip: int, seed: int
) -> None:
    task = KEYS.masked(TASK, clip=clip, norm_share=9, seed=seed, value_bound=250)
    coded, _ = keyed(library).mask(task, NONCE, values)
    *sent, share = KEYS.unmask(task, coded, len(values)).tolist()
    bounded = [min(max(value, -250), 250) for value in values]
    assert sum(value * value for value in sent) <= clip * clip
    is_within = sum(value * value for value in bounded) <= clip * clip
    assert share == (9 if is_within else 0)
    if is_within:
        assert sent == bounded


def test_values_that_no_rounding_brings_within_the_clip_are_truncated(
    library: ctypes.CDLL,
) -> None:
    """With very many small values rounding alone is longer than the clip, in every attempt."""
    values = [1, -1] * 3000
    task = KEYS.masked(TASK, clip=3, value_bound=1)
    assert clipped(values, task) == [0] * 6000
    coded, crc = keyed(library).mask(task, NONCE, values)
    assert KEYS.unmask(task, coded, 6000).tolist() == [0] * 6000
    assert crc == zlib.crc32(coded)


def test_a_clip_keeps_the_direction(library: ctypes.CDLL) -> None:
    values = np.random.default_rng(1).normal(0, 400, 2000).astype(int)
    task = KEYS.masked(TASK, clip=5000, value_bound=2000)
    coded, _ = keyed(library).mask(task, NONCE, values.tolist())
    sent = KEYS.unmask(task, coded, 2000)
    cosine = sent @ values / np.linalg.norm(sent) / np.linalg.norm(values)
    assert cosine > 0.999
    assert np.linalg.norm(sent) > 0.9 * 5000


def test_noise_is_that_of_the_devices_own_key_and_of_this_nonce(library: ctypes.CDLL) -> None:
    values = [5] * 40
    task = KEYS.masked(TASK, noise_variance=1000)
    device = keyed(library)
    sent = []
    for nonce in (NONCE, NONCE[::-1]):
        coded, _ = device.mask(task, nonce, values)
        noise = discrete_gaussian(masking.noise_key(KEYS.device.exchange, nonce), 1000, 40)
        sent.append(KEYS.unmask(task, coded, 40))
        assert sent[-1].tolist() == (np.array(values) + noise).tolist()
    assert sent[0].tolist() != sent[1].tolist()


@pytest.mark.parametrize(
    "changes",
    [
        *({"mask_bits": bits} for bits in (0, 7, 12, 40, 255)),
        {"value_bound": 0},
        *({"noise_variance": variance} for variance in (1, 3, (1 << 24) + 1)),
        {"norm_share": 1},
        {"norm_share": 1001, "clip": 5},
    ],
)
def test_what_no_delta_can_be_masked_by_is_refused(
    library: ctypes.CDLL, changes: dict[str, int]
) -> None:
    device = keyed(library)
    assert device.mask(KEYS.masked(TASK), NONCE, [1])[0]
    assert not device.mask(KEYS.masked(TASK, **changes), NONCE, [1])[0]


def test_unmaskers_have_to_be_those_of_the_keyring_in_its_order(library: ctypes.CDLL) -> None:
    three = replace(KEYS, unmaskers=tuple(bytes([i + 9]) * 32 for i in range(3)))
    device = keyed(library, three)
    assert device.can_mask(three.keyring.unmaskers_digest)
    turned = replace(three, unmaskers=three.unmaskers[::-1])
    fewer = replace(three, unmaskers=three.unmaskers[:2])
    for other in (turned, fewer, KEYS, replace(KEYS, unmaskers=())):
        assert not device.can_mask(other.keyring.unmaskers_digest)
    assert not keyed(library, replace(KEYS, unmaskers=())).can_mask(bytes(8))


def test_an_unmaskers_key_that_is_none_gets_no_seal(library: ctypes.CDLL) -> None:
    """A point of low order: everybody would know the secret."""

    class Crafted(Keys):
        @property
        def keyring(self) -> Keyring:
            return replace(super().keyring, unmaskers=(exchange_public(bytes([5]) * 32), bytes(32)))

    assert keyed(library, Crafted()).seal_keys(2) == []
