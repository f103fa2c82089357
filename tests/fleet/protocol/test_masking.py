"""Masked deltas: sums come out exactly, and nothing but sums; seals are for one purpose."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import CodingError, MaskError
from fleet.protocol import keys, masking
from fleet.protocol.masking import Binding, MaskedDelta, MaskParameters

DEVICE, UNMASKER = bytes(range(1, 33)), bytes(range(33, 65))
NONCE = bytes.fromhex("010000000102030405060708")
PLAIN = MaskParameters(16, 127, 1000, 0, 0, 20)
BINDING = Binding(
    *("barn", "cow-1", bytes(range(8)), 3, bytes(range(32)), bytes(range(32, 64)), 4, PLAIN)
)
PAGE = (Path(__file__).parents[3] / "docs/specification/masking.md").read_text(encoding="utf-8")


def key_between() -> bytes:
    device, unmasker = keys.exchange_public(DEVICE), keys.exchange_public(UNMASKER)
    return masking.seal_key(UNMASKER, device, device, unmasker)


@given(st.data(), st.sampled_from(masking.MASK_BITS), st.integers(2, 12), st.integers(1, 3))
def test_the_sum_of_masked_values_less_the_streams_is_the_sum_of_values(
    data: st.DataObject, bits: int, devices: int, unmaskers: int
) -> None:
    bound = ((1 << (bits - 1)) - 1) // devices
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = random.integers(-bound, bound + 1, (devices, 50)).astype(np.int32)
    seeds = [[random.bytes(32) for _ in range(unmaskers)] for _ in range(devices)]
    masked = [masking.mask(one, of, bits) for one, of in zip(values, seeds, strict=True)]
    streams = [masking.stream(seed, 50, bits) for of in seeds for seed in of]

    def total(words: list[masking.Words]) -> masking.Words:
        return reduce(lambda a, b: masking.add(a, b, bits), words)

    without = masking.add(total(masked), (-total(streams).astype(np.int64)).astype(np.uint32), bits)
    assert masking.centred(without, bits).tolist() == values.sum(axis=0).tolist()


def test_masked_values_alone_are_spread_evenly_whatever_the_values() -> None:
    values = np.full(20_000, 5, np.int32)
    masked = masking.mask(values, [bytes(range(32))], 8)
    counts = np.bincount(masked, minlength=256)
    # Chi-square of 255 degrees of freedom lies above 390 once in 10^7.
    assert ((counts - 20_000 / 256) ** 2 / (20_000 / 256)).sum() < 390


@pytest.mark.parametrize("bits", masking.MASK_BITS)
def test_a_masked_delta_comes_back_from_its_bytes(bits: int) -> None:
    values = np.arange(9, dtype=np.uint32) * np.uint32((1 << bits) // 9)
    delta = MaskedDelta(NONCE, (b"a" * 48, b"b" * 48), values)
    coded = delta.encode(bits)
    found = MaskedDelta.decode(coded, 9, bits, 2)
    assert (found.nonce, found.seals) == (delta.nonce, delta.seals)
    assert found.values.tolist() == values.tolist()
    for wrong in (coded[:-1], coded + b"\0", b""):
        with pytest.raises(CodingError, match="9 masked values take"):
            MaskedDelta.decode(wrong, 9, bits, 2)


def test_a_seal_opens_for_what_it_binds_and_for_nothing_else() -> None:
    unmasker = keys.exchange_public(UNMASKER)
    delta = masking.mask_delta(DEVICE, [unmasker], NONCE, np.zeros(4, np.int32), BINDING)
    (sealed,) = delta.seals
    key, seed = key_between(), masking.seed_of(DEVICE, NONCE, unmasker)
    assert masking.unseal(key, NONCE, sealed, BINDING) == seed
    others: list[dict[str, Any]] = [
        *({"fleet": "bar"}, {"device": "cow-2"}, {"campaign": bytes(8)}, {"round": 4}),
        *({"plan": bytes(32)}, {"weights": bytes(32)}, {"values": 5}),
        *(
            {"parameters": replace(PLAIN, **change)}
            for change in (
                *({"bits": 24}, {"value_bound": 126}, {"clip": 0}, {"norm_share": 1}),
                *({"noise_variance": 4}, {"least_devices": 19}),
            )
        ),
    ]
    for change in others:
        other = replace(BINDING, **change)
        assert masking.unseal(key, NONCE, sealed, other) is None, change
    assert masking.unseal(key, NONCE[:-1] + b"\0", sealed, BINDING) is None
    assert masking.unseal(bytes(32), NONCE, sealed, BINDING) is None
    for at in range(len(sealed)):
        turned = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        assert masking.unseal(key, NONCE, turned, BINDING) is None


def test_a_public_key_with_which_everybody_knows_the_secret_is_refused() -> None:
    with pytest.raises(MaskError, match="public key is none"):
        masking.seal_key(DEVICE, bytes(32), keys.exchange_public(DEVICE), bytes(32))


@pytest.mark.parametrize(
    ("parameters", "devices", "bits"),
    [
        (MaskParameters(8, 1), 127, 8),
        (MaskParameters(8, 1), 128, 16),
        (MaskParameters(8, 127), 256, 16),
        (MaskParameters(8, 128), 256, 24),
        (MaskParameters(8, 127, noise_variance=400), 256, 24),
        (MaskParameters(8, 127, noise_variance=400), 200, 16),
    ],
)
def test_as_few_bits_are_taken_as_hold_the_largest_sum(
    parameters: MaskParameters, devices: int, bits: int
) -> None:
    assert masking.bits_for(parameters, devices) == bits
    assert 2 * parameters.largest_sum(devices) < 1 << bits


def test_parameters_that_no_device_can_do_are_refused() -> None:
    for wrong in (
        lambda: MaskParameters(12, 5),
        lambda: MaskParameters(16, 5, 9, 6),
        lambda: MaskParameters(16, 5, 0, 5),
        lambda: masking.bits_for(MaskParameters(32, 65535, noise_variance=2**32 - 1), 10**9),
    ):
        with pytest.raises(MaskError):
            wrong()


def test_the_vectors_of_the_page_are_what_this_gives() -> None:
    device, unmasker = keys.exchange_public(DEVICE), keys.exchange_public(UNMASKER)
    values = np.array([1, -1, 127, -127], np.int32)
    delta = masking.mask_delta(DEVICE, [unmasker], NONCE, values, BINDING)
    for value in (
        *(device, unmasker, key_between(), BINDING.digest()),
        *(masking.seed_of(DEVICE, NONCE, unmasker), masking.noise_key(DEVICE, NONCE)),
        delta.encode(16),
    ):
        assert f"`{value.hex()}`" in PAGE
