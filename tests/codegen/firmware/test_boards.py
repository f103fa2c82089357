"""Boards: those that come with the package, and descriptions of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from codegen.errors import BoardError
from codegen.firmware.boards import list_boards, load_board

SOURCES = Path(__file__).parents[3] / "codegen" / "firmware" / "boards"


EXTERNAL = json.loads((SOURCES / "stm32f746.json").read_text())["external_flash"]


def description(**changes: object) -> dict[str, object]:
    data = json.loads((SOURCES / "stm32f407.json").read_text())
    return {**data, **changes}


@pytest.mark.parametrize("name", list_boards())
def test_every_board_of_the_package_loads_under_its_own_name(name: str) -> None:
    board = load_board(name)
    assert board.name == name
    assert board.sram_limit_bytes <= min(board.sram.bytes, 256 * 1024)


def test_the_two_boards_of_the_demo_are_there() -> None:
    assert {"stm32f407", "stm32f746"} <= set(list_boards())


def test_addresses_are_numbers_and_sectors_follow_each_other() -> None:
    flash = load_board("stm32f746").flash
    assert flash.address == 0x08000000
    assert flash.bytes == 1024 * 1024
    assert flash.sector_address(0) == flash.address
    assert flash.sector_address(5) == 0x08040000
    with pytest.raises(IndexError):
        flash.sector_address(8)


def test_an_external_flash_has_sectors_of_one_size_and_is_listed_behind_the_internal_one() -> None:
    board = load_board("stm32f746")
    flash = board.external_flash
    assert flash is not None
    assert (flash.address, flash.bytes, flash.id) == (0x90000000, 2**24, 0x20BA18)
    assert flash.sectors == (65536,) * 256
    assert board.flashes == {"internal": board.flash, "external": flash}
    assert list(load_board("stm32f407").flashes) == ["internal"]


def test_what_a_board_takes_while_it_computes_may_be_left_out(tmp_path: Path) -> None:
    assert load_board("stm32f407").active_milliwatts == 132
    assert load_board("stm32f746").active_milliwatts == 248
    file = tmp_path / "mine.json"
    own = {key: value for key, value in description().items() if key != "active_milliwatts"}
    file.write_text(json.dumps(own))
    assert load_board(file).active_milliwatts is None
    file.write_text(json.dumps(description(active_milliwatts=0)))
    with pytest.raises(BoardError, match="active_milliwatts"):
        load_board(file)


def test_a_board_is_frozen() -> None:
    with pytest.raises(ValidationError):
        load_board("stm32f407").stack_bytes = 1  # type: ignore[misc]


def test_a_description_of_the_users_own_is_read_from_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(description(name="mine", sram_limit_bytes=65536)))
    assert load_board(path).sram_limit_bytes == 65536
    assert load_board(str(path)).name == "mine"


def test_an_unknown_board_is_refused_with_the_known_names() -> None:
    with pytest.raises(BoardError, match=r"no board 'arduino'; known boards: .*stm32f746"):
        load_board("arduino")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clock_hz": "fast"}, "clock_hz"),
        ({"sram": {"address": "0x2000zzzz", "bytes": 1024}}, r"sram\.address"),
        ({"sram": {"address": "0x20000000", "bytes": -1}}, r"sram\.bytes"),
        ({"sram_limit_bytes": 999999}, "more than the board's 131072 bytes"),
        ({"stack_bytes": 2048}, "signature needs up to 3072 bytes"),
        ({"stack_bytes": 131072}, "stack_bytes leaves nothing"),
        ({"flash": {"address": "0x0", "sectors": [], "controller": "x"}}, r"flash\.sectors"),
        ({"cpu": "avr"}, "cpu"),
        ({"cpu": "cortex-m3"}, "dsp true: a cortex-m3 never has it"),
        ({"dsp": False}, "dsp false: a cortex-m4 always has it"),
        ({"mve": True}, "mve true: a cortex-m4 never has it"),
        ({"colour": "blue"}, "colour"),
        ({"name": "../etc"}, "name"),
        ({"external_flash": EXTERNAL | {"sector_count": 3}}, "powers of two up to 16777216"),
        ({"external_flash": EXTERNAL | {"sector_count": 512}}, "powers of two up to 16777216"),
        ({"external_flash": EXTERNAL | {"sector_bytes": 8192}}, r"external_flash\.sector_bytes"),
        ({"external_flash": EXTERNAL | {"address": "0x60000000"}}, "maps its flash at 0x90000000"),
        ({"external_flash": EXTERNAL | {"chip": "w25q"}}, r"external_flash\.chip"),
        ({"external_flash": EXTERNAL | {"id": "0x1000000"}}, r"external_flash\.id"),
    ],
)
def test_a_wrong_description_is_refused_by_field(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(description(**changes)))
    with pytest.raises(BoardError, match=message):
        load_board(path)


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe", b"[]", b"3"])
def test_a_damaged_description_gives_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "damaged.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BoardError, match="known board"):
        load_board(path)
