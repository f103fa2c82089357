"""Flash layout: regions are whole sectors that never overlap, or the table says why not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.boards import list_boards, load_board
from codegen.errors import BudgetError
from codegen.flash_layout import linker_script, plan_flash

KIB = 1024


@given(
    board_name=st.sampled_from(list_boards()),
    firmware=st.integers(0, 600 * KIB),
    weights=st.integers(0, 500 * KIB),
    samples=st.integers(0, 300 * KIB),
)
def test_regions_are_whole_sectors_that_tile_the_flash_and_are_large_enough(
    board_name: str, firmware: int, weights: int, samples: int
) -> None:
    board = load_board(board_name)
    try:
        layout = plan_flash(board, firmware, weights, samples)
    except BudgetError:
        return  # the test below finds the exact limit
    regions = [layout.firmware, layout.slot_a, layout.slot_b, layout.samples]
    sector = 0
    for region in regions:
        assert region.first_sector == sector
        assert region.sector_count >= 1
        assert region.address == board.flash.sector_address(sector)
        sector += region.sector_count
        sizes = board.flash.sectors[region.first_sector : sector]
        assert region.bytes == sum(sizes)
    assert sector == len(board.flash.sectors)
    assert layout.firmware.bytes >= firmware
    assert layout.weights_limit_bytes >= weights
    assert layout.samples.bytes >= samples


@pytest.mark.parametrize("board_name", list_boards())
def test_the_largest_weights_fit_and_one_byte_more_does_not(board_name: str) -> None:
    board = load_board(board_name)

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
    assert layout.weights_limit_bytes == low


def test_the_error_has_a_table_of_needs_and_a_remedy() -> None:
    board = load_board("stm32f746")
    with pytest.raises(BudgetError) as caught:
        plan_flash(board, 300 * KIB, 200 * KIB, 64 * KIB)
    text = str(caught.value)
    for row in (
        r"firmware with factory weights +307,200 bytes",
        r"weights slot A +208,896 bytes",
        r"sample log +65,536 bytes",
        r"flash of stm32f746 +1,048,576 bytes",
        r"left for the firmware +262,144 bytes",
        r"smaller model",
    ):
        assert re.search(row, text), text


def test_the_linker_script_leaves_no_placeholder_and_limits_the_firmware() -> None:
    board = load_board("stm32f407")
    layout = plan_flash(board, 0, 40 * KIB, 64 * KIB)
    text = linker_script(board, layout)
    assert "$" not in text
    assert f"LENGTH = {layout.firmware.bytes}" in text
    assert f"LENGTH = {board.sram_limit_bytes}" in text
    assert f"__slot_b_sector = {layout.slot_b.first_sector};" in text
