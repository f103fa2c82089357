import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from codegen.firmware.bundle import FlashInfo, RegionInfo, SamplesInfo
from fleet.protocol import schema
from simulator.devices.flash_image import (
    Identity,
    identity_region,
    provision,
    read_identity,
    read_sample_region,
    sample_region,
)
from simulator.errors import ImageError

IDENTITY = Identity("device-00", "demo", "secret", 1000, 9600)
DIGEST, OTHER_DIGEST = "12" * 32, "13" * 32
SINGLE = SamplesInfo(address=0, bytes=1 << 16, sectors=(0, 1), units=1)
RING = SamplesInfo(address=0, bytes=1 << 11, sectors=(0, 4), units=4)
HEADER = 32


def samples_of(count: int, size: int) -> NDArray[np.int8]:
    return np.arange(count * size, dtype=np.int64).astype(np.int8).reshape(count, size)


def content(count: int, size: int = 7, region: SamplesInfo = SINGLE) -> bytes:
    return sample_region(samples_of(count, size), np.arange(count) % 10, region, DIGEST)


@given(count=st.integers(0, 12), size=st.integers(1, 70), region=st.sampled_from([SINGLE, RING]))
def test_what_is_written_is_read_back(count: int, size: int, region: SamplesInfo) -> None:
    log = read_sample_region(content(count, size, region), region, DIGEST)
    assert log.labels.tolist() == [i % 10 for i in range(count)]
    assert log.held_out.tolist() == [i % 3 == 2 for i in range(count)]
    if count:
        assert log.samples.tolist() == samples_of(count, size).tolist()


def test_records_start_at_multiples_of_four_and_carry_the_magic() -> None:
    data = content(4, 7)
    first = HEADER
    while first < len(data):
        assert data[first : first + 2] == b"SL"
        first += 16 + int.from_bytes(data[first + 4 : first + 6], "little")
        first += -first % 4
    assert first == len(data)


def test_a_record_never_goes_over_the_end_of_a_unit() -> None:
    data = content(16, 80, RING)
    unit = RING.bytes // RING.units
    for start in range(0, len(data), unit):
        assert data[start : start + 4] == b"TFS1"
        assert int.from_bytes(data[start + 12 : start + 16], "little") == start // unit + 1


def test_a_damaged_payload_costs_one_sample_and_a_damaged_header_no_more() -> None:
    data = content(6, 8)
    record = 16 + 8
    for offset in (16, 0, 5):
        damaged = bytearray(data)
        damaged[len(data) - 3 * record + offset] ^= 1
        read = read_sample_region(bytes(damaged), SINGLE, DIGEST)
        assert read.labels.tolist() == [0, 1, 2, 4, 5]


@given(st.binary(max_size=200))
def test_garbage_behind_the_log_is_no_sample(garbage: bytes) -> None:
    assert len(read_sample_region(content(2) + garbage, SINGLE, DIGEST).labels) == 2


@given(st.binary(max_size=2048))
def test_garbage_is_no_log_and_no_identity(garbage: bytes) -> None:
    assert len(read_sample_region(garbage, RING, DIGEST).labels) == 0
    with pytest.raises(ImageError, match="no identity"):
        read_identity(garbage)


def test_samples_of_another_model_are_none() -> None:
    assert read_sample_region(content(5), SINGLE, OTHER_DIGEST).labels.tolist() == []


def test_too_many_samples_are_refused_with_both_sizes() -> None:
    small = SamplesInfo(address=0, bytes=1024, sectors=(0, 1), units=1)
    with pytest.raises(ImageError, match=r"100 samples of 64 bytes don't fit .* 1024 bytes"):
        sample_region(np.zeros((100, 64), np.int8), np.zeros(100, np.int64), small, DIGEST)
    with pytest.raises(ImageError, match="in 4 units"):
        content(1, 500, RING)


def test_a_device_gets_identity_and_samples_in_regions_of_their_own() -> None:
    def region(number: int) -> RegionInfo:
        return RegionInfo(address=number << 16, bytes=1 << 16, sectors=(number, 1))

    flash = FlashInfo(
        boot=region(0),
        identity=region(1),
        journal=region(2),
        firmware=region(3),
        slot_a=region(4),
        slot_b=region(5),
        samples=SamplesInfo(**dict(region(6)), units=1),
    )
    written = dict(provision(flash, DIGEST, IDENTITY, samples_of(3, 9), np.arange(3)))
    assert set(written) == {1 << 16, 6 << 16}
    assert written[1 << 16] == identity_region(IDENTITY)
    assert read_identity(written[1 << 16]) == IDENTITY
    assert read_sample_region(written[6 << 16], flash.samples, DIGEST).labels.tolist() == [0, 1, 2]
    with pytest.raises(ImageError, match="device-00: 3 samples of int8 and 2 labels"):
        provision(flash, DIGEST, IDENTITY, samples_of(3, 9), np.arange(2))


def test_keys_authority_and_keyring_are_records_behind_the_identity() -> None:
    plain = identity_region(IDENTITY)
    region = identity_region(IDENTITY, keys=b"k" * 96, keyring=b"r" * 101)
    assert region.startswith(plain)
    assert read_identity(region) == IDENTITY
    at = len(plain)
    assert region[at + 1] == 2
    assert region[at + 8 : at + 104] == b"k" * 96
    assert region[at + 105] == 4
    assert region[at + 112 : at + 213] == b"r" * 101
    assert identity_region(IDENTITY, authority=b"a" * 32)[at + 1] == 3


def test_a_label_for_each_sample_is_asked_for() -> None:
    with pytest.raises(ImageError, match="one label for each"):
        sample_region(np.zeros((3, 64), np.int8), np.zeros(2, np.int64), SINGLE, DIGEST)


def test_a_written_identity_is_what_the_firmware_is_told_by_the_protocol() -> None:
    record = identity_region(IDENTITY)
    size = int.from_bytes(record[2:4], "little")
    said = schema.validate("identity", record[8 : 8 + size])
    assert list(said.values()) == ["device-00", "demo", "secret", 1000, 9600]
