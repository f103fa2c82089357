import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.devices.flash_image import Identity, read_sample_region, sample_region
from simulator.errors import ImageError

IDENTITY = Identity("device-00", "demo", "secret", 1000, 9600)


def content(count: int, size: int = 7) -> bytes:
    samples = np.arange(count * size, dtype=np.int64).astype(np.int8).reshape(count, size)
    return sample_region(IDENTITY, samples, np.arange(count) % 10, 1 << 16)


@given(count=st.integers(0, 12), size=st.integers(1, 70))
def test_what_is_written_is_read_back(count: int, size: int) -> None:
    log = read_sample_region(content(count, size))
    assert log.identity == IDENTITY
    assert log.labels.tolist() == [i % 10 for i in range(count)]
    assert log.held_out.tolist() == [i % 3 == 2 for i in range(count)]
    if count:
        assert log.samples.reshape(-1).tolist() == [
            (i + 128) % 256 - 128 for i in range(count * size)
        ]


def test_records_start_at_multiples_of_four_and_carry_the_magic() -> None:
    data = content(4, 7)
    first = 0
    while first < len(data):
        assert data[first : first + 2] == b"SL"
        first += 16 + int.from_bytes(data[first + 4 : first + 6], "little")
        first += -first % 4
    assert first == len(data)


def test_a_damaged_payload_costs_one_sample_and_a_damaged_header_no_more() -> None:
    data = content(6, 8)
    record = 16 + 8
    for offset in (16, 0, 5):
        damaged = bytearray(data)
        damaged[len(data) - 3 * record + offset] ^= 1
        assert read_sample_region(bytes(damaged)).labels.tolist() == [0, 1, 2, 4, 5]


@given(st.binary(max_size=200))
def test_garbage_behind_the_log_is_no_sample(garbage: bytes) -> None:
    assert len(read_sample_region(content(2) + garbage).labels) == 2


def test_an_empty_region_has_no_identity() -> None:
    with pytest.raises(ImageError, match="no identity"):
        read_sample_region(b"\xff" * 1024)


def test_too_many_samples_are_refused_with_both_sizes() -> None:
    with pytest.raises(ImageError, match=r"device-00: 100 samples take .* region has 1024"):
        sample_region(IDENTITY, np.zeros((100, 64), np.int8), np.zeros(100, np.int64), 1024)


def test_a_label_for_each_sample_is_asked_for() -> None:
    with pytest.raises(ImageError, match="one label for each"):
        sample_region(IDENTITY, np.zeros((3, 64), np.int8), np.zeros(2, np.int64), 1024)
