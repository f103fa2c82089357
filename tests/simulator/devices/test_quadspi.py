"""The emulated QUADSPI and its chip: what they do, and what they refuse that silicon would not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from codegen.firmware.boards import load_board
from simulator.devices.flash_operations import FlashMisuse, PowerCut
from simulator.devices.nor_flash import NorFlash
from simulator.devices.quadspi import Quadspi

CR, DCR, SR, FCR, DLR, CCR, AR, DR, PSMKR, PSMAR = (
    0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18, 0x20, 0x24, 0x28,
)  # fmt: skip
INSTRUCTION, ADDRESS, DATA, POLL, MAPPED = 1 << 8, 1 << 10 | 2 << 12, 1 << 24, 2 << 26, 3 << 26
QUAD_READ = 0xEB | INSTRUCTION | 3 << 10 | 2 << 12 | 10 << 18 | 3 << 24 | MAPPED
ON = 1 | 1 << 22
TCF, SMF, BUSY = 1 << 1, 1 << 3, 1 << 5


class Bench:
    """A controller with its chip, driven register by register."""

    def __init__(self) -> None:
        flash = load_board("stm32f746").external_flash
        assert flash is not None
        self.content = bytearray(b"\xff" * flash.bytes)
        self.power = PowerCut(lambda: None)
        self.chip = NorFlash(flash, lambda: memoryview(self.content), self.power)
        self.mapped: list[bool] = []
        self.controller = Quadspi(self.chip, self.mapped.append)
        self.write(CR, ON)
        self.write(DCR, 23 << 16)

    def write(self, offset: int, value: int) -> None:
        self.controller.write(offset, value)

    def read(self, offset: int) -> int:
        return self.controller.read(offset)

    def command(self, instruction: int) -> None:
        self.write(CCR, instruction | INSTRUCTION)

    def program(self, offset: int, word: int, *, size: int = 4) -> None:
        self.write(DLR, size - 1)
        self.write(CCR, 0x02 | INSTRUCTION | ADDRESS | DATA)
        self.write(AR, offset)
        self.write(DR, word)

    def erase(self, offset: int, instruction: int = 0xD8) -> None:
        self.write(CCR, instruction | INSTRUCTION | ADDRESS)
        self.write(AR, offset)

    def poll(self, instruction: int, mask: int, match: int, *, size: int = 1) -> None:
        self.write(DLR, size - 1)
        self.write(PSMKR, mask)
        self.write(PSMAR, match)
        self.write(CCR, instruction | INSTRUCTION | DATA | POLL)

    def wait(self) -> int:
        """Polls the chip until it is ready; how often."""
        self.write(FCR, 0x1B)
        self.poll(0x70, 0x80, 0x80)
        polls = 1
        while not self.read(SR) & SMF:
            polls += 1
        return polls


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_programming_clears_bits_and_keeps_the_chip_busy_for_some_polls(bench: Bench) -> None:
    for word in (0xFFFF00FF, 0x00FFFFFF):
        bench.command(0x06)
        bench.program(8, word)
        assert bench.read(SR) & TCF
        assert bench.wait() == bench.chip.busy_polls + 1
        assert not bench.read(SR) & BUSY
        assert bench.read(DR) == 0x80
    assert bench.content[4:16] == b"\xff" * 4 + bytes.fromhex("ff00ff00") + b"\xff" * 4
    assert bench.power.operations == 2


@pytest.mark.parametrize(("instruction", "size"), [(0x20, 4096), (0xD8, 65536)])
def test_erasing_takes_the_whole_sector_around_the_address(
    bench: Bench, instruction: int, size: int
) -> None:
    bench.content[:] = bytes(len(bench.content))
    bench.command(0x06)
    bench.erase(3 * size + 77, instruction)
    assert bench.content[3 * size : 4 * size] == b"\xff" * size
    assert bench.content[3 * size - 1] == bench.content[4 * size] == 0


def test_the_identification_is_that_of_the_board_first_byte_lowest(bench: Bench) -> None:
    bench.poll(0x9F, 0xFFFFFF, 0x18BA20, size=3)
    assert bench.read(SR) & SMF
    bench.poll(0x9F, 0xFFFFFF, 0x1840EF, size=3)
    assert bench.read(SR) == SMF | BUSY, "of before, and still asking"


def test_mapping_opens_the_region_and_an_abort_closes_it(bench: Bench) -> None:
    bench.write(CCR, QUAD_READ)
    assert bench.read(SR) & BUSY
    bench.write(CR, ON | 2)
    assert not bench.read(SR) & BUSY
    assert not bench.read(CR) & 2
    assert bench.mapped == [True, False]


def test_errors_stay_in_the_flag_status_until_they_are_cleared(bench: Bench) -> None:
    bench.chip.worn_out.add(0)
    bench.command(0x06)
    bench.program(0, 0)
    bench.wait()
    assert bench.read(DR) == 0x80 | 0x10
    bench.command(0x06)
    bench.erase(0)
    bench.wait()
    assert bench.read(DR) == 0x80 | 0x30
    bench.command(0x50)
    bench.wait()
    assert bench.read(DR) == 0x80
    assert bench.content[:4] == b"\xff" * 4
    assert bench.power.operations == 0


def after_write_enable(bench: Bench) -> None:
    bench.command(0x06)


def after_programming(bench: Bench) -> None:
    bench.command(0x06)
    bench.program(0, 0)


def while_mapped(bench: Bench) -> None:
    bench.write(CCR, QUAD_READ)


def at_once(bench: Bench) -> None:
    """Nothing before."""


@pytest.mark.parametrize(
    ("before", "do", "message"),
    [
        (at_once, lambda b: b.program(0, 0), "0x02 without write enable"),
        (at_once, lambda b: b.erase(0), "0xd8 without write enable"),
        (after_write_enable, lambda b: b.program(254, 0), "cross a page"),
        (after_write_enable, lambda b: b.program(2**24, 0), "beyond the chip"),
        (after_write_enable, lambda b: b.erase(2**24), "beyond the chip"),
        (after_write_enable, lambda b: b.erase(0, 0xC7), "command 0xc7"),
        (after_programming, lambda b: b.command(0x06), "while the chip programs"),
        (after_programming, lambda b: b.program(4, 0), "while the chip programs"),
        (after_programming, while_mapped, "mapped while the chip programs"),
        (while_mapped, lambda b: b.command(0x06), "CCR written while the flash is mapped"),
        (at_once, lambda b: b.command(0x99), "command 0x99"),
        (at_once, lambda b: b.write(CCR, QUAD_READ ^ 2 << 18), "where QUADSPI looks"),
        (at_once, lambda b: b.write(CCR, 0x03 | INSTRUCTION | 1 << 26), "indirect reads"),
        (at_once, lambda b: b.write(CCR, 0x9F | DATA | POLL), "over one line"),
        (at_once, lambda b: b.write(AR, 0), "without address"),
        (at_once, lambda b: b.write(DR, 0), "without data"),
        (lambda b: b.write(DCR, 22 << 16), while_mapped, "FSIZE"),
        (lambda b: b.write(CR, 0), lambda b: b.command(0x06), "off"),
    ],
)
def test_what_the_real_chip_would_ignore_or_misunderstand_is_a_misuse(
    bench: Bench, before: Callable[[Bench], None], do: Callable[[Bench], None], message: str
) -> None:
    before(bench)
    content = bytes(bench.content[:4096])
    with pytest.raises(FlashMisuse, match=message):
        do(bench)
    assert bench.content[:4096] == content


def test_a_reset_of_the_core_leaves_the_chip_at_its_work(bench: Bench) -> None:
    after_programming(bench)
    bench.controller.reset()
    assert bench.chip.is_busy
    bench.write(CR, ON)
    for instruction in (0x66, 0x99):
        bench.command(instruction)
    assert not bench.chip.is_busy
