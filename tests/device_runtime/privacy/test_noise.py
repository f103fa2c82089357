"""The device's noise is the coordinator's, value for value."""

import ctypes
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.privacy.discrete_gaussian import discrete_gaussian

PAGE = (Path(__file__).parents[3] / "docs/specification/noise.md").read_text(encoding="utf-8")
KEY = bytes(range(32))


def drawn(library: ctypes.CDLL, key: bytes, variance: int, count: int) -> np.ndarray:
    values = np.zeros(count, np.int32)
    library.harness_noise(key, variance, values.ctypes.data_as(ctypes.c_void_p), count)
    return values


@pytest.mark.parametrize("variance", [4, 1000, 100_000, 16_777_216])
def test_ten_thousand_values_are_those_of_the_page(library: ctypes.CDLL, variance: int) -> None:
    values = drawn(library, KEY, variance, 10_000)
    digest = hashlib.sha256(values.astype("<i4").tobytes()).hexdigest()
    assert re.search(rf"\| {variance} \| {digest} \|", PAGE)


@given(st.binary(min_size=32, max_size=32), st.integers(1, 1 << 24))
def test_any_key_and_variance_give_what_python_draws(
    library: ctypes.CDLL, key: bytes, variance: int
) -> None:
    expected = discrete_gaussian(key, variance, 20)
    assert drawn(library, key, variance, 20).tolist() == expected.tolist()
