"""The device's delta coder: against the specification bit by bit, and against the gateway's."""

from __future__ import annotations

import ctypes
import random
import zlib
from pathlib import Path

import numpy as np
import pytest

from fleet.errors import CodingError
from fleet.protocol import delta_coding
from tests.device_runtime.host_library import RUNTIME, build_library

TF_OK, TF_BAD_INPUT = 0, 4
SHIM = "delta_shim.c"


class Coder:
    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.code_array.restype = ctypes.c_size_t
        library.code_array.argtypes = [
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_size_t,
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_void_p,
        ]
        library.tf_delta_decode.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_void_p,
            ctypes.c_uint32,
        ]

    def encode(self, values: list[int], piece: int = 512) -> bytes:
        array = (ctypes.c_int32 * len(values))(*values)
        capacity = len(values) * 7 + len(values) // 32 + 16 + 2 * piece
        out = ctypes.create_string_buffer(capacity)
        drawn = ctypes.c_uint32()
        length = self.library.code_array(
            array, len(values), piece, out, capacity, ctypes.byref(drawn)
        )
        assert drawn.value == len(values)
        return out.raw[:length]

    def measure(self, values: list[int]) -> tuple[int, int]:
        array = (ctypes.c_int32 * len(values))(*values)
        length, crc = ctypes.c_uint32(), ctypes.c_uint32()
        self.library.measure_array(array, len(values), ctypes.byref(length), ctypes.byref(crc))
        return length.value, crc.value

    def decode(self, coded: bytes, count: int) -> list[int] | None:
        values = (ctypes.c_int32 * count)()
        status = self.library.tf_delta_decode(coded, len(coded), values, count)
        assert status in (TF_OK, TF_BAD_INPUT)
        return list(values) if status == TF_OK else None


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Coder:
    sources = [RUNTIME / "codec" / f"delta_{part}.c" for part in ("encode", "decode", "parameter")]
    sources += [RUNTIME / "hash" / "crc32.c", Path(__file__).with_name(SHIM)]
    return Coder(build_library(tmp_path_factory.mktemp("codec"), sources))


def bits(text: str) -> bytes:
    """Bytes of a bit string with spaces, filled up with zeros."""
    plain = text.replace(" ", "")
    plain += "0" * (-len(plain) % 8)
    return bytes(int(plain[i : i + 8], 2) for i in range(0, len(plain), 8))


def deltas(kind: str, count: int, seed: int = 0) -> list[int]:
    draw = random.Random(f"{kind} {count} {seed}")
    if kind == "small":
        return [draw.choice([0, 0, 0, 0, 1, -1, 2, -3]) for _ in range(count)]
    if kind == "sparse":
        return [draw.randint(-50, 50) if draw.random() < 0.01 else 0 for _ in range(count)]
    if kind == "wide":
        return [int(draw.gauss(0, 3000)) for _ in range(count)]
    if kind == "extreme":
        return [draw.choice([-(2**31), 2**31 - 1, 0, 1, -1]) for _ in range(count)]
    return [0] * count


KINDS = ("small", "sparse", "wide", "extreme", "zero")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([0], "1111 00000000"),
        ([0] * 33, "1111 00000001"),
        ([1], "0000 110"),  # 3 bits with k = 0 and with k = 1: the smaller wins
        ([-1], "0000 10"),
        ([-1, 0, 1], "0000 10 0 110"),
        ([0] * 32 + [-1], "1111 00000000 0000 10"),
        ([0] * (257 * 32), "1111 11111111 1111 00000000"),
    ],
)
def test_coding_is_that_of_the_specification(
    coder: Coder, values: list[int], expected: str
) -> None:
    assert coder.encode(values) == bits(expected)


def test_large_value_is_escaped(coder: Coder) -> None:
    # One huge value: every k escapes it, so k = 0.
    assert coder.encode([2**31 - 1]) == bits("0000" + "1" * 20 + f"{2**32 - 2:032b}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 31, 32, 33, 64, 1000, 8192, 8193, 20000])
def test_device_and_gateway_give_the_same_bytes_and_read_them_back(
    coder: Coder, kind: str, count: int
) -> None:
    values = deltas(kind, count)
    coded = coder.encode(values)
    assert coded == delta_coding.encode(np.array(values, np.int32))
    assert coder.decode(coded, count) == values
    assert delta_coding.decode(coded, count).tolist() == values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [1, 2, 7, 64, 512])
def test_bytes_do_not_depend_on_the_size_of_the_pieces(coder: Coder, kind: str, piece: int) -> None:
    values = deltas(kind, 1500)
    assert coder.encode(values, piece) == coder.encode(values, 100_000)


@pytest.mark.parametrize("kind", KINDS)
def test_measuring_pass_knows_length_and_crc_of_the_bytes(coder: Coder, kind: str) -> None:
    for count in (0, 1, 500, 9000):
        values = deltas(kind, count)
        coded = coder.encode(values)
        assert coder.measure(values) == (len(coded), zlib.crc32(coded))


@pytest.mark.parametrize("kind", KINDS)
def test_coded_delta_with_a_byte_missing_or_too_many_is_refused(coder: Coder, kind: str) -> None:
    values = deltas(kind, 200)
    coded = coder.encode(values)
    assert coder.decode(coded[:-1], 200) is None
    assert coder.decode(coded + b"\0", 200) is None


@pytest.mark.parametrize(
    ("coded", "count", "why"),
    [
        ("0000 0", 1, "a zero block that isn't a run"),
        ("0001 10 0", 1, "k = 1 where 0 is as short"),
        ("1111 00000000 1111 00000000", 64, "two runs where one would do"),
        ("1111 00000001", 32, "a run longer than the delta"),
        ("0000 10 01", 1, "filling that isn't zero"),
        ("0000" + "1" * 20 + f"{5:032b}", 1, "an escape for a small value"),
        ("", 1, "nothing at all"),
    ],
)
def test_form_that_the_encoder_would_not_choose_is_refused(
    coder: Coder, coded: str, count: int, why: str
) -> None:
    assert coder.decode(bits(coded), count) is None, why


@pytest.mark.parametrize("seed", range(200))
def test_every_changed_bit_is_refused_or_another_canonical_delta(coder: Coder, seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randrange(1, 300)
    coded = bytearray(coder.encode(deltas("small", count, seed)))
    coded[draw.randrange(len(coded))] ^= 1 << draw.randrange(8)
    values = coder.decode(bytes(coded), count)
    try:
        by_gateway = delta_coding.decode(bytes(coded), count).tolist()
    except CodingError:
        by_gateway = None
    assert values == by_gateway
    if values is not None:
        assert coder.encode(values) == bytes(coded)
