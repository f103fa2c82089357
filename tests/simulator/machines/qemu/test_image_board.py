"""Functions of an image that are called in QEMU, and what they take there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from codegen.firmware.boards import load_board
from codegen.firmware.bundle import Bundle
from simulator.errors import ImageError, MachineFault, MeasureError
from simulator.machines.image_engine import ImageEngine
from simulator.machines.measure import Measurement, measure
from simulator.machines.qemu.image_board import ImageBoard
from tests.simulator.conftest import skip_without

pytestmark = [pytest.mark.slow]

SAME_CORE = {"mps2-an386": "stm32f407", "mps2-an500": "stm32f746"}


@pytest.fixture(autouse=True)
def _qemu() -> None:
    skip_without("qemu")


def costs(found: Measurement) -> tuple[object, ...]:
    return found.instructions.forward, found.instructions.by_kernel, found.logits, found.loss


@pytest.mark.parametrize("board", SAME_CORE)
def test_qemu_counts_the_instructions_that_unicorn_counts_on_a_core_of_the_same_kind(
    compiled: Callable[[str], Bundle], board: str
) -> None:
    of_arm, of_st = compiled(board), compiled(SAME_CORE[board])
    here, there = measure(of_arm.path, "small"), measure(of_st.path, "small")
    assert (here.machine, there.machine) == ("qemu", "unicorn")
    assert costs(here) == costs(there)


@pytest.mark.parametrize("board", ["mps2-an383", "mps3-an547"])
def test_what_is_measured_repeats_and_fits_what_the_report_promises(
    compiled: Callable[[str], Bundle], board: str
) -> None:
    bundle = compiled(board)
    measured = measure(bundle.path, "full")
    promised = next(plan for plan in bundle.report.plans if plan.name == "full").sram_bytes
    assert 0 < measured.stack_high_water_bytes <= promised.stack
    assert promised.arena < measured.sram_touched_bytes <= promised.total
    assert sum(measured.instructions.by_kernel.values()) == measured.instructions.step
    assert costs(measure(bundle.path, "full")) == costs(measured)


def test_vectors_take_fewer_instructions_than_pairs_do(
    compiled: Callable[[str], Bundle],
) -> None:
    with_vectors, with_pairs = (
        measure(compiled(board).path, "small") for board in ("mps3-an547", "mps2-an500")
    )
    assert with_vectors.logits == with_pairs.logits
    assert with_vectors.instructions.forward < 0.75 * with_pairs.instructions.forward


def test_a_function_that_is_not_there_or_does_not_return_is_told(
    compiled: Callable[[str], Bundle],
) -> None:
    bundle = compiled("mps3-an547")
    with ImageEngine(bundle, bundle.manifest.plans[0].id) as engine:
        with pytest.raises(ImageError, match="no symbol 'tf_nothing'"):
            engine.machine.call("tf_nothing")
        with pytest.raises(MeasureError, match="by function of the image only"):
            _ = engine.core
        with pytest.raises(MachineFault, match=r"tf_board_reset didn't return: Reset_Handler"):
            engine.machine.call("tf_board_reset")


def test_another_machine_than_the_boards_is_refused(compiled: Callable[[str], Bundle]) -> None:
    with pytest.raises(MeasureError, match="'unicorn' can't measure on board mps3-an547; use qemu"):
        measure(compiled("mps3-an547").path, machine="unicorn")


def test_an_image_without_the_symbols_that_are_needed_leaves_nothing_open(
    compiled: Callable[[str], Bundle], tmp_path: Path
) -> None:
    bundle = compiled("mps3-an547")
    stranger = tmp_path / "stranger.elf"
    image = (bundle.path / "firmware.elf").read_bytes()
    stranger.write_bytes(image.replace(b"tf_mps_flash_erase", b"tf_mps_flash_scrub"))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ImageError, match="no symbol 'tf_mps_flash_erase'"):
        ImageBoard(load_board("mps3-an547"), stranger)
    assert os.listdir("/proc/self/fd") == before


def thumb_code(elf: Path) -> Iterator[tuple[int, bytes]]:
    """Runs of instructions in an image: (address, halfwords), without the data among them."""
    with elf.open("rb") as stream:
        image = ELFFile(stream)
        symbols = image.get_section_by_name(".symtab")
        assert isinstance(symbols, SymbolTableSection)
        for number, section in enumerate(image.iter_sections()):
            marks = sorted(
                {
                    (symbol["st_value"], symbol.name[:2])
                    for symbol in symbols.iter_symbols()
                    if symbol["st_shndx"] == number and symbol.name[:2] in ("$t", "$d")
                }
            )
            first = section["sh_addr"]
            ends = [at for at, _ in marks[1:]] + [first + section["sh_size"]]
            for (at, kind), end in zip(marks, ends, strict=False):  # sections may have no marks
                if kind == "$t":
                    yield at, section.data()[at - first : end - first]


def is_armv6m(first: int, second: int) -> bool:
    """Whether the core has the instruction that begins with these halfwords (DDI0419, A5)."""
    if first >> 11 in (0b11101, 0b11110, 0b11111):
        is_bl = first >> 11 == 0b11110 and second >> 14 == 0b11 and second >> 12 & 1 == 1
        is_status = first & 0xFFE0 in (0xF380, 0xF3E0) and second >> 12 in (0b1000, 0b1010)
        is_barrier = first == 0xF3BF and second & 0xFFC0 == 0x8F40
        return is_bl or is_status or is_barrier
    compares_and_branches = first & 0xF500 == 0xB100
    makes_conditional = first >> 8 == 0xBF and first & 0xF != 0
    return not compares_and_branches and not makes_conditional


def test_the_firmware_of_a_small_core_has_none_of_a_larger_ones_instructions(
    compiled: Callable[[str], Bundle],
) -> None:
    # QEMU runs it on a Cortex-M3, which wouldn't mind them.
    def others(board: str) -> tuple[int, int]:
        seen = found = 0
        for _, code in thumb_code(compiled(board).firmware):
            halves = memoryview(code + bytes(2)).cast("H")
            at = 0
            while at < len(code) // 2:
                found += not is_armv6m(halves[at], halves[at + 1])
                seen += 1
                at += 2 if halves[at] >> 11 in (0b11101, 0b11110, 0b11111) else 1
        return seen, found

    seen, found = others("mps2-an383")
    assert (seen > 20_000, found) == (True, 0)
    assert others("mps2-an385")[1] > 1_000
