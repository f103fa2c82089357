"""The sample log: appending, going round, damage and power cuts."""

import ctypes
import random

import numpy as np
import pytest

from codegen.firmware.bundle import SamplesInfo
from codegen.firmware.flash_layout import LogNeeds
from codegen.firmware.model_digest import slot_word
from simulator.devices.flash_image import read_sample_region, sample_region
from simulator.machines.host_structs import SampleRegion

from .conftest import (
    BAD_INPUT,
    FLASH_ADDRESS,
    FLASH_FAILED,
    NO_MEMORY,
    NOT_FOUND,
    OK,
    SECTOR_BYTES,
    Flash,
    Record,
    Region,
    SampleLog,
)

FIRST = 4
START = FIRST * SECTOR_BYTES
CLASSES = 10
DIGEST, OTHER_DIGEST = "0badcafe" + "00" * 28, "0badcaff" + "00" * 28
NEWEST, RESERVOIR = 0, 1
SIZE = 900
PER_UNIT = 4  # of that size, in a unit of 4,096 bytes


class Log:
    def __init__(
        self,
        library: ctypes.CDLL,
        flash: Flash,
        sectors: int = 4,
        units: int = 4,
        keep: int = NEWEST,
        model: str = DIGEST,
        seed: int = 1,
    ) -> None:
        self.library, self.flash, self.model, self.seed = library, flash, model, seed
        self.place = SampleRegion(Region.of_sectors(FIRST, sectors), units, keep)
        self.boot()

    def boot(self) -> "Log":
        self.flash.power_on()
        self.log = SampleLog()
        assert self.open() == OK
        return self

    def open(self) -> int:
        return self.library.tf_sample_log_open(
            ctypes.byref(self.log), ctypes.byref(self.flash), ctypes.byref(self.place),
            slot_word(self.model), self.seed,
        )  # fmt: skip

    def append(self, payload: bytes, label: int = 0) -> int:
        return self.library.tf_sample_log_append(
            ctypes.byref(self.log), label, payload, len(payload)
        )

    def next(self, cursor: ctypes.c_uint32) -> Record | None:
        record = Record()
        status = self.library.tf_sample_log_next(
            ctypes.byref(self.log), ctypes.byref(cursor), ctypes.byref(record)
        )
        assert status in (OK, NOT_FOUND)
        return record if status == OK else None

    def at(self, place: int) -> Record | None:
        record = Record()
        status = self.library.tf_sample_log_at(ctypes.byref(self.log), place, ctypes.byref(record))
        return record if status == OK else None

    def records(self) -> list[Record]:
        cursor, found = ctypes.c_uint32(0), []
        while (record := self.next(cursor)) is not None:
            found.append(record)
            assert len(found) < 100_000
        return found

    def labels(self) -> list[int]:
        return [record.label for record in self.records()]

    def count(self, held_out: bool, payload_bytes: int) -> int:
        return self.library.tf_sample_log_count(
            ctypes.byref(self.log), held_out, payload_bytes, CLASSES
        )

    @property
    def content(self) -> bytes:
        size = self.place.region.bytes
        return ctypes.string_at(ctypes.addressof(self.flash.content) + START, size)

    @content.setter
    def content(self, content: bytes) -> None:
        ctypes.memmove(ctypes.addressof(self.flash.content) + START, content, len(content))


@pytest.fixture
def log(library: ctypes.CDLL, flash: Flash) -> Log:
    return Log(library, flash)


@pytest.fixture
def single(library: ctypes.CDLL, flash: Flash) -> Log:
    return Log(library, flash, sectors=1, units=1)


def payloads(count: int, size: int = 13) -> list[bytes]:
    return [random.Random(seed).randbytes(size) for seed in range(count)]


def sample(label: int) -> bytes:
    """So long that four fill a unit."""
    return random.Random(label).randbytes(SIZE)


# --- One unit ---------------------------------------------------------------------------------


def test_what_is_appended_is_read_back_after_a_reset(log: Log) -> None:
    for label, payload in enumerate(payloads(9)):
        assert log.append(payload, label) == OK
    records = log.boot().records()
    assert [record.data() for record in records] == payloads(9)
    assert [record.label for record in records] == list(range(9))
    for record in records:
        found = log.at(record.place)
        assert found is not None
        assert found.data() == record.data()
        assert log.at(record.place + 1) is None


def test_every_third_sample_is_held_out_also_after_a_reset(log: Log) -> None:
    for payload in payloads(4):
        assert log.append(payload) == OK
    log.boot()
    for payload in payloads(5):
        assert log.append(payload) == OK
    held_out = [record.held_out for record in log.records()]
    assert held_out == [ordinal % 3 == 2 for ordinal in range(9)]
    assert log.count(True, 13) == 3
    assert log.count(False, 13) == 6
    assert log.count(False, 12) == 0


def test_samples_of_classes_that_the_model_does_not_have_are_not_counted(log: Log) -> None:
    assert log.append(bytes(13), label=CLASSES - 1) == OK
    assert log.append(bytes(13), label=CLASSES) == OK
    assert log.count(False, 13) == 1


@pytest.mark.parametrize("byte", range(16 + 13))
def test_a_damaged_byte_costs_one_record_only(log: Log, byte: int) -> None:
    for label, payload in enumerate(payloads(5)):
        assert log.append(payload, label) == OK
    victim = log.records()[2]
    log.flash.content[START + victim.place * 4 + byte] ^= 0x10
    assert log.boot().labels() == [0, 1, 3, 4]


def test_records_after_a_stretch_of_garbage_are_found(log: Log) -> None:
    assert log.append(b"before") == OK
    end = log.log.end
    log.flash.content[START + end : START + end + 100] = list(random.Random(4).randbytes(100))
    assert log.boot().append(b"after") == OK
    assert [record.data() for record in log.records()] == [b"before", b"after"]


def test_a_full_log_of_one_unit_refuses_and_keeps_what_it_has(single: Log) -> None:
    statuses = [single.append(payload) for payload in payloads(200)]
    capacity = LogNeeds(13, 1, 0).capacity(SECTOR_BYTES, 1)
    assert statuses.count(OK) == capacity
    assert set(statuses[capacity:]) == {NO_MEMORY}
    assert len(single.boot().records()) == capacity
    assert single.append(payloads(1)[0]) == NO_MEMORY


def test_a_payload_that_looks_erased_is_kept_apart_from_the_next_record(log: Log) -> None:
    assert log.append(b"\xff" * 40) == OK
    assert log.boot().append(b"next") == OK
    assert [record.data() for record in log.records()] == [b"\xff" * 40, b"next"]


def test_a_power_cut_at_every_operation_of_an_append_costs_at_most_that_record(log: Log) -> None:
    for payload in payloads(3):
        assert log.append(payload) == OK
    before = log.content
    for cut in range(1, 4 + 4 + 1):
        log.content = before
        log.boot()
        log.flash.power_on(operations_to_cut=cut)
        log.flash.random = cut
        assert log.append(b"lost payload!") == FLASH_FAILED
        assert log.boot().append(b"afterwards") == OK
        found = [record.data() for record in log.records()]
        assert found[:3] == payloads(3)
        assert found[-1] == b"afterwards"
        assert set(found[3:]) <= {b"lost payload!", b"afterwards"}
    assert cut == 8


def test_a_payload_longer_than_a_record_can_say_or_a_unit_holds_is_refused(log: Log) -> None:
    assert log.append(bytes(0x100000)) == BAD_INPUT
    assert log.append(bytes(0xFFFFF)) == NO_MEMORY
    assert log.append(bytes(SECTOR_BYTES - 32 - 16 - 3)) == NO_MEMORY
    assert log.flash.operations == 0
    assert log.append(bytes(SECTOR_BYTES - 32 - 16 - 4)) == OK


# --- Several units ----------------------------------------------------------------------------


def test_the_log_goes_round_and_keeps_the_newest(log: Log) -> None:
    for label in range(200):
        assert log.append(sample(label), label) == OK
        kept = log.labels()
        assert kept == list(range(kept[0], label + 1)), "the newest, without a gap"
        assert len(kept) > 3 * PER_UNIT or label < 3 * PER_UNIT
    records = log.boot().records()
    assert log.labels() == kept
    assert [record.data() for record in records] == [sample(label) for label in kept]
    assert [record.held_out for record in records] == [label % 3 == 2 for label in kept]
    assert not log.flash.rewrote


def test_ordinals_go_on_over_resets_and_rounds(log: Log) -> None:
    for label in range(150):
        assert log.append(sample(label), label) == OK
        if label % 7 == 0:
            log.boot()
        for record in log.records():
            assert record.held_out == (record.label % 3 == 2)


def test_erasing_one_unit_after_the_other_wears_all_alike(log: Log) -> None:
    erased = [0, 0, 0, 0]
    before = log.log.unit
    for label in range(1, 40 * PER_UNIT):
        assert log.append(sample(label), label) == OK
        if log.log.unit != before:
            before = log.log.unit
            erased[before] += 1
    assert max(erased) - min(erased) <= 1


def test_units_of_several_sectors_go_round_as_well(library: ctypes.CDLL, flash: Flash) -> None:
    log = Log(library, flash, sectors=6, units=2)
    size = 5000
    for label in range(20):
        assert log.append(random.Random(label).randbytes(size), label) == OK
    kept = log.boot().labels()
    assert kept == list(range(20 - len(kept), 20))
    assert len(kept) >= LogNeeds(size, 1, 0).capacity(3 * SECTOR_BYTES, 2)


@pytest.mark.parametrize("filled", [7, 16, 17, 20, 41])
def test_a_power_cut_at_every_operation_costs_no_more_than_the_record_and_the_oldest_unit(
    log: Log, filled: int
) -> None:
    for label in range(filled):
        assert log.append(sample(label), label) == OK
    old = log.labels()
    before = log.content
    log.boot()
    assert log.append(sample(filled), filled) == OK
    operations = log.flash.operations
    stay = [label for label in log.labels() if label != filled]
    assert operations >= 4 + SIZE // 4
    for cut in range(1, operations + 1):
        log.content = before
        log.boot()
        log.flash.random = cut
        log.flash.power_on(operations_to_cut=cut)
        assert log.append(sample(filled), filled) == FLASH_FAILED
        found = log.boot().labels()
        assert found == sorted(found)
        assert set(stay) <= set(found) <= {*old, filled}, f"operation {cut}"
        assert log.append(sample(filled + 1), filled + 1) == OK
        records = log.boot().records()
        assert records[-1].label == filled + 1
        assert set(stay) <= {record.label for record in records}, "a second unit was erased"
        assert all(record.data() == sample(record.label) for record in records)
        held = [record.held_out for record in records if record.label <= filled]
        assert held == [r.label % 3 == 2 for r in records if r.label <= filled]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("keep", [NEWEST, RESERVOIR])
def test_many_cuts_in_a_row_never_lose_the_units_that_had_not_to_go(
    log: Log, seed: int, keep: int
) -> None:
    dice = random.Random(seed)
    log.place.keep = keep
    log.boot()
    log.flash.random = seed
    stored: set[int] = set()
    for label in range(400):
        log.flash.power_on(operations_to_cut=dice.choice([0, dice.randint(1, 300)]))
        is_stored = log.append(sample(label), label) == OK
        log.boot()
        records = log.records()
        found = {record.label for record in records}
        assert all(record.data() == sample(record.label) for record in records)
        assert len(stored - found) <= PER_UNIT, "more than a unit was lost"
        assert found <= {*stored, label}
        assert keep == RESERVOIR or label in found or not is_stored
        stored = found
    assert len(stored) >= PER_UNIT


def test_a_cursor_goes_on_while_samples_are_added_and_the_oldest_unit_goes(log: Log) -> None:
    for label in range(4 * PER_UNIT):
        assert log.append(sample(label), label) == OK
    cursor = ctypes.c_uint32(0)
    seen = []
    added = 4 * PER_UNIT
    while (record := log.next(cursor)) is not None:
        seen.append(record.label)
        for _ in range(3 if added < 4 * PER_UNIT + 6 else 0):
            assert log.append(sample(added), added) == OK
            added += 1
    # Of the first two units one each was seen before they went; then all that was there, and came.
    assert seen == [0, PER_UNIT, *range(2 * PER_UNIT, 4 * PER_UNIT + 6)]


def test_a_place_whose_sample_had_to_go_holds_none_or_another_sample(log: Log) -> None:
    for label in range(4 * PER_UNIT):
        assert log.append(sample(label), label) == OK
    place = log.records()[1].place
    assert log.append(sample(50), 50) == OK
    assert log.at(place) is None
    assert log.append(sample(51), 51) == OK
    found = log.at(place)
    assert found is not None
    assert found.label == 51
    assert log.at(0xFFFF) is None


def test_samples_of_another_model_are_as_if_erased(library: ctypes.CDLL, flash: Flash) -> None:
    log = Log(library, flash)
    for label in range(10):
        assert log.append(sample(label), label) == OK
    other = Log(library, flash, model=OTHER_DIGEST)
    assert other.records() == []
    assert other.count(False, SIZE) == other.count(True, SIZE) == 0
    assert other.at(8) is None
    for label in range(PER_UNIT):
        assert other.append(sample(label), label) == OK
    assert [record.held_out for record in other.records()] == [False, False, True, False]
    # The first model finds what no other one has overwritten, and goes on counting.
    log.boot()
    assert log.labels() == list(range(PER_UNIT, 10))
    assert log.append(sample(11), 11) == OK
    assert log.records()[-1].held_out == (10 % 3 == 2)


def test_a_log_that_another_model_has_filled_takes_samples(
    library: ctypes.CDLL, flash: Flash
) -> None:
    single = Log(library, flash, sectors=1, units=1)
    while single.append(sample(0)) == OK:
        pass
    other = Log(library, flash, sectors=1, units=1, model=OTHER_DIGEST)
    assert other.append(sample(7), 7) == OK
    assert other.boot().labels() == [7]


def test_units_of_another_size_are_as_if_erased(library: ctypes.CDLL, flash: Flash) -> None:
    log = Log(library, flash)
    for label in range(10):
        assert log.append(sample(label), label) == OK
    wider = Log(library, flash, units=2)
    assert wider.records() == []
    for label in range(20):
        assert wider.append(sample(label), label) == OK
    kept = wider.labels()
    assert kept == list(range(20 - len(kept), 20))


@pytest.mark.parametrize("offset", range(0, 32, 3))
def test_a_damaged_unit_costs_its_own_samples_only(log: Log, offset: int) -> None:
    for label in range(4 * PER_UNIT):
        assert log.append(sample(label), label) == OK
    log.flash.content[START + 2 * SECTOR_BYTES + offset] ^= 0x20
    kept = [label for label in range(16) if label // PER_UNIT != 2]
    assert log.boot().labels() == kept
    for label in range(16, 30):
        assert log.append(sample(label), label) == OK
        assert label in log.labels()


@pytest.mark.parametrize("seed", range(4))
def test_a_region_full_of_garbage_has_no_samples_and_takes_new_ones(
    library: ctypes.CDLL, flash: Flash, seed: int
) -> None:
    log = Log(library, flash)
    log.content = random.Random(seed).randbytes(4 * SECTOR_BYTES)
    assert log.boot().records() == []
    for label in range(30):
        assert log.append(sample(label), label) == OK
    assert len(log.boot().records()) > 3 * PER_UNIT


@pytest.mark.parametrize("worn", [(0,), (2,), (3,), (0, 3)])
@pytest.mark.parametrize("keep", [NEWEST, RESERVOIR])
def test_sectors_that_are_worn_out_cost_their_room_and_no_sample(
    log: Log, worn: tuple[int, ...], keep: int
) -> None:
    log.place.keep = keep
    for sector in worn:
        log.flash.worn |= 1 << (FIRST + sector)
    for label in range(80):
        assert log.append(sample(label), label) == OK
        if label % 9 == 0:
            log.boot()
    kept = log.labels()
    assert len(kept) >= (3 - len(worn)) * PER_UNIT
    assert keep == RESERVOIR or kept == list(range(kept[0], 80))


def test_the_only_unit_that_is_not_worn_out_keeps_what_it_has(log: Log) -> None:
    log.flash.worn = 0b1101 << FIRST
    statuses = [log.append(sample(label), label) for label in range(10)]
    assert statuses == [OK] * PER_UNIT + [FLASH_FAILED] * (10 - PER_UNIT)
    assert log.boot().labels() == list(range(PER_UNIT))


def test_erasing_leaves_nothing_and_starts_anew(log: Log) -> None:
    for label in range(10):
        assert log.append(sample(label), label) == OK
    assert log.library.tf_sample_log_erase(ctypes.byref(log.log)) == OK
    assert log.records() == []
    assert set(log.content) == {0xFF}
    for label in range(3):
        assert log.append(sample(label), label) == OK
    assert [record.held_out for record in log.boot().records()] == [False, False, True]


@pytest.mark.parametrize(("sectors", "units"), [(4, 0), (4, 3), (4, 8), (300, 2)])
def test_a_region_that_is_not_divided_into_whole_sectors_is_refused(
    library: ctypes.CDLL, flash: Flash, sectors: int, units: int
) -> None:
    log = Log(library, flash)
    log.place = SampleRegion(Region.of_sectors(FIRST, sectors), units, NEWEST)
    assert log.open() == (FLASH_FAILED if sectors == 300 else BAD_INPUT)


# --- Large regions, and what the simulator writes ---------------------------------------------

LARGE_REGIONS = [(64, 4), (66, 8), (132, 16)]
"""Sectors, and bytes of a place."""


@pytest.fixture(params=LARGE_REGIONS, ids=["256K", "264K", "528K"])
def large(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


@pytest.mark.parametrize("units", [1, 2])
def test_records_of_a_large_region_start_at_places_that_16_bits_number(
    library: ctypes.CDLL, flash: Flash, large: tuple[int, int], units: int
) -> None:
    sectors, place_bytes = large
    samples = [random.Random(size).randbytes(size) for size in (1, 16, 70_001, 40_000, 65_535, 3)]
    log = Log(library, flash, sectors, units)
    for label, data in enumerate(samples):
        assert log.append(data, label) == OK
    assert log.boot().log.place_bytes == place_bytes
    assert sectors * SECTOR_BYTES // place_bytes <= 65536
    records = log.records()
    assert [record.data() for record in records] == samples
    for record in records:
        address = ctypes.addressof(record.payload.contents) - 16
        start = ctypes.addressof(flash.content) + START
        assert address == start + record.place * place_bytes


def test_a_torn_header_in_a_large_region_costs_one_record_only(
    library: ctypes.CDLL, flash: Flash, large: tuple[int, int]
) -> None:
    log = Log(library, flash, large[0], 2)
    assert log.append(b"before") == OK
    flash.power_on(operations_to_cut=3)
    assert log.append(bytes(70_000)) == FLASH_FAILED
    assert log.boot().append(b"after") == OK
    assert [record.data() for record in log.boot().records()] == [b"before", b"after"]


def info_of(sectors: int, units: int) -> SamplesInfo:
    return SamplesInfo(
        address=FLASH_ADDRESS + START,
        bytes=sectors * SECTOR_BYTES,
        sectors=(FIRST, sectors),
        units=units,
    )


@pytest.mark.parametrize("units", [1, 2])
def test_what_the_simulator_writes_is_what_the_device_reads(
    library: ctypes.CDLL, flash: Flash, large: tuple[int, int], units: int
) -> None:
    count = 3 if units == 1 else 2  # no unit of 128K has room for two
    samples = np.random.default_rng(3).integers(-128, 128, (count, 70_001)).astype(np.int8)
    info = info_of(large[0], units)
    content = sample_region(samples, np.array([4, 2, 7])[:count], info, DIGEST)
    log = Log(library, flash, large[0], units)
    log.content = content
    records = log.boot().records()
    assert [record.data() for record in records] == [each.tobytes() for each in samples]
    expected = [(4, False), (2, False), (7, True)][:count]
    assert [(record.label, record.held_out) for record in records] == expected
    assert np.array_equal(read_sample_region(content, info, DIGEST).samples, samples)


def test_what_the_device_writes_is_what_the_simulator_reads_and_the_other_way_round(
    log: Log,
) -> None:
    for label in range(30):
        assert log.append(sample(label), label) == OK
    info = info_of(4, 4)
    read = read_sample_region(log.content, info, DIGEST)
    assert read.labels.tolist() == log.labels()
    assert read.held_out.tolist() == [record.held_out for record in log.records()]
    assert read_sample_region(log.content, info, OTHER_DIGEST).labels.tolist() == []
    written = sample_region(read.samples, read.labels, info, DIGEST)
    ctypes.memset(ctypes.addressof(log.flash.content) + START, 0xFF, 4 * SECTOR_BYTES)
    log.content = written
    assert log.boot().labels() == read.labels.tolist()
    assert log.append(sample(77), 77) == OK
    assert log.labels()[-1] == 77
