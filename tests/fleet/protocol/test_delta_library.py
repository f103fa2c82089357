"""The device's decoder in C beside the numpy one: both take the same and nothing else."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleet.errors import CodingError
from fleet.protocol import delta_coding, delta_library
from fleet.protocol.delta_coding import MAX_RUN_BLOCKS, decode_with_numpy, encode
from fleet.protocol.delta_library import Decoder
from tests.conftest import examples
from tests.device_runtime.host_library import RUNTIME, build_library

SOURCES = [RUNTIME / "codec" / f"delta_{part}.c" for part in ("decode", "parameter")]


@pytest.fixture(scope="module")
def in_c(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """With traps for undefined behaviour; tests/fuzz has the same C under AddressSanitizer."""
    folder = tmp_path_factory.mktemp("decoder")
    build_library(folder, SOURCES)
    return delta_library.load(folder / "library.so")


def answer(decoder: Decoder, data: bytes, count: int) -> list[int] | None:
    try:
        values = decoder(data, count)
    except CodingError:
        return None
    assert values.dtype == np.int32
    return [int(value) for value in values]


values_of_deltas = st.one_of(
    st.just(0),
    st.integers(-3, 3),
    st.integers(-2000, 2000),
    st.integers(-(2**31), 2**31 - 1),
)
deltas = st.lists(
    st.one_of(st.lists(values_of_deltas, max_size=70), st.integers(0, 99).map(lambda n: [0] * n)),
    max_size=5,
).map(lambda parts: np.array(list(itertools.chain(*parts)), np.int32))


@given(deltas)
def test_both_read_what_the_encoder_writes(in_c: Decoder, values: NDArray[np.int32]) -> None:
    data = encode(values)
    assert answer(in_c, data, values.size) == values.tolist()
    assert answer(decode_with_numpy, data, values.size) == values.tolist()


@given(st.binary(max_size=120), st.integers(0, 20_000))
@examples(500)
@example(b"\xf0\x00", 1)
@example(b"\xf0\x10", 1)
@example(bytes.fromhex("0fffff00000002"), 1)
@example(bytes.fromhex("0fffffffffffff"), 1)
@example(bytes.fromhex("ffff00"), 32 * (MAX_RUN_BLOCKS + 1))
@example(bytes.fromhex("fffffff0"), 2 * 32 * MAX_RUN_BLOCKS)
def test_both_take_and_refuse_the_same_hostile_bytes(
    in_c: Decoder, data: bytes, count: int
) -> None:
    assert answer(in_c, data, count) == answer(decode_with_numpy, data, count)


@given(deltas, st.data())
@examples(250)
def test_both_take_and_refuse_the_same_damaged_deltas(
    in_c: Decoder, values: NDArray[np.int32], draw: st.DataObject
) -> None:
    data = bytearray(encode(values))
    for _ in range(draw.draw(st.integers(1, 3))):
        place = draw.draw(st.integers(0, len(data)))
        match draw.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip" if place < len(data):
                data[place] ^= 1 << draw.draw(st.integers(0, 7))
            case "cut":
                del data[place:]
            case _:
                data.insert(place, draw.draw(st.integers(0, 255)))
    count = max(0, values.size + draw.draw(st.integers(-33, 33)))
    assert answer(in_c, bytes(data), count) == answer(decode_with_numpy, bytes(data), count)


def test_the_c_that_was_built_with_the_package_decodes(
    in_c: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def decoder(data: bytes, count: int) -> NDArray[np.int32]:
        asked.append(count)
        return in_c(data, count)

    monkeypatch.setattr(delta_library, "installed", lambda: decoder)
    assert delta_coding.decode(encode(np.arange(5, dtype=np.int32)), 5).tolist() == [0, 1, 2, 3, 4]
    assert asked == [5]


@pytest.mark.parametrize("content", [None, b"no library"])
def test_without_a_library_numpy_decodes_and_the_log_says_so_once(
    content: bytes | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    library = tmp_path / "_delta_decoder.so"
    if content is not None:
        library.write_bytes(content)
    monkeypatch.setattr(delta_library, "LIBRARY", library)
    delta_library.installed.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert delta_coding.decode(b"\x0c", 1).tolist() == [1]
    finally:
        delta_library.installed.cache_clear()
    (line,) = caplog.messages
    assert "decoded with numpy" in line
    assert "install a C compiler" in line
