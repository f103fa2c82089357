"""The store of personal values, with the power cut at every flash operation."""

import ctypes
import random

import pytest

from .conftest import (
    FLASH_FAILED,
    NO_MEMORY,
    NOT_FOUND,
    OK,
    SECTOR_BYTES,
    Flash,
    Region,
)

REGION = Region.of_sectors(10, 4)
UNIT_BYTES = 2 * SECTOR_BYTES
HEADER_BYTES = 128
START = 10 * SECTOR_BYTES
MODEL, OTHER_MODEL = 0x1234ABCD, 0x99999999
PERSONAL, LOCAL = 0, 1
USES_SHARED, USES_PERSONAL, USES_LOCAL = 0, 1, 2
LAYOUTS = {PERSONAL: 0xAAAA0001, LOCAL: 0xBBBB0002}
CHOICES = 16
SOURCE = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32)


class Choice(ctypes.Structure):
    _fields_ = [("use", ctypes.c_int), ("mix", ctypes.c_uint16)]


class PersonalStore(ctypes.Structure):
    _fields_ = [
        ("flash", ctypes.c_void_p),
        ("units", Region * 2),
        ("model_digest", ctypes.c_uint32),
        ("unit", ctypes.c_int8),
    ]


class Device:
    def __init__(self, library: ctypes.CDLL, flash: Flash) -> None:
        self.library, self.flash = library, flash
        library.tf_personal_values.restype = ctypes.c_void_p
        library.tf_personal_layout.restype = ctypes.c_uint32
        library.tf_personal_choice.restype = Choice
        library.tf_personal_has_others.restype = ctypes.c_bool
        self.boot()

    def boot(self, model: int = MODEL) -> None:
        self.flash.power_on()
        self.store = PersonalStore()
        assert self.open(REGION, model) == OK

    def open(self, region: Region, model: int = MODEL) -> int:
        self.store = PersonalStore()
        return self.library.tf_personal_open(
            ctypes.byref(self.store), ctypes.byref(self.flash), ctypes.byref(region), model
        )

    def write(self, part: int, values: bytes, layout: int | None = None) -> int:
        words = [int.from_bytes(values[i : i + 4], "little") for i in range(0, len(values), 4)]
        return self.library.tf_personal_write(
            ctypes.byref(self.store),
            part,
            LAYOUTS[part] if layout is None else layout,
            len(values),
            SOURCE(lambda _, index: words[index]),
            None,
        )

    def read(self, part: int, size: int, layout: int | None = None) -> bytes | None:
        place = self.library.tf_personal_values(
            ctypes.byref(self.store), part, LAYOUTS[part] if layout is None else layout
        )
        return None if place is None else ctypes.string_at(place, size)

    def choose(self, use: int, mix: int = 256) -> int:
        return self.library.tf_personal_choose(ctypes.byref(self.store), Choice(use, mix))

    @property
    def choice(self) -> tuple[int, int]:
        found = self.library.tf_personal_choice(ctypes.byref(self.store))
        return found.use, found.mix

    @property
    def content(self) -> bytes:
        return ctypes.string_at(ctypes.addressof(self.flash.content) + START, REGION.bytes)

    @content.setter
    def content(self, content: bytes) -> None:
        ctypes.memmove(ctypes.addressof(self.flash.content) + START, content, len(content))


@pytest.fixture
def device(library: ctypes.CDLL, flash: Flash) -> Device:
    return Device(library, flash)


def values(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def test_both_parts_and_the_choice_outlive_a_reset(device: Device) -> None:
    head, whole = values(1, 200), values(2, 4000)
    assert device.choice == (USES_SHARED, 0)
    assert device.choose(USES_PERSONAL) == NOT_FOUND
    assert device.write(PERSONAL, head) == OK
    assert device.choose(USES_PERSONAL, 192) == OK
    assert device.write(LOCAL, whole) == OK
    for _ in range(2):
        assert device.read(PERSONAL, 200) == head
        assert device.read(LOCAL, 4000) == whole
        assert device.choice == (USES_PERSONAL, 192)
        device.boot()


def test_values_of_another_layout_or_another_model_are_given_to_nobody(device: Device) -> None:
    head = values(3, 64)
    device.write(PERSONAL, head)
    device.choose(USES_PERSONAL)
    assert device.read(PERSONAL, 64, layout=77) is None
    assert device.read(PERSONAL, 64, layout=0) is None
    assert device.read(LOCAL, 64) is None
    assert not device.library.tf_personal_has_others(ctypes.byref(device.store))
    device.boot(OTHER_MODEL)
    assert device.read(PERSONAL, 64) is None
    assert device.choice == (USES_SHARED, 0)
    assert device.library.tf_personal_has_others(ctypes.byref(device.store))
    device.boot()
    assert device.read(PERSONAL, 64) == head  # nothing was lost by looking
    # The first writing for the other model takes the free unit: only the next one erases this.
    device.boot(OTHER_MODEL)
    assert device.write(PERSONAL, values(4, 64)) == OK
    assert device.write(PERSONAL, values(5, 64)) == OK
    device.boot()
    assert device.read(PERSONAL, 64) is None


def test_choosing_again_and_again_erases_once_in_sixteen_times(device: Device) -> None:
    device.write(PERSONAL, values(6, 64))
    before = device.content
    for count in range(1, CHOICES):
        assert device.choose(USES_LOCAL if count % 2 else USES_PERSONAL) == OK
        assert device.content[UNIT_BYTES:] == before[UNIT_BYTES:]
    device.flash.power_on()
    assert device.choose(USES_SHARED, 0) == OK
    assert device.flash.operations > 64 // 4  # moved to the other unit
    assert device.choice == (USES_SHARED, 0)
    assert device.read(PERSONAL, 64) == values(6, 64)
    device.flash.power_on()
    assert device.choose(USES_SHARED, 0) == OK
    assert device.flash.operations == 0  # that is so already


def test_what_is_too_large_is_refused_and_what_has_no_room_beside_goes(device: Device) -> None:
    assert device.write(PERSONAL, values(7, UNIT_BYTES)) == NO_MEMORY
    device.write(LOCAL, values(8, 6000))
    device.choose(USES_LOCAL)
    assert device.write(PERSONAL, values(9, 4000)) == OK
    assert device.read(LOCAL, 6000) is None
    assert device.choice == (USES_SHARED, 0)
    assert device.write(PERSONAL, values(10, UNIT_BYTES - HEADER_BYTES)) == OK


def test_without_a_region_there_is_nothing(device: Device) -> None:
    assert device.open(Region(0, 0, 0, 0)) == OK
    assert device.read(PERSONAL, 4) is None
    assert device.choose(USES_SHARED, 0) == OK
    assert device.write(PERSONAL, bytes(4)) == NO_MEMORY
    odd = Region.of_sectors(10, 3)
    assert device.open(odd) == FLASH_FAILED
    outside = Region(0x20000000, 4 * SECTOR_BYTES, 0, 4)
    assert device.open(outside) == FLASH_FAILED


@pytest.mark.parametrize("step", ["personal", "local", "choice", "moved choice"])
def test_a_power_cut_keeps_what_was_there_or_has_what_is_new(device: Device, step: str) -> None:
    device.write(PERSONAL, values(11, 100))
    device.write(LOCAL, values(12, 100))
    device.choose(USES_PERSONAL, 128)
    if step == "moved choice":
        for count in range(CHOICES - 2):
            device.choose(USES_LOCAL if count % 2 else USES_SHARED)
        device.choose(USES_PERSONAL, 128)
    state = {
        "personal": values(11, 100),
        "local": values(12, 100),
        "choice": (USES_PERSONAL, 128),
    }
    after = dict(state)

    def change() -> int:
        if step == "personal":
            after["personal"] = values(13, 100)
            return device.write(PERSONAL, values(13, 100))
        if step == "local":
            after["local"] = values(14, 100)
            return device.write(LOCAL, values(14, 100))
        after["choice"] = (USES_LOCAL, 256)
        return device.choose(USES_LOCAL)

    content = device.content
    device.flash.power_on()
    assert change() == OK
    operations = device.flash.operations
    assert operations > 0
    old, new = 0, 0
    for cut in range(1, operations + 1):
        device.content = content
        device.boot()
        device.flash.power_on(cut)
        change()
        device.boot()
        found = {
            "personal": device.read(PERSONAL, 100),
            "local": device.read(LOCAL, 100),
            "choice": device.choice,
        }
        assert found in (state, after), cut
        old, new = old + (found == state), new + (found == after)
        # And it works again.
        assert change() == OK
        device.boot()
        assert device.read(PERSONAL, 100) == after["personal"]
        assert device.choice == after["choice"]
        assert not device.flash.rewrote
    assert old > 0
    assert old >= operations - 1  # only the last word can have been programmed whole


def test_a_bit_that_turns_over_brings_back_what_was_before(device: Device) -> None:
    device.write(PERSONAL, values(15, 100))
    device.write(PERSONAL, values(16, 100))
    content, newest = device.content, device.store.unit
    for place in (4, 8, 16, 34, HEADER_BYTES, HEADER_BYTES + 99):
        for unit in (0, 1):
            changed = bytearray(content)
            changed[unit * UNIT_BYTES + place] ^= 1
            device.content = bytes(changed)
            device.boot()
            assert device.read(PERSONAL, 100) == values(15 if unit == newest else 16, 100)


def test_random_bytes_in_the_region_are_no_values(device: Device) -> None:
    rng = random.Random(1)
    for _ in range(50):
        noise = bytearray(rng.randbytes(REGION.bytes))
        noise[:4] = noise[UNIT_BYTES : UNIT_BYTES + 4] = (0x31504654).to_bytes(4, "little")
        device.content = bytes(noise)
        device.boot()
        assert device.read(PERSONAL, 4) is None
        assert device.choice == (USES_SHARED, 0)
