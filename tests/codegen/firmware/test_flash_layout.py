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
    PERSONAL_HEADER_BYTES,
    SAMPLE_LOG_BYTES,
    WANTED_SAMPLES,
    FlashLayout,
    LogNeeds,
    layout_defines,
    linker_script,
    plan_flash,
    record_alignment,
    sample_log_needs,
    slot_header_bytes,
)

KIB = 1024
SECTOR = 64 * KIB
SMALL_LOG = [LogNeeds(64, LEAST_SAMPLES, 0)]


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


logs = st.lists(
    st.builds(LogNeeds, st.integers(1, 60_000), st.integers(0, 80), st.sampled_from([0, 64 * KIB])),
    min_size=1,
    max_size=2,
)


@given(
    board=boards,
    firmware=st.integers(0, 600 * KIB),
    weights=st.integers(0, 500 * KIB),
    log=logs,
    personal=st.one_of(st.just(0), st.integers(1, 200 * KIB)),
)
def test_regions_are_whole_sectors_of_one_flash_that_never_overlap_and_are_large_enough(
    board: Board, firmware: int, weights: int, log: list[LogNeeds], personal: int
) -> None:
    try:
        layout = plan_flash(board, firmware, weights, log, personal)
    except BudgetError:
        return  # other tests find the exact limit
    sizes = [size for flash in board.flashes.values() for size in flash.sectors]
    taken: list[int] = []
    for region in (layout.boot, layout.firmware, *layout.stores.values()):
        flash = board.flashes[region.flash]
        base = 0 if region.flash == "internal" else len(board.flash.sectors)
        sectors = range(region.first_sector, region.first_sector + region.sector_count)
        assert base <= sectors.start < sectors.stop <= base + len(flash.sectors)
        assert region.address == flash.address + sum(sizes[base : sectors.start])
        assert region.bytes == sum(sizes[sectors.start : sectors.stop])
        taken += sectors
    assert len(taken) == len(set(taken))
    assert (layout.boot.flash, layout.boot.first_sector) == ("internal", 0)
    assert (layout.boot.sector_count, layout.firmware.flash) == (1, "internal")
    assert layout.slot_a.flash == layout.slot_b.flash
    assert layout.identity.sector_count == 1
    first, second = (sizes[layout.journal.first_sector + i] for i in range(2))
    assert layout.journal.sector_count == 2
    assert first == second
    assert layout.firmware.bytes >= firmware
    slots = (layout.slot_a.bytes, layout.slot_b.bytes)
    assert min(slots) >= slot_header_bytes(weights) + weights
    assert (layout.personal is not None) == (personal > 0)
    if layout.personal is not None:
        own = layout.personal
        assert own.sector_count % 2 == 0
        assert own.bytes // 2 >= PERSONAL_HEADER_BYTES + personal
        of_it = range(own.first_sector, own.first_sector + own.sector_count)
        assert len({sizes[sector] for sector in of_it}) == 1, "units of one size"
    samples = layout.samples
    assert samples.bytes % samples.units == samples.sector_count % samples.units == 0
    inside = range(samples.first_sector, samples.first_sector + samples.sector_count)
    if samples.units > 1:
        assert len({sizes[sector] for sector in inside}) == 1, "units of one size"
    assert any(needs.fit(samples.bytes // samples.units, samples.units) for needs in log)


@given(
    board=boards,
    firmware=st.integers(0, 300 * KIB),
    weights=st.integers(0, 200 * KIB),
    log=logs,
)
def test_an_external_flash_changes_nothing_where_everything_fits_inside(
    board: Board, firmware: int, weights: int, log: list[LogNeeds]
) -> None:
    alone = Board.model_validate({**board.model_dump(), "external_flash": None})
    try:
        expected = plan_flash(alone, firmware, weights, log[:1])
    except BudgetError:
        return
    assert plan_flash(board, firmware, weights, log) == expected
    assert layout_defines(board, expected) == {}


def places(layout: FlashLayout) -> dict[str, tuple[int, int]]:
    """Address and bytes of every region, as flash.md has them."""
    regions = {"boot": layout.boot, **layout.stores, "firmware": layout.firmware}
    return {name: (region.address, region.bytes) for name, region in regions.items()}


def test_digits_on_the_f746_lies_where_the_page_says() -> None:
    layout = plan_flash(load_board("stm32f746"), 106_280, 41_428, sample_log_needs(64))
    assert places(layout) == {
        "boot": (0x08000000, 32 * KIB),
        "identity": (0x08008000, 32 * KIB),
        "journal": (0x08010000, 64 * KIB),
        "firmware": (0x08020000, 128 * KIB),
        "slot_a": (0x08040000, 256 * KIB),
        "slot_b": (0x08080000, 256 * KIB),
        "samples": (0x080C0000, 256 * KIB),
    }
    assert layout.samples.units == 1
    assert not layout.uses_external_flash


def test_digits_on_the_f407_lies_where_the_page_says() -> None:
    layout = plan_flash(load_board("stm32f407"), 137_464, 41_428, sample_log_needs(64))
    assert places(layout) == {
        "boot": (0x08000000, 16 * KIB),
        "identity": (0x08004000, 16 * KIB),
        "journal": (0x08008000, 32 * KIB),
        "firmware": (0x08010000, 448 * KIB),
        "slot_a": (0x08080000, 128 * KIB),
        "slot_b": (0x080A0000, 128 * KIB),
        "samples": (0x080C0000, 256 * KIB),
    }
    assert layout.samples.units == 2


def test_personal_tensors_lie_where_the_page_says_and_move_nothing_else() -> None:
    f407 = load_board("stm32f407")
    without = plan_flash(f407, 137_464, 41_428, sample_log_needs(64))
    layout = plan_flash(f407, 137_464, 41_428, sample_log_needs(64), 80_000)
    moved = {"firmware": (0x08010000, 192 * KIB), "personal": (0x08040000, 256 * KIB)}
    assert places(layout) == {**places(without), **moved}
    f746 = load_board("stm32f746")
    without = plan_flash(f746, 138_016 - 32 * KIB, 41_428, sample_log_needs(64))
    layout = plan_flash(f746, 138_016 - 32 * KIB, 41_428, sample_log_needs(64), 80_000)
    outside = {"personal": (0x90000000, 256 * KIB)}
    assert places(layout) == {**places(without), **outside}
    log = sample_log_needs(128 * 128 * 3)
    without = plan_flash(f746, 620_352, 49_256, log)
    layout = plan_flash(f746, 620_352, 49_256, log, 60_000)
    behind = {"personal": (0x90020000 + 65 * 64 * KIB, 128 * KIB)}
    assert places(layout) == {**places(without), **behind}
    with pytest.raises(BudgetError, match=r"personal tensors +600,256 bytes"):
        plan_flash(f407, 137_464, 41_428, sample_log_needs(64), 300_000)


def test_mcunet_on_the_f746_lies_where_the_page_says() -> None:
    log = sample_log_needs(128 * 128 * 3)
    layout = plan_flash(load_board("stm32f746"), 620_352, 49_256, log)
    assert places(layout) == {
        "boot": (0x08000000, 32 * KIB),
        "identity": (0x08008000, 32 * KIB),
        "journal": (0x08010000, 64 * KIB),
        "firmware": (0x08020000, 896 * KIB),
        "slot_a": (0x90000000, 64 * KIB),
        "slot_b": (0x90010000, 64 * KIB),
        "samples": (0x90020000, 65 * 64 * KIB),
    }
    assert layout.samples.units == 65
    assert layout.slot_a.first_sector == 8


def test_mcunet_does_not_fit_the_f407_by_what_the_page_says() -> None:
    log = sample_log_needs(128 * 128 * 3)
    board = load_board("stm32f407")
    with pytest.raises(BudgetError, match=r"left for the firmware +458,752 bytes"):
        plan_flash(board, 620_808 - 16 * KIB, 49_256, log)
    left = plan_flash(board, 458_752, 49_256, log)
    assert left.firmware.bytes + left.boot.bytes == 620_808 - 145_672


def test_what_is_too_large_for_the_inside_lies_in_the_external_flash() -> None:
    board = load_board("stm32f746")
    layout = plan_flash(board, 650 * KIB, 490 * KIB, sample_log_needs(128 * 128 * 3))
    assert layout.firmware.bytes == 896 * KIB
    assert layout.slot_a.address == 0x90000000
    assert [region.flash for region in (layout.slot_a, layout.slot_b, layout.samples)] == [
        "external"
    ] * 3
    assert layout.slot_a.first_sector == len(board.flash.sectors)
    defines = layout_defines(board, layout)
    assert defines["TF_EXTERNAL_FLASH_BYTES"] == "16777216u"
    assert defines["TF_EXTERNAL_FLASH_ID"] == "0x20ba18u"


def test_a_log_that_is_too_large_moves_alone_and_is_a_ring_there() -> None:
    layout = plan_flash(
        load_board("stm32f746"), 100 * KIB, 100 * KIB, sample_log_needs(64, 2000 * KIB)
    )
    assert layout.slot_b.flash == "internal"
    assert layout.samples.flash == "external"
    assert layout.samples.bytes == 2048 * KIB
    assert layout.samples.units == 32


def test_identity_and_journal_leave_a_flash_that_has_no_sectors_for_them() -> None:
    board = board_of([32 * KIB] * 3, (SECTOR, 256))
    layout = plan_flash(board, 60 * KIB, 144, SMALL_LOG)
    assert (layout.boot.first_sector, layout.firmware.first_sector) == (0, 1)
    assert layout.firmware.bytes == 64 * KIB
    assert {region.flash for region in layout.stores.values()} == {"external"}
    with pytest.raises(BudgetError):
        plan_flash(board_of([32 * KIB] * 3, None), 20 * KIB, 144, SMALL_LOG)


def test_the_log_is_smaller_than_wanted_where_only_that_fits() -> None:
    board = load_board("stm32f407")
    wanted, least = LogNeeds(20_000, 64, 0), LogNeeds(20_000, 3, 0)
    layout = plan_flash(board, 300 * KIB, 100 * KIB, [wanted, least])
    assert layout.samples.bytes == 256 * KIB
    assert layout.samples.units == 2
    with pytest.raises(BudgetError):
        plan_flash(board, 300 * KIB, 100 * KIB, [wanted])


def test_a_log_of_one_unit_is_taken_where_a_second_one_has_no_room() -> None:
    board = load_board("stm32f407")
    roomy = plan_flash(board, 448 * KIB, 100 * KIB, SMALL_LOG)
    assert roomy.samples.units == 2
    tight = plan_flash(board, 448 * KIB + 1, 100 * KIB, SMALL_LOG)
    assert tight.samples.units == 1


@given(sample=st.integers(1, 200_000))
def test_the_log_has_room_for_the_samples_that_are_wanted_while_a_unit_is_erased(
    sample: int,
) -> None:
    wanted, least = sample_log_needs(sample)
    board = board_of([256 * KIB, 64 * KIB, 64 * KIB, 64 * KIB, 64 * KIB], (SECTOR, 256))
    for needs, samples in ((wanted, WANTED_SAMPLES), (least, LEAST_SAMPLES)):
        log = plan_flash(board, 0, 100 * KIB, [needs]).samples
        place = record_alignment(log.bytes)
        assert log.bytes // place <= 65536
        unit = log.bytes // log.units
        header = -(-32 // place) * place
        per_unit = (unit - header - place) // (-(-(16 + sample) // place) * place)
        assert per_unit * max(1, log.units - 1) >= samples
        assert log.bytes >= SAMPLE_LOG_BYTES
        assert needs.capacity(unit, log.units) == per_unit * max(1, log.units - 1)


def test_a_sample_that_no_record_holds_is_refused() -> None:
    assert sample_log_needs(0xFFFFF)[1].samples == LEAST_SAMPLES
    with pytest.raises(BudgetError, match=r"1,048,576 bytes.*smaller input"):
        sample_log_needs(0x100000)


@pytest.mark.parametrize(
    ("weights", "header"),
    [(0, 4096), (1, 4096), (992 * 512, 4096), (992 * 512 + 1, 8192), (2016 * 512 + 1, 12288)],
)
def test_a_slot_has_a_mark_for_each_chunk(weights: int, header: int) -> None:
    assert slot_header_bytes(weights) == header
    external = load_board("stm32f746").external_flash
    assert external is not None
    layout = plan_flash(load_board("stm32f746"), 700 * KIB, weights, SMALL_LOG)
    assert layout.slot_a.bytes == -(-(header + weights) // SECTOR) * SECTOR


@pytest.mark.parametrize("board_name", list_boards())
def test_the_largest_weights_fit_and_one_byte_more_does_not(board_name: str) -> None:
    board = board_of(list(load_board(board_name).flash.sectors), None)

    def fits(weights: int) -> bool:
        try:
            plan_flash(board, 60 * KIB, weights, SMALL_LOG)
        except BudgetError:
            return False
        return True

    low, high = 0, board.flash.bytes
    assert fits(low)
    assert not fits(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    layout = plan_flash(board, 60 * KIB, low, SMALL_LOG)
    assert min(layout.slot_a.bytes, layout.slot_b.bytes) == slot_header_bytes(low) + low


def test_the_error_has_a_table_of_needs_and_a_remedy() -> None:
    inside = load_board("stm32f746").flash.sectors
    board = board_of(list(inside), None)
    with pytest.raises(BudgetError) as caught:
        plan_flash(board, 300 * KIB, 200 * KIB, sample_log_needs(64))
    text = str(caught.value)
    for row in (
        r"firmware with factory weights +307,200 bytes",
        r"boot, identity, journal +131,072 bytes",
        r"weights slot A +208,896 bytes",
        r"sample log +65,536 bytes",
        r"flash of stm32f746 +1,048,576 bytes",
        r"left for the firmware +131,072 bytes",
        r"smaller model.*external_flash.*add-a-board",
    ):
        assert re.search(row, text), text


def test_a_firmware_larger_than_the_internal_flash_is_refused_with_both_flashes() -> None:
    board = load_board("stm32f746")
    behind = (1024 - 32) * KIB
    assert plan_flash(board, behind, 0, SMALL_LOG).firmware.bytes == behind
    with pytest.raises(BudgetError) as caught:
        plan_flash(board, behind + 1, 0, SMALL_LOG)
    for row in (
        r"external flash +16,777,216 bytes",
        r"left for the firmware +1,015,808 bytes",
        r"firmware itself lies in the internal",
    ):
        assert re.search(row, str(caught.value)), str(caught.value)


def test_the_linker_script_leaves_no_placeholder_and_limits_the_firmware() -> None:
    board = load_board("stm32f407")
    layout = plan_flash(board, 0, 40 * KIB, SMALL_LOG)
    text = linker_script(board, layout, "reservoir", ["main", "tf_crc32"])
    assert "$" not in text
    assert f"LENGTH = {layout.boot.bytes}" in text
    assert f"LENGTH = {layout.firmware.bytes}" in text
    assert f"LENGTH = {board.sram_limit_bytes}" in text
    assert "*(.text.tf_crc32)" in text
    for name, region in layout.stores.items():
        assert f"__{name}_start = {region.address:#010x};" in text
        assert f"__{name}_sector = {region.first_sector};" in text
    assert f"__samples_units = {layout.samples.units};" in text
    assert "__samples_keep = 1;" in text
    assert "__samples_keep = 0;" in linker_script(board, layout)
