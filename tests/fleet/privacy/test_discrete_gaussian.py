"""The sampler beside its distribution, and beside the test vectors of noise.md."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from scipy import stats

from fleet.privacy.discrete_gaussian import (
    MAX_DEVICE_VARIANCE,
    Keystream,
    _bernoulli,
    _exponential,
    _exponential_of_one,
    discrete_gaussian,
)

MINUS = "\N{MINUS SIGN}"
PAGE = Path(__file__).parents[3] / "docs" / "specification" / "noise.md"
COUNTING_KEY = bytes(range(32))
# Seeds are fixed, so a test passes always or never; of all keys this many would fail it.
UNLIKELY = 1e-4


def probabilities(variance: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Integers within nine deviations, and how likely each is."""
    reach = 9 * int(np.sqrt(variance)) + 9
    values = np.arange(-reach, reach + 1)
    weights = np.exp(-(values.astype(np.float64) ** 2) / (2 * variance))
    return values, weights / weights.sum()


@pytest.mark.parametrize("variance", [1, 2, 4, 7, 8, 31, 32, 1000, 100_000, MAX_DEVICE_VARIANCE])
def test_values_have_the_distribution(variance: int) -> None:
    count = 20_000
    drawn = discrete_gaussian(hashlib.sha256(b"%d" % variance).digest(), variance, count)
    values, likely = probabilities(variance)
    bins = min(50, int(4 * np.sqrt(variance)) + 1)
    edges = values[np.unique(np.searchsorted(likely.cumsum(), np.arange(1, bins) / bins))]
    observed = np.bincount(np.searchsorted(edges, drawn), minlength=edges.size + 1)
    expected = np.bincount(np.searchsorted(edges, values), likely, edges.size + 1) * count
    assert stats.chisquare(observed, expected).pvalue > UNLIKELY
    exact = float((values.astype(np.float64) ** 2 * likely).sum())
    assert abs(drawn.mean()) < 4 * np.sqrt(exact / count)
    assert abs(drawn.var() / exact - 1) < 4 * np.sqrt(2 / count)


def test_shares_of_many_devices_add_up_to_their_variances() -> None:
    devices, count, variance = 24, 1_500, 9
    shares = [discrete_gaussian(bytes([device]) * 32, variance, count) for device in range(devices)]
    total = np.sum(shares, axis=0)
    assert abs(total.var() / (devices * variance) - 1) < 4 * np.sqrt(2 / count)
    assert abs(total.mean()) < 4 * np.sqrt(devices * variance / count)
    assert stats.kstest(total, stats.norm(0, np.sqrt(devices * variance)).cdf).pvalue > UNLIKELY


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 5), (1, 3), (255, 256), (2**40, 3**26)])
def test_a_fraction_is_as_likely_as_it_says(numerator: int, denominator: int) -> None:
    stream, count = Keystream(COUNTING_KEY), 20_000
    hits = sum(_bernoulli(stream, numerator, denominator) for _ in range(count))
    assert stats.binomtest(hits, count, numerator / denominator).pvalue > UNLIKELY


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 1), (1, 7), (6, 7), (1, 1), (5, 2)])
def test_an_exponential_is_as_likely_as_it_says(numerator: int, denominator: int) -> None:
    stream, count = Keystream(COUNTING_KEY), 20_000
    hits = sum(_exponential(stream, numerator, denominator) for _ in range(count))
    assert stats.binomtest(hits, count, np.exp(-numerator / denominator)).pvalue > UNLIKELY


class Given(Keystream):
    """One of these bytes."""

    def __init__(self, *values: int) -> None:
        self.left = list(values)

    def byte(self) -> int:
        return self.left.pop(0)


def test_rare_bytes_are_decided_by_the_bytes_after_them() -> None:
    # 1/3 to base 256 is 0.(85)(85)…: at 85 the next byte decides.
    for given, expected in (
        ((84,), True),
        ((86,), False),
        ((85, 84), True),
        ((85, 85, 85, 86), False),
    ):
        stream = Given(*given)
        assert _bernoulli(stream, 1, 3) is expected
        assert not stream.left
    # 1/e: 240 and more is drawn again; below 2, trials of 1/6, 1/7, … go on.
    for given, expected in (
        ((255, 240, 119), True),
        ((120,), False),
        ((39,), False),
        ((9,), True),
        ((1, 43), False),  # 1/6 fails: an even number
        ((0, 42, 0, 200), True),  # 1/6 (42, then 0), then 1/7 fails
    ):
        stream = Given(*given)
        assert _exponential_of_one(stream) is expected
        assert not stream.left


def test_the_keystream_is_that_of_rfc_8439() -> None:
    # Poly1305's key is block 0 of the AEAD, the message begins with block 1.
    stream = Keystream(COUNTING_KEY)
    ours = bytes(stream.byte() for _ in range(100_000))
    theirs = ChaCha20Poly1305(COUNTING_KEY).encrypt(bytes(12), bytes(100_000), None)
    assert ours[64:] == theirs[: 100_000 - 64]
    assert ours[:16].hex(" ") in PAGE.read_text()


def test_the_page_has_these_vectors() -> None:
    page = PAGE.read_text().replace(MINUS, "-")
    parts = re.split(r"^Key ff", page.split("## Test vectors")[1], flags=re.MULTILINE)
    rows = [re.findall(r"^\| (\d+) \| ([-0-9, ]+) \|$", part, re.MULTILINE) for part in parts]
    assert [len(found) for found in rows] == [6, 2]
    for key, found in zip((COUNTING_KEY, b"\xff" * 32), rows, strict=True):
        for variance, values in found:
            expected = [int(value) for value in values.split(", ")]
            assert discrete_gaussian(key, int(variance), 16).tolist() == expected
    digests = re.findall(r"^\| (\d+) \| ([0-9a-f]{64}) \|$", page, re.MULTILINE)
    assert len(digests) == 4
    for variance, digest in digests:
        values = discrete_gaussian(COUNTING_KEY, int(variance), 10_000)
        assert hashlib.sha256(values.astype("<i4").tobytes()).hexdigest() == digest


def test_a_wrong_key_or_variance_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        discrete_gaussian(b"short", 4, 1)
    with pytest.raises(ValueError, match="variance"):
        discrete_gaussian(COUNTING_KEY, 0, 1)
