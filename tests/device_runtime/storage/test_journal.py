"""The journal, with the power cut at every flash operation, and the identity region."""

import ctypes
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.devices.flash_image import Identity, identity_region, read_identity
from simulator.errors import ImageError

from .conftest import (
    BAD_INPUT,
    FLASH_FAILED,
    NO_MEMORY,
    NOT_FOUND,
    OK,
    SECTOR_BYTES,
    Flash,
    Journal,
    Region,
)

REGION = Region.of_sectors(4, 2)
START = 4 * SECTOR_BYTES
LEASE, FAULT, TASK, MASK, LATER, LARGE = 1, 2, 3, 4, 77, 200
"""The last two are kinds that this firmware knows nothing of."""
NUMBERS = {LEASE: 1, TASK: (5 << 32) + 1, MASK: 1}
"""Kinds of numbers that never go back, and steps in which each is raised."""


class Device:
    def __init__(self, library: ctypes.CDLL, flash: Flash, region: Region = REGION) -> None:
        self.library, self.flash, self.region = library, flash, region
        self.boot()

    def boot(self) -> None:
        self.flash.power_on()
        self.journal = Journal()
        status = self.library.tf_journal_open(
            ctypes.byref(self.journal), ctypes.byref(self.flash), ctypes.byref(self.region)
        )
        assert status == OK

    def write(self, kind: int, payload: bytes) -> int:
        return self.library.tf_journal_write(
            ctypes.byref(self.journal), kind, payload, len(payload)
        )

    def read(self, kind: int) -> bytes | None:
        place, size = ctypes.c_void_p(), ctypes.c_uint32()
        status = self.library.tf_journal_read(
            ctypes.byref(self.journal), kind, ctypes.byref(place), ctypes.byref(size)
        )
        if status != OK:
            assert status == NOT_FOUND
            return None
        return ctypes.string_at(place, size.value)

    def raise_lease(self, lease: int) -> int:
        return self.raise_number(LEASE, lease)

    def raise_number(self, kind: int, value: int) -> int:
        return self.library.tf_journal_raise(
            ctypes.byref(self.journal), kind, ctypes.c_uint64(value)
        )

    def highest(self, kind: int) -> int:
        return self.library.tf_journal_highest(ctypes.byref(self.journal), kind)

    @property
    def lease(self) -> int:
        return self.highest(LEASE)

    @property
    def content(self) -> bytes:
        return ctypes.string_at(ctypes.addressof(self.flash.content) + START, 2 * SECTOR_BYTES)

    @content.setter
    def content(self, content: bytes) -> None:
        ctypes.memmove(ctypes.addressof(self.flash.content) + START, content, len(content))

    def state(self) -> dict[int, bytes | None]:
        return {kind: self.read(kind) for kind in (LEASE, FAULT, LATER, LARGE)}


@pytest.fixture
def device(library: ctypes.CDLL, flash: Flash) -> Device:
    return Device(library, flash)


def bytes_of(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def test_what_is_written_is_read_back_after_a_reset_and_the_newest_counts(device: Device) -> None:
    assert device.state() == dict.fromkeys((LEASE, FAULT, LATER, LARGE))
    assert device.lease == 0
    for seed, size in ((1, 28), (2, 7), (3, 0)):
        assert device.write(FAULT, bytes_of(seed, size)) == OK
        assert device.write(LATER, bytes_of(seed + 9, 33)) == OK
        assert device.raise_lease(seed) == OK
        device.boot()
        assert device.read(FAULT) == bytes_of(seed, size)
        assert device.read(LATER) == bytes_of(seed + 9, 33)
        assert device.lease == seed
    assert not device.flash.rewrote


def test_what_the_newest_record_says_already_is_not_written_again(device: Device) -> None:
    assert device.write(FAULT, b"hard fault") == OK
    device.boot()
    for _ in range(10_000):
        assert device.write(FAULT, b"hard fault") == OK
    assert device.flash.operations == 0
    assert device.write(FAULT, b"hard faults") == OK
    assert device.read(FAULT) == b"hard faults"


def test_a_lease_never_goes_back(device: Device) -> None:
    assert device.raise_lease(7) == OK
    operations = device.flash.operations
    for lower in (7, 6, 0):
        assert device.raise_lease(lower) == OK
    assert device.flash.operations == operations
    assert device.lease == 7
    device.boot()
    assert device.lease == 7
    assert device.raise_lease(0xFFFFFFFF) == OK
    device.boot()
    assert device.lease == 0xFFFFFFFF


def test_the_newest_of_every_kind_moves_along_also_of_kinds_that_nobody_knows(
    device: Device,
) -> None:
    kept = {kind: bytes_of(kind, kind % 40) for kind in (0, 3, LATER, 254, 255)}
    assert device.raise_lease(41) == OK
    for kind, payload in kept.items():
        assert device.write(kind, b"older") == OK
        assert device.write(kind, payload) == OK
    sequence = device.journal.sequence
    for turn in range(40):
        assert device.write(LARGE, bytes_of(turn, 1000)) == OK
        assert {kind: device.read(kind) for kind in kept} == kept
        assert device.lease == 41
        device.boot()
        assert {kind: device.read(kind) for kind in kept} == kept
        assert device.read(LARGE) == bytes_of(turn, 1000)
    assert device.journal.sequence > sequence + 10
    assert not device.flash.rewrote


def script() -> Iterator[tuple[int, bytes]]:
    """Goes round three times and more."""
    for turn in range(16):
        yield LARGE, bytes_of(turn, 900 + turn)
        if turn % 3 == 0:
            yield LEASE, (turn + 1).to_bytes(4, "little")
        if turn == 1:
            yield LATER, b"written once, long ago"
        if turn % 4 == 1:
            yield FAULT, bytes_of(turn, 24)


def perform(device: Device, kind: int, payload: bytes) -> int:
    if kind == LEASE:
        return device.raise_lease(int.from_bytes(payload, "little"))
    return device.write(kind, payload)


def lease_of(state: dict[int, bytes | None]) -> int:
    return int.from_bytes(state[LEASE] or b"", "little")


def test_a_power_cut_at_every_operation_leaves_old_or_new_of_everything(device: Device) -> None:
    expected: dict[int, bytes | None] = dict.fromkeys((LEASE, FAULT, LATER, LARGE))
    steps = list(script())
    cuts = 0
    for number, (kind, payload) in enumerate(steps):
        before, sequence = device.content, device.journal.sequence
        device.boot()
        assert perform(device, kind, payload) == OK
        done, operations = device.content, device.flash.operations
        # Whether a rotation was torn shows for good only once the next one has erased its source.
        rest = steps[number + 1 :] if device.journal.sequence != sequence else ()
        for cut in range(1, operations + 1):
            device.content = before
            device.boot()
            device.flash.random = cuts
            device.flash.power_on(operations_to_cut=cut)
            assert perform(device, kind, payload) == FLASH_FAILED
            device.boot()
            found = device.state()
            assert found in (expected, {**expected, kind: payload}), f"operation {cut}"
            assert device.lease == lease_of(found)
            assert perform(device, kind, payload) == OK
            device.boot()
            assert device.state() == {**expected, kind: payload}
            for following in rest:
                assert perform(device, *following) == OK
            assert device.state() == {**expected, kind: payload, **dict(rest)}
            cuts += 1
        device.content = done
        device.boot()
        expected[kind] = payload
        assert device.state() == expected
    assert device.journal.sequence >= 4
    assert cuts > 4000


@pytest.mark.parametrize("seed", range(10))
def test_many_cuts_in_a_row_never_take_a_number_back(device: Device, seed: int) -> None:
    dice = random.Random(seed)
    device.flash.random = seed
    acknowledged, attempted = dict.fromkeys(NUMBERS, 0), dict.fromkeys(NUMBERS, 0)
    for turn in range(600):
        device.flash.power_on(operations_to_cut=dice.choice([0, dice.randint(1, 400)]))
        for _ in range(dice.randint(1, 3)):
            kind = dice.choice(list(NUMBERS))
            wanted = acknowledged[kind] + dice.randint(0, 3) * NUMBERS[kind]
            attempted[kind] = max(attempted[kind], wanted)
            if device.raise_number(kind, attempted[kind]) == OK:
                acknowledged[kind] = attempted[kind]
            if dice.random() < 0.3:
                device.write(LARGE, bytes_of(turn, 800))
        device.boot()
        for kind in NUMBERS:
            assert acknowledged[kind] <= device.highest(kind) <= attempted[kind]
            acknowledged[kind] = device.highest(kind)
    assert device.journal.sequence > 5
    assert all(acknowledged[kind] > 100 * step for kind, step in NUMBERS.items())


@pytest.mark.parametrize(("kind", "value"), [(TASK, (7 << 32) + 9), (MASK, 2**32 - 1)])
def test_numbers_have_the_bytes_of_the_page(device: Device, kind: int, value: int) -> None:
    assert device.raise_number(kind, value) == OK
    assert device.raise_number(kind, value - 1) == OK
    words = [value >> 32, value & 0xFFFFFFFF] if kind == TASK else [value]
    assert device.read(kind) == b"".join(word.to_bytes(4, "little") for word in words)
    device.boot()
    assert device.highest(kind) == value


def test_what_is_no_number_cannot_be_raised(device: Device) -> None:
    assert device.raise_number(FAULT, 5) == BAD_INPUT
    assert device.highest(FAULT) == 0
    assert device.flash.operations == 0


def test_a_flash_that_fails_loses_nothing_and_the_next_write_goes_through(device: Device) -> None:
    assert device.raise_lease(5) == OK
    device.flash.power_on(operations_to_cut=2)
    assert device.raise_lease(6) == FLASH_FAILED
    assert device.lease == 5
    device.flash.power_on()
    assert device.raise_lease(6) == OK
    device.boot()
    assert device.lease == 6


@pytest.mark.parametrize("seed", range(8))
def test_units_full_of_garbage_are_an_empty_journal(
    library: ctypes.CDLL, flash: Flash, seed: int
) -> None:
    size = 2 * SECTOR_BYTES
    flash.content[START : START + size] = list(bytes_of(seed, size))
    device = Device(library, flash)
    assert device.lease == 0
    assert device.read(FAULT) is None
    assert device.raise_lease(3) == OK
    device.boot()
    assert device.lease == 3


@pytest.mark.parametrize("byte", range(8 + 4))
def test_a_damaged_record_gives_way_to_the_one_before(device: Device, byte: int) -> None:
    assert device.write(FAULT, b"1234") == OK
    end = device.journal.end
    assert device.write(FAULT, b"5678") == OK
    assert device.raise_lease(9) == OK
    device.flash.content[START + end + byte] ^= 0x10
    device.boot()
    assert device.read(FAULT) == b"1234"
    assert device.lease == 9


def rotate(device: Device) -> None:
    sequence = device.journal.sequence
    turn = 0
    while device.journal.sequence == sequence:
        assert device.write(LARGE, bytes_of(turn, 1000)) == OK
        turn += 1


def test_a_lease_that_faded_is_found_in_the_unit_before(device: Device) -> None:
    assert device.raise_lease(9) == OK
    rotate(device)
    unit = START + device.journal.active * SECTOR_BYTES
    device.flash.content[unit + 16 + 9] ^= 0x80  # carried along as the first record
    device.boot()
    assert device.lease == 9
    assert device.read(LEASE) == (9).to_bytes(4, "little")


def test_every_number_that_faded_goes_along_when_the_unit_that_has_it_is_erased(
    device: Device,
) -> None:
    values = {kind: 7 * step for kind, step in NUMBERS.items()}
    for kind, value in values.items():
        assert device.raise_number(kind, value) == OK
    rotate(device)
    unit = START + device.journal.active * SECTOR_BYTES
    for at in range(unit + 16, unit + SECTOR_BYTES, 8):
        if device.flash.content[at] == 0x4A and device.flash.content[at + 1] in values:
            device.flash.content[at + 8] ^= 0x80
    for _ in range(3):
        device.boot()
        assert {kind: device.highest(kind) for kind in values} == values
        rotate(device)
    assert {kind: device.read(kind) is None for kind in values} == dict.fromkeys(values, False)


def test_what_is_too_long_or_finds_no_room_is_refused_and_changes_nothing(device: Device) -> None:
    assert device.write(FAULT, bytes(1025)) == BAD_INPUT
    assert device.flash.operations == 0
    for kind in (10, 11, 12):
        assert device.write(kind, bytes_of(kind, 1024)) == OK
    operations = device.flash.operations
    assert device.write(13, bytes_of(13, 1024)) == NO_MEMORY
    assert device.flash.operations == operations
    assert device.raise_lease(8) == OK
    device.boot()
    assert device.lease == 8
    assert [device.read(kind) for kind in (10, 11, 12)] == [
        bytes_of(kind, 1024) for kind in (10, 11, 12)
    ]


@pytest.mark.parametrize(
    ("region", "status"),
    [
        (Region.of_sectors(4, 3), BAD_INPUT),
        (Region.of_sectors(4, 0), BAD_INPUT),
        (Region.of_sectors(271, 2), FLASH_FAILED),
    ],
    ids=["odd", "none", "outside"],
)
def test_a_region_that_is_not_two_units_is_refused(
    library: ctypes.CDLL, flash: Flash, region: Region, status: int
) -> None:
    journal = Journal()
    opened = library.tf_journal_open(
        ctypes.byref(journal), ctypes.byref(flash), ctypes.byref(region)
    )
    assert opened == status


@given(noise=st.lists(st.tuples(st.integers(0, 2 * SECTOR_BYTES - 1), st.integers(0, 255))))
def test_any_bytes_are_a_journal_that_can_be_written(
    library: ctypes.CDLL, noise: list[tuple[int, int]]
) -> None:
    flash = Flash()
    library.emulated_flash_start(ctypes.byref(flash), 1)
    device = Device(library, flash)
    for turn in range(3):
        assert device.write(LARGE, bytes_of(turn, 300)) == OK
    for at, value in noise:
        flash.content[START + at] = value
    device.boot()
    device.state()
    assert device.raise_lease(0xFFFFFFFF) == OK
    device.boot()
    assert device.lease == 0xFFFFFFFF


# --- Identity --------------------------------------------------------------------------------

IDENTITY = Identity("device-00", "demo", "secret", 1000, 9600)
UNIT = Region.of_sectors(7, 1)
UNIT_AT = 7 * SECTOR_BYTES


def identity_of(library: ctypes.CDLL, flash: Flash, kind: int = 1) -> bytes | None:
    place, size = ctypes.c_void_p(), ctypes.c_uint32()
    status = library.tf_identity_read(
        ctypes.byref(flash), ctypes.byref(UNIT), kind, ctypes.byref(place), ctypes.byref(size)
    )
    if status != OK:
        assert status == NOT_FOUND
        return None
    return ctypes.string_at(place, size.value)


def put(flash: Flash, at: int, data: bytes) -> None:
    ctypes.memmove(ctypes.addressof(flash.content) + UNIT_AT + at, data, len(data))


def test_the_identity_that_is_written_is_read_and_a_newer_one_behind_it_counts(
    library: ctypes.CDLL, flash: Flash
) -> None:
    assert identity_of(library, flash) is None
    first = identity_region(IDENTITY)
    put(flash, 0, first)
    read = identity_of(library, flash)
    assert read is not None
    assert b"device-00" in read
    assert identity_of(library, flash, kind=2) is None
    second = identity_region(Identity("device-99", "demo", "other"))
    put(flash, len(first) + 64, second)
    assert b"device-99" in (identity_of(library, flash) or b"")
    content = bytes(flash.content[UNIT_AT : UNIT_AT + SECTOR_BYTES])
    assert read_identity(content).device == "device-99"


@pytest.mark.parametrize("byte", range(0, 60, 7))
def test_a_damaged_identity_is_none(library: ctypes.CDLL, flash: Flash, byte: int) -> None:
    record = bytearray(identity_region(IDENTITY))
    assert read_identity(bytes(record)) == IDENTITY
    record[byte if byte < len(record) else -9] ^= 4
    put(flash, 0, bytes(record))
    assert identity_of(library, flash) is None
    with pytest.raises(ImageError, match="no identity"):
        read_identity(bytes(record))
