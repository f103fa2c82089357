"""SHA-256 and CRC-32 against Python's hashlib and zlib."""

from __future__ import annotations

import ctypes
import hashlib
import random
import zlib

import pytest

from tests.device_runtime.host_library import RUNTIME, build_library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    built = build_library(tmp_path_factory.mktemp("hash"), sorted((RUNTIME / "hash").glob("*.c")))
    built.tf_crc32.restype = ctypes.c_uint32
    built.tf_crc32.argtypes = [ctypes.c_uint32, ctypes.c_char_p, ctypes.c_size_t]
    built.tf_sha256_add.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    return built


def sha256(library: ctypes.CDLL, pieces: list[bytes]) -> bytes:
    state = (ctypes.c_uint64 * 16)()  # larger than tf_sha256, which has 104 bytes
    digest = ctypes.create_string_buffer(32)
    library.tf_sha256_begin(state)
    for piece in pieces:
        library.tf_sha256_add(state, piece, len(piece))
    library.tf_sha256_finish(state, digest)
    return digest.raw


@pytest.mark.parametrize("length", [*range(131), 1000, 100_000])
def test_sha256_equals_hashlib_at_every_padding_edge(library: ctypes.CDLL, length: int) -> None:
    data = random.Random(length).randbytes(length)
    assert sha256(library, [data]) == hashlib.sha256(data).digest()


@pytest.mark.parametrize("seed", range(10))
def test_sha256_does_not_depend_on_how_bytes_are_cut(library: ctypes.CDLL, seed: int) -> None:
    draw = random.Random(seed)
    data = draw.randbytes(1000)
    cuts = sorted(draw.randrange(1001) for _ in range(20))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, 1000], strict=True)]
    assert sha256(library, pieces) == hashlib.sha256(data).digest()


def test_sha256_and_crc32_take_null_for_no_bytes(library: ctypes.CDLL) -> None:
    assert library.tf_crc32(5, None, 0) == 5
    state = (ctypes.c_uint64 * 16)()
    digest = ctypes.create_string_buffer(32)
    library.tf_sha256_begin(state)
    library.tf_sha256_add(state, None, 0)
    library.tf_sha256_finish(state, digest)
    assert digest.raw == hashlib.sha256().digest()


@pytest.mark.parametrize("seed", range(20))
def test_crc32_equals_zlib_and_can_be_continued(library: ctypes.CDLL, seed: int) -> None:
    draw = random.Random(seed)
    data = draw.randbytes(draw.randrange(400))
    cut = draw.randrange(len(data) + 1)
    assert library.tf_crc32(0, data, len(data)) == zlib.crc32(data)
    first = library.tf_crc32(0, data[:cut], cut)
    assert library.tf_crc32(first, data[cut:], len(data) - cut) == zlib.crc32(data)
