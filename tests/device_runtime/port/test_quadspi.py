"""The driver of the external flash as an ARM image on its board."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen.firmware.boards import Board
from simulator.devices.nor_flash import NorFlash
from simulator.errors import MachineFault
from simulator.machines.elf_image import ElfImage
from simulator.machines.unicorn import UnicornMachine

from .flash_boards import (
    EXTERNAL,
    FLASH_FAILED,
    OK,
    MakeMachine,
    booted,
    build,
    external_board,
    looked_at_clock,
    making,
)

START = EXTERNAL
SECTOR = 65536
INSIDE = 2
"""Sectors of the internal flash, which are numbered first."""
CLOSED = "external flash that can only be read, and only while QUADSPI maps it"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> ElfImage:
    return build(external_board(), tmp_path_factory.mktemp("external"))[0]


@pytest.fixture
def make_machine(built: ElfImage) -> Iterator[MakeMachine]:
    yield from making(external_board(), built)


@pytest.fixture
def machine(make_machine: MakeMachine) -> UnicornMachine:
    return booted(make_machine())


def chip_of(machine: UnicornMachine) -> NorFlash:
    assert machine.nor_flash is not None
    return machine.nor_flash


def sector_of(address: int) -> int:
    return INSIDE + (address - START) // SECTOR


def test_a_programmed_word_is_read_back_in_place(machine: UnicornMachine) -> None:
    for address in (START, START + 252, START + 256, START + 0xFFFFFC):
        assert machine.call("program", address, 0x12345678) == OK
        assert machine.call("peek", address) == 0x12345678
        assert machine.read_memory(address, 4) == bytes.fromhex("78563412")
    assert machine.call("place_of", START + 252, 8) == START + 252


def test_erasing_sets_its_sector_and_no_other(machine: UnicornMachine) -> None:
    first = START + 3 * SECTOR
    for address in (first - 4, first, first + SECTOR - 4, first + SECTOR):
        assert machine.call("program", address, 0) == OK
    assert machine.call("erase", sector_of(first)) == OK
    assert machine.read_memory(first, SECTOR) == b"\xff" * SECTOR
    assert machine.read_memory(first - 4, 4) == machine.read_memory(first + SECTOR, 4) == bytes(4)


def test_a_board_with_subsectors_erases_4096_bytes(tmp_path: Path) -> None:
    board = external_board(4096)
    machine = booted(UnicornMachine(board, build(board, tmp_path)[0]))
    for address in (START + 4092, START + 4096, START + 8188, START + 8192):
        assert machine.call("program", address, 0) == OK
    assert machine.call("erase", INSIDE + 1) == OK
    assert machine.read_memory(START + 4096, 4096) == b"\xff" * 4096
    assert machine.read_memory(START + 4092, 4) == machine.read_memory(START + 8192, 4) == bytes(4)
    machine.close()


def test_programming_without_erasing_only_clears_bits_and_is_reported(
    machine: UnicornMachine,
) -> None:
    assert machine.call("program", START, 0xFFFF00FF) == OK
    assert machine.call("program", START, 0xFFFF000F) == OK, "ones may become zeros later"
    assert machine.call("program", START, 0x00FFFFFF) == FLASH_FAILED
    assert machine.call("peek", START) == 0x00FF000F


def test_the_internal_flash_keeps_its_sectors_and_addresses(machine: UnicornMachine) -> None:
    last = 0x08000000 + 16384 + 32768 - 4
    assert machine.call("program", last, 0x01234567) == OK
    assert machine.call("peek", last) == 0x01234567
    assert machine.call("peek", START) == 0xFFFFFFFF
    with pytest.raises(MachineFault, match="holds the running firmware"):
        machine.call("erase", 0)


@pytest.mark.parametrize(
    ("function", "arguments", "refused"),
    [
        ("program", (START + 2, 0), FLASH_FAILED),
        ("erase", (INSIDE + 256,), FLASH_FAILED),
        ("place_of", (START, 2**24 + 1), 0),
        ("place_of", (START + 2**24 - 3, 4), 0),
        ("place_of", (START - 4, 8), 0),
        ("place_of", (START + 2**24, 1), 0),
    ],
)
def test_what_lies_outside_the_chip_is_refused(
    machine: UnicornMachine, function: str, arguments: tuple[int, ...], refused: int
) -> None:
    before = machine.flash_operations
    assert machine.call(function, *arguments) == refused
    assert machine.flash_operations == before


def test_a_sector_that_is_worn_out_fails_and_the_next_one_does_not(
    machine: UnicornMachine,
) -> None:
    chip_of(machine).worn_out.add(2)
    place = START + 2 * SECTOR
    assert machine.call("program", place, 0) == FLASH_FAILED
    assert machine.call("erase", sector_of(place)) == FLASH_FAILED
    assert machine.call("program", place + SECTOR, 0) == OK, "the chip's error flags are cleared"
    assert machine.call("peek", place) == 0xFFFFFFFF


def test_a_chip_that_never_gets_ready_is_given_up_and_reset(machine: UnicornMachine) -> None:
    assert machine.call("program", START + 4, 1) == OK
    chip_of(machine).busy_polls = float("inf")
    assert machine.call("program", START, 0) == FLASH_FAILED
    assert machine.call("peek", START + 4) == 1, "it is mapped again"


def test_a_chip_that_is_gone_for_good_starts_the_board_over(
    machine: UnicornMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    chip_of(machine).busy_polls = float("inf")
    monkeypatch.setattr(chip_of(machine), "power_on", lambda: None)  # deaf to resets
    with pytest.raises(MachineFault, match="reset"):
        machine.call("program", START, 0)


def test_a_long_operation_is_waited_for(machine: UnicornMachine) -> None:
    chip_of(machine).busy_polls = 400  # 40 ms, of which the datasheet promises 5
    assert machine.call("program", START, 7) == OK
    assert machine.call("peek", START) == 7
    chip_of(machine).busy_polls = 40_000  # 4 s
    assert machine.call("erase", sector_of(START)) == OK
    assert machine.call("peek", START) == 0xFFFFFFFF


def test_without_the_chip_that_the_board_has_nothing_is_mapped(
    built: ElfImage,
) -> None:
    described = external_board().model_dump()
    described["external_flash"]["id"] = 0xEF4018
    machine = booted(
        UnicornMachine(Board.model_validate(described), built, clock=looked_at_clock())
    )
    assert machine.call("place_of", START, 4) == 0
    assert machine.call("program", START, 0) == FLASH_FAILED
    assert machine.call("erase", INSIDE) == FLASH_FAILED
    with pytest.raises(MachineFault, match=CLOSED):
        machine.call("peek", START)
    machine.close()


def test_a_reset_in_the_middle_of_an_erase_waits_for_the_chip(machine: UnicornMachine) -> None:
    chip = chip_of(machine)
    assert machine.call("program", START, 1) == OK
    chip.command(0x06)
    chip.busy_polls = 2000
    chip.erase(0xD8, SECTOR)
    assert chip.is_busy
    machine.power_on(keep_sram=True)
    chip.busy_polls = 3
    booted(machine)
    assert not chip.is_busy
    assert machine.call("peek", START) == 1


def test_the_pins_are_those_of_the_discovery_board(machine: UnicornMachine) -> None:
    def fields(register: int, pins: tuple[int, ...], bits: int) -> list[int]:
        value = machine.call("peek", register)
        return [value >> bits * pin & 2**bits - 1 for pin in pins]

    assert fields(0x40020400, (2, 6), 2) == [2, 2]
    assert fields(0x40020420, (2, 6), 4) == [9, 10]
    assert fields(0x40020C00, (11, 12, 13), 2) == [2, 2, 2]
    assert fields(0x40020C24, (3, 4, 5), 4) == [9, 9, 9]
    assert fields(0x40021000, (2,), 2) == [2]
    assert fields(0x40021020, (2,), 4) == [9]
    # The serial line has made room: PA9 and PB7.
    assert fields(0x40020000, (9,), 2) == fields(0x40020400, (7,), 2) == [2]
    assert fields(0x40020024, (1,), 4) == fields(0x40020420, (7,), 4) == [7]


def test_the_protection_unit_opens_no_more_than_the_chip(machine: UnicornMachine) -> None:
    """Against reads ahead: the last region that was set is that of the chip, 16 MB, open."""
    assert machine.call("peek", 0xE000ED94) == 5
    assert machine.call("peek", 0xE000ED9C) == START
    attributes = machine.call("peek", 0xE000EDA0)
    assert attributes & 1
    assert attributes >> 1 & 0x1F == 23
    assert attributes >> 24 & 7 == 6, "read only"
    assert attributes >> 28 & 1, "never executed"


def test_power_cuts_tear_one_word_and_nothing_after_it(make_machine: MakeMachine) -> None:
    outcomes = set()
    for seed in range(24):
        machine = booted(make_machine())
        assert machine.call("program", START, 0x11111111) == OK
        machine.cut_power_at_flash_operation(2, seed)
        assert machine.call("program", START + 4, 0x22222222) == OK
        with pytest.raises(MachineFault, match="power cut"):
            machine.call("program", START + 8, 0x33333333)
        first, second, torn, after = (
            int.from_bytes(machine.read_memory(START + 4 * i, 4), "little") for i in range(4)
        )
        assert (first, second, after) == (0x11111111, 0x22222222, 0xFFFFFFFF)
        assert torn & 0x33333333 == 0x33333333
        outcomes.add("none" if torn == 0xFFFFFFFF else "all" if torn == 0x33333333 else "part")
        machine.power_on()
        booted(machine)
        assert machine.call("peek", START) == 0x11111111
        machine.close()
    assert outcomes == {"none", "all", "part"}


def test_a_power_cut_in_an_erase_only_sets_bits_of_that_sector(make_machine: MakeMachine) -> None:
    changed = set()
    for seed in range(12):
        machine = booted(make_machine())
        assert machine.call("program", START + SECTOR, 0x0F0F0F0F) == OK
        assert machine.call("program", START + SECTOR - 4, 0) == OK
        machine.cut_power_at_flash_operation(1, seed)
        with pytest.raises(MachineFault, match="power cut"):
            machine.call("erase", sector_of(START + SECTOR))
        value = int.from_bytes(machine.read_memory(START + SECTOR, 4), "little")
        assert value & 0x0F0F0F0F == 0x0F0F0F0F
        assert machine.read_memory(START + SECTOR - 4, 4) == bytes(4)
        changed.add(value)
        machine.close()
    assert {0x0F0F0F0F, 0xFFFFFFFF} < changed


def test_the_mapped_region_takes_no_store(machine: UnicornMachine) -> None:
    with pytest.raises(MachineFault, match=CLOSED):
        machine.call("poke", START, 0)
    assert machine.read_memory(START, 4) == b"\xff" * 4


def test_nothing_is_read_while_the_controller_does_not_map_the_chip(
    machine: UnicornMachine,
) -> None:
    assert machine.call("peek", START) == 0xFFFFFFFF
    machine.call("poke", 0xA0001000, machine.call("peek", 0xA0001000) | 2)  # abort
    with pytest.raises(MachineFault, match=CLOSED):
        machine.call("peek", START)
