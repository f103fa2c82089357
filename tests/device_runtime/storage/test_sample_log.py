"""The sample log: appending, damage and power cuts."""

import ctypes
import random

import numpy as np
import pytest

from simulator.devices.flash_image import Identity, read_sample_region, sample_region

from .conftest import (
    BAD_INPUT,
    FLASH_FAILED,
    NO_MEMORY,
    NOT_FOUND,
    OK,
    Flash,
    Record,
    Region,
    SampleLog,
)

REGION = Region.of_sectors(4, 1)
REGION_AT = 4 * 4096
IDENTITY, SAMPLE = 1, 2
CLASSES = 10


class Log:
    def __init__(self, library: ctypes.CDLL, flash: Flash, region: Region = REGION) -> None:
        self.library, self.flash = library, flash
        self.log = SampleLog()
        status = library.tf_sample_log_open(
            ctypes.byref(self.log), ctypes.byref(flash), ctypes.byref(region)
        )
        assert status == OK

    def append(self, payload: bytes, label: int = 0, kind: int = SAMPLE) -> int:
        return self.library.tf_sample_log_append(
            ctypes.byref(self.log), kind, label, payload, len(payload)
        )

    def records(self) -> list[Record]:
        cursor, found = ctypes.c_uint32(0), []
        while True:
            record = Record()
            status = self.library.tf_sample_log_next(
                ctypes.byref(self.log), ctypes.byref(cursor), ctypes.byref(record)
            )
            if status != OK:
                assert status == NOT_FOUND
                return found
            found.append(record)

    def identity(self) -> bytes | None:
        record = Record()
        status = self.library.tf_sample_log_identity(ctypes.byref(self.log), ctypes.byref(record))
        return record.data() if status == OK else None

    def count(self, held_out: bool, payload_bytes: int) -> int:
        return self.library.tf_sample_log_count(
            ctypes.byref(self.log), held_out, payload_bytes, CLASSES
        )


@pytest.fixture
def log(library: ctypes.CDLL, flash: Flash) -> Log:
    return Log(library, flash)


def payloads(count: int, size: int = 13) -> list[bytes]:
    return [random.Random(seed).randbytes(size) for seed in range(count)]


def test_what_is_appended_is_read_back_after_a_reset(log: Log) -> None:
    for label, payload in enumerate(payloads(9)):
        assert log.append(payload, label) == OK
    records = Log(log.library, log.flash).records()
    assert [record.data() for record in records] == payloads(9)
    assert [record.label for record in records] == list(range(9))
    assert all(record.offset % 4 == 0 for record in records)


def test_every_third_sample_is_held_out_and_identities_do_not_count(log: Log) -> None:
    assert log.append(b"me", kind=IDENTITY) == OK
    for payload in payloads(4):
        assert log.append(payload) == OK
    log = Log(log.library, log.flash)
    assert log.append(b"me again", kind=IDENTITY) == OK
    for payload in payloads(5):
        assert log.append(payload) == OK
    held_out = [record.held_out for record in log.records() if record.type == SAMPLE]
    assert held_out == [ordinal % 3 == 2 for ordinal in range(9)]
    assert log.count(True, 13) == 3
    assert log.count(False, 13) == 6
    assert log.count(False, 12) == 0


def test_samples_of_classes_that_the_model_does_not_have_are_not_counted(log: Log) -> None:
    assert log.append(bytes(13), label=CLASSES - 1) == OK
    assert log.append(bytes(13), label=CLASSES) == OK
    assert log.count(False, 13) == 1


def test_the_newest_intact_identity_counts(log: Log) -> None:
    assert log.identity() is None
    assert log.append(b"first", kind=IDENTITY) == OK
    assert log.append(b"second", kind=IDENTITY) == OK
    assert log.identity() == b"second"
    newest = max(record.offset for record in log.records())
    log.flash.content[REGION_AT + newest + 16] ^= 1
    assert log.identity() == b"first"


@pytest.mark.parametrize("byte", range(16 + 13))
def test_a_damaged_byte_costs_one_record_only(log: Log, byte: int) -> None:
    for label, payload in enumerate(payloads(5)):
        assert log.append(payload, label) == OK
    victim = log.records()[2]
    log.flash.content[REGION_AT + victim.offset + byte] ^= 0x10
    assert [record.label for record in Log(log.library, log.flash).records()] == [0, 1, 3, 4]


def test_records_after_a_stretch_of_garbage_are_found(log: Log) -> None:
    assert log.append(b"before") == OK
    end = log.log.end
    log.flash.content[REGION_AT + end : REGION_AT + end + 100] = list(
        random.Random(4).randbytes(100)
    )
    log = Log(log.library, log.flash)
    assert log.append(b"after") == OK
    assert [record.data() for record in log.records()] == [b"before", b"after"]


def test_a_full_log_refuses_and_keeps_what_it_has(log: Log) -> None:
    statuses = [log.append(payload) for payload in payloads(200)]
    assert statuses.count(OK) == 4096 // 32
    assert set(statuses[statuses.count(OK) :]) == {NO_MEMORY}
    assert len(Log(log.library, log.flash).records()) == statuses.count(OK)


def test_a_payload_that_looks_erased_is_kept_apart_from_the_next_record(log: Log) -> None:
    assert log.append(b"\xff" * 40) == OK
    log = Log(log.library, log.flash)
    assert log.append(b"next") == OK
    assert [record.data() for record in log.records()] == [b"\xff" * 40, b"next"]


def test_a_power_cut_at_every_operation_of_an_append_costs_at_most_that_record(log: Log) -> None:
    for payload in payloads(3):
        assert log.append(payload) == OK
    before = bytes(log.flash.content)
    for cut in range(1, 4 + 4 + 1):
        ctypes.memmove(log.flash.content, before, len(before))
        log = Log(log.library, log.flash)
        log.flash.power_on(operations_to_cut=cut)
        log.flash.random = cut
        assert log.append(b"lost payload!") == FLASH_FAILED
        log.flash.power_on()
        log = Log(log.library, log.flash)
        assert log.append(b"afterwards") == OK
        found = [record.data() for record in log.records()]
        assert found[:3] == payloads(3)
        assert found[-1] == b"afterwards"
        assert set(found[3:]) <= {b"lost payload!", b"afterwards"}
    assert cut == 8


LARGE_REGIONS = [
    (Region.of_sectors(4, 64), 4),
    (Region.of_sectors(4, 65), 8),
    (Region.of_sectors(4, 130), 16),
]


@pytest.fixture(params=LARGE_REGIONS, ids=["256K", "260K", "520K"])
def large(request: pytest.FixtureRequest) -> tuple[Region, int]:
    return request.param


def test_records_of_a_large_region_start_at_places_that_16_bits_number(
    library: ctypes.CDLL, flash: Flash, large: tuple[Region, int]
) -> None:
    region, unit = large
    samples = [random.Random(size).randbytes(size) for size in (1, 16, 70_001, 90_000, 65_535, 3)]
    log = Log(library, flash, region)
    for label, sample in enumerate(samples):
        assert log.append(sample, label) == OK
    log = Log(library, flash, region)
    assert log.log.unit == unit
    assert region.bytes // unit <= 65536
    records = log.records()
    assert [record.data() for record in records] == samples
    assert {record.offset % unit for record in records} == {0}
    assert log.append(bytes(region.bytes), 0) == NO_MEMORY
    assert log.append(bytes(16), 0) == OK


def test_a_torn_header_in_a_large_region_costs_one_record_only(
    library: ctypes.CDLL, flash: Flash, large: tuple[Region, int]
) -> None:
    region, _ = large
    log = Log(library, flash, region)
    assert log.append(b"before") == OK
    flash.power_on(operations_to_cut=3)
    assert log.append(bytes(70_000)) == FLASH_FAILED
    flash.power_on()
    log = Log(library, flash, region)
    assert log.append(b"after") == OK
    found = [record.data() for record in Log(library, flash, region).records()]
    assert found == [b"before", b"after"]


def test_a_payload_longer_than_a_record_can_say_is_refused(log: Log) -> None:
    assert log.append(bytes(0x100000)) == BAD_INPUT
    assert log.append(bytes(0xFFFFF)) == NO_MEMORY
    assert log.flash.operations == 0


def test_what_the_simulator_writes_is_what_the_device_reads(
    library: ctypes.CDLL, flash: Flash, large: tuple[Region, int]
) -> None:
    region, _ = large
    samples = np.random.default_rng(3).integers(-128, 128, (3, 70_001)).astype(np.int8)
    identity = Identity("device-00", "demo", "secret")
    content = sample_region(identity, samples, np.array([4, 2, 7]), region.bytes)
    ctypes.memmove(ctypes.addressof(flash.content) + REGION_AT, content, len(content))
    log = Log(library, flash, region)
    records = [record for record in log.records() if record.type == SAMPLE]
    assert [record.data() for record in records] == [sample.tobytes() for sample in samples]
    assert [(r.label, r.held_out) for r in records] == [(4, False), (2, False), (7, True)]
    read = read_sample_region(content, region.bytes)
    assert read.identity == identity
    assert np.array_equal(read.samples, samples)
