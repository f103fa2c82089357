"""Delta coding against a plain bit-by-bit reading of wire.md."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fleet.errors import CodingError
from fleet.protocol.delta_coding import decode, decode_with_numpy, encode, max_coded_bytes
from tests.conftest import examples


def plain_encode(values: list[int]) -> bytes:
    """The specification word by word, one bit at a time: the oracle."""

    def coded(value: int, k: int) -> str:
        u = (value << 1) ^ (value >> 31)
        q = u >> k
        if q >= 20:
            return "1" * 20 + format(u, "032b")
        return "1" * q + "0" + (format(u & ((1 << k) - 1), f"0{k}b") if k else "")

    blocks = [values[i : i + 32] for i in range(0, len(values), 32)]
    bits, i = "", 0
    while i < len(blocks):
        run = 0
        while i + run < len(blocks) and run < 256 and not any(blocks[i + run]):
            run += 1
        if run:
            bits += "1111" + format(run - 1, "08b")
            i += run
            continue
        choices = ["".join(coded(v, k) for v in blocks[i]) for k in range(15)]
        best = min(range(15), key=lambda k: (len(choices[k]), k))
        bits += format(best, "04b") + choices[best]
        i += 1
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def array(values: list[int]) -> NDArray[np.int32]:
    return np.array(values, np.int32)


int32s = st.one_of(
    st.just(0),
    st.integers(-3, 3),
    st.integers(-2000, 2000),
    st.integers(-(2**31), 2**31 - 1),
    st.sampled_from([-(2**31), 2**31 - 1, 10 * 2**14 - 1, 10 * 2**14]),
)
stretches = st.lists(
    st.one_of(st.lists(int32s, max_size=70), st.integers(0, 200).map(lambda n: [0] * n)),
    max_size=6,
).map(lambda parts: list(itertools.chain(*parts)))


@given(stretches)
def test_coding_is_what_the_specification_says_bit_for_bit(values: list[int]) -> None:
    data = encode(array(values))
    assert data == plain_encode(values)
    assert len(data) <= max_coded_bytes(len(values))
    assert decode(data, len(values)).tolist() == values


@given(hnp.arrays(np.int32, st.integers(0, 9000), elements=st.sampled_from([0, 0, 0, 0, 1])))
@examples(20)
def test_long_runs_of_zero_blocks_come_back(values: NDArray[np.int32]) -> None:
    values[: len(values) // 2] = 0
    assert np.array_equal(decode(encode(values), values.size), values)


GOLDEN = [
    ([], ""),
    ([0], "f00 0"),
    ([1], "0c"),
    ([-1], "08"),
    ([0] * 33, "f01 0"),
    ([0] * (32 * 257), "fff f00"),
    ([5, -3, 0, 100], None),
    ([2**31 - 1], "0 fffff fffffffe"),
    ([-(2**31)], "0 fffff ffffffff"),
]


@pytest.mark.parametrize(("values", "text"), GOLDEN)
def test_golden_vectors(values: list[int], text: str | None) -> None:
    data = encode(array(values))
    if text is not None:
        digits = text.replace(" ", "")
        assert data.hex() == digits + "0" * (len(digits) % 2)
    assert data == plain_encode(values)


@given(stretches, st.integers(0, 10_000), st.integers(0, 7))
@examples(200)
def test_a_flipped_bit_gives_other_values_in_canonical_form_or_is_refused(
    values: list[int], place: int, bit: int
) -> None:
    data = bytearray(encode(array(values)))
    if not data:
        return
    data[place % len(data)] ^= 1 << bit
    try:
        other = decode(bytes(data), len(values))
    except CodingError:
        return
    assert other.tolist() != values
    assert encode(other) == bytes(data)


@given(st.binary(max_size=200), st.integers(0, 2000))
@examples(300)
def test_random_bytes_are_the_canonical_form_of_something_or_refused(
    data: bytes, count: int
) -> None:
    try:
        values = decode(data, count)
    except CodingError:
        return
    assert encode(values) == data


@pytest.mark.parametrize(
    ("hexes", "count", "problem"),  # in the words of the numpy decoder; the C has one for all
    [
        ("", 1, "ends after 0 of 1"),
        ("f0", 1, "ends after 0 of 1"),  # the run length is cut off
        ("f00000", 1, "left over"),
        ("f001", 1, "canonical"),  # filling isn't zero
        ("00", 1, "canonical"),  # a zero block must be a run
        ("f00f00", 64, "canonical"),  # two runs that should be one
        ("f010", 32, "goes beyond"),
        ("18", 1, "canonical"),  # k = 1 where k = 0 is as short: value -1 as 0001 10 00
        ("0fffff00000002", 1, "canonical"),  # escape for a small value
        ("0e", 2, "ends after 1 of 2"),
        ("0fffff", 1, "ends after"),
    ],
)
def test_everything_but_the_canonical_form_is_refused(hexes: str, count: int, problem: str) -> None:
    with pytest.raises(CodingError, match=problem):
        decode_with_numpy(bytes.fromhex(hexes), count)
    with pytest.raises(CodingError):
        decode(bytes.fromhex(hexes), count)


@pytest.mark.parametrize(
    ("count", "problem"),
    [(0, "more than 0 values can take"), (-1, "can't be"), (2**32 + 1, "can't be")],
)
def test_counts_that_the_bytes_cannot_have_are_refused(count: int, problem: str) -> None:
    with pytest.raises(CodingError, match=problem):
        decode(bytes.fromhex("f000"), count)


def test_other_kinds_of_arrays_are_refused() -> None:
    with pytest.raises(CodingError, match="int32 is wanted"):
        encode(np.zeros(3, np.int64))  # type: ignore[arg-type]
    with pytest.raises(CodingError, match="int32 is wanted"):
        encode(np.zeros((3, 3), np.int32))
