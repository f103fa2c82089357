"""Flash layout: regions are whole sectors that never overlap, or the table says why not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.errors import BudgetError
from codegen.firmware.boards import Board, list_boards, load_board
from codegen.firmware.flash_layout import (
    LEAST_SAMPLES,
    WANTED_SAMPLES,
    layout_defines,
    linker_script,
    plan_flash,
    record_alignment,
    sample_log_sizes,
    slot_header_bytes,
)

KIB = 1024
SECTOR = 64 * KIB


def board_of(sectors: list[int], external: tuple[int, int] | None) -> Board:
    """A board with these internal sectors, and external ones of (size, number)."""
    description = load_board("stm32f746").model_dump()
    description["flash"]["sectors"] = sectors
    if external is None:
        description["external_flash"] = None
    else:
        description["external_flash"]["sector_bytes"] = external[0]
        description["external_flash"]["sector_count"] = external[1]
    return Board.model_validate(description)


boards = st.one_of(
    st.sampled_from([load_board(name) for name in list_boards()]),
    st.builds(
        board_of,
        st.lists(st.sampled_from([16 * KIB, 64 * KIB, 256 * KIB]), min_size=1, max_size=9),
        st.one_of(
            st.none(),
            st.tuples(
                st.sampled_from([4 * KIB, 64 * KIB]), st.sampled_from([2**n for n in range(9)])
            ),
        ),
    ),
)


@given(
    board=boards,
    firmware=st.integers(0, 600 * KIB),
    weights=st.integers(0, 500 * KIB),
    samples=st.integers(0, 300 * KIB),
    least=st.integers(0, 300 * KIB),
)
def test_regions_are_whole_sectors_of_one_flash_that_never_overlap_and_are_large_enough(
    board: Board, firmware: int, weights: int, samples: int, least: int
) -> None:
    try:
        layout = plan_flash(board, firmware, weights, samples, least)
    except BudgetError:
        return  # other tests find the exact limit
    sizes = [size for flash in board.flashes.values() for size in flash.sectors]
    taken: list[int] = []
    for region in (layout.firmware, layout.slot_a, layout.slot_b, layout.samples):
        flash = board.flashes[region.flash]
        base = 0 if region.flash == "internal" else len(board.flash.sectors)
        sectors = range(region.first_sector, region.first_sector + region.sector_count)
        assert base <= sectors.start < sectors.stop <= base + len(flash.sectors)
        assert region.address == flash.address + sum(sizes[base : sectors.start])
        assert region.bytes == sum(sizes[sectors.start : sectors.stop])
        taken += sectors
    assert len(taken) == len(set(taken))
    assert (layout.firmware.flash, layout.firmware.first_sector) == ("internal", 0)
    assert layout.slot_a.flash == layout.slot_b.flash
    assert layout.firmware.bytes >= firmware
    slots = (layout.slot_a.bytes, layout.slot_b.bytes)
    assert min(slots) >= slot_header_bytes(weights) + weights
    assert layout.samples.bytes >= min(samples, least)


@given(
    board=boards,
    firmware=st.integers(0, 300 * KIB),
    weights=st.integers(0, 200 * KIB),
    samples=st.integers(0, 300 * KIB),
)
def test_an_external_flash_changes_nothing_where_everything_fits_inside(
    board: Board, firmware: int, weights: int, samples: int
) -> None:
    alone = Board.model_validate({**board.model_dump(), "external_flash": None})
    try:
        expected = plan_flash(alone, firmware, weights, samples)
    except BudgetError:
        return
    assert plan_flash(board, firmware, weights, samples) == expected
    assert layout_defines(board, expected) == {}


def test_the_digits_example_keeps_its_layout() -> None:
    layout = plan_flash(load_board("stm32f746"), 130 * KIB, 40 * KIB, *sample_log_sizes(784))
    regions = (layout.slot_a, layout.slot_b, layout.samples)
    assert [region.address for region in regions] == [0x08040000, 0x08080000, 0x080C0000]
    assert not layout.uses_external_flash


def test_what_is_too_large_for_the_inside_lies_in_the_external_flash() -> None:
    board = load_board("stm32f746")
    layout = plan_flash(board, 650 * KIB, 490 * KIB, *sample_log_sizes(128 * 128 * 3))
    assert layout.firmware.bytes == 1024 * KIB
    assert layout.slot_a.address == 0x90000000
    assert [region.flash for region in (layout.slot_a, layout.slot_b, layout.samples)] == [
        "external"
    ] * 3
    assert layout.slot_a.first_sector == len(board.flash.sectors)
    defines = layout_defines(board, layout)
    assert defines["TF_EXTERNAL_FLASH_BYTES"] == "16777216u"
    assert defines["TF_EXTERNAL_FLASH_ID"] == "0x20ba18u"


def test_a_log_that_is_too_large_moves_alone() -> None:
    board = load_board("stm32f746")
    layout = plan_flash(board, 200 * KIB, 100 * KIB, 2000 * KIB)
    assert layout.slot_b.flash == "internal"
    assert layout.samples.flash == "external"
    assert layout.samples.bytes == 2048 * KIB


def test_the_log_is_smaller_than_wanted_where_only_that_fits() -> None:
    board = load_board("stm32f407")
    layout = plan_flash(board, 300 * KIB, 100 * KIB, 600 * KIB, 200 * KIB)
    assert layout.samples.bytes == 256 * KIB
    with pytest.raises(BudgetError):
        plan_flash(board, 300 * KIB, 100 * KIB, 600 * KIB)


@given(sample=st.integers(1, 200_000))
def test_the_log_has_room_for_the_samples_that_are_wanted(sample: int) -> None:
    wanted, least = sample_log_sizes(sample)
    for size, samples in ((wanted, WANTED_SAMPLES), (least, LEAST_SAMPLES)):
        region = -(-size // (64 * KIB)) * 64 * KIB
        unit = record_alignment(region)
        assert region // unit <= 65536
        assert samples * (-(-(16 + sample) // unit) * unit) + 512 <= region
    assert least <= wanted


def test_a_sample_that_no_record_holds_is_refused() -> None:
    assert sample_log_sizes(0xFFFFF)[1] > 3 * 0xFFFFF
    with pytest.raises(BudgetError, match=r"1,048,576 bytes.*smaller input"):
        sample_log_sizes(0x100000)


@pytest.mark.parametrize(
    ("weights", "header"),
    [(0, 4096), (1, 4096), (1008 * 512, 4096), (1008 * 512 + 1, 8192), (2032 * 512 + 1, 12288)],
)
def test_a_slot_has_a_mark_for_each_chunk(weights: int, header: int) -> None:
    assert slot_header_bytes(weights) == header
    external = load_board("stm32f746").external_flash
    assert external is not None
    layout = plan_flash(load_board("stm32f746"), 700 * KIB, weights, 0)
    assert layout.slot_a.bytes == -(-(header + weights) // SECTOR) * SECTOR


@pytest.mark.parametrize("board_name", list_boards())
def test_the_largest_weights_fit_and_one_byte_more_does_not(board_name: str) -> None:
    board = board_of(list(load_board(board_name).flash.sectors), None)

    def fits(weights: int) -> bool:
        try:
            plan_flash(board, 80 * KIB, weights, 64 * KIB)
        except BudgetError:
            return False
        return True

    low, high = 0, board.flash.bytes
    assert fits(low)
    assert not fits(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    layout = plan_flash(board, 80 * KIB, low, 64 * KIB)
    assert min(layout.slot_a.bytes, layout.slot_b.bytes) == slot_header_bytes(low) + low


def test_the_error_has_a_table_of_needs_and_a_remedy() -> None:
    inside = load_board("stm32f746").flash.sectors
    board = board_of(list(inside), None)
    with pytest.raises(BudgetError) as caught:
        plan_flash(board, 300 * KIB, 200 * KIB, 64 * KIB)
    text = str(caught.value)
    for row in (
        r"firmware with factory weights +307,200 bytes",
        r"weights slot A +208,896 bytes",
        r"sample log +65,536 bytes",
        r"flash of stm32f746 +1,048,576 bytes",
        r"left for the firmware +262,144 bytes",
        r"smaller model.*external_flash.*add-a-board",
    ):
        assert re.search(row, text), text


def test_a_firmware_larger_than_the_internal_flash_is_refused_with_both_flashes() -> None:
    board = load_board("stm32f746")
    assert plan_flash(board, 1024 * KIB, 0, 0).firmware.bytes == 1024 * KIB
    with pytest.raises(BudgetError) as caught:
        plan_flash(board, 1024 * KIB + 1, 0, 0)
    for row in (
        r"external flash +16,777,216 bytes",
        r"left for the firmware +1,048,576 bytes",
        r"firmware itself lies in the internal",
    ):
        assert re.search(row, str(caught.value)), str(caught.value)


def test_the_linker_script_leaves_no_placeholder_and_limits_the_firmware() -> None:
    board = load_board("stm32f407")
    layout = plan_flash(board, 0, 40 * KIB, 64 * KIB)
    text = linker_script(board, layout)
    assert "$" not in text
    assert f"LENGTH = {layout.firmware.bytes}" in text
    assert f"LENGTH = {board.sram_limit_bytes}" in text
    assert f"__slot_b_sector = {layout.slot_b.first_sector};" in text
