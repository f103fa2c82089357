"""The texts that Renode is given, beside those that have run there."""

from __future__ import annotations

from pathlib import Path

import pytest

from codegen.firmware.boards import load_board
from simulator.errors import ImageError
from simulator.machines.renode.machine import write_node
from simulator.machines.renode.platform_text import MODELS, model_files, platform_text

GOLDENS = Path(__file__).parent / "goldens"
PORT = 40_000


@pytest.mark.parametrize("board", ["stm32f407", "stm32f746"])
def test_a_boards_platform_is_the_one_that_has_run(board: str) -> None:
    """Where it has to change: run tests/simulator/machines in Renode, then write the new one."""
    golden = GOLDENS / f"{board}.repl"
    assert platform_text(load_board(board), PORT, "cow") == golden.read_text("utf-8")


def test_a_board_of_another_family_is_refused() -> None:
    board = load_board("stm32f746")
    for change in ({"port": "mine"}, {"cpu": "cortex-m33"}):
        with pytest.raises(ImageError, match="`tinyfleet machines` shows what runs it"):
            platform_text(board.model_copy(update=change), PORT, "cow")


def test_a_node_is_made_of_its_platform_its_firmware_and_then_what_is_its_own(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "cow"
    folder.mkdir()
    board = load_board("stm32f407")
    end = board.flash.address + board.flash.bytes
    content = [(0x0800_4000, b"who"), (end - 2, b"ok")]
    lines = write_node(board, folder, tmp_path / "firmware.elf", content, PORT).splitlines()
    assert lines == [
        'mach create "cow"',
        f"machine LoadPlatformDescription @{folder}/board.repl",
        f"sysbus LoadELF @{tmp_path}/firmware.elf",
        'macro reset "sysbus.cpu VectorTableOffset 0x08000000"',
        f"sysbus LoadBinary @{folder}/flash-0.bin 0x08004000",
        f"sysbus LoadBinary @{folder}/flash-1.bin {end - 2:#010x}",
    ]
    assert (folder / "flash-0.bin").read_bytes() == b"who"
    with pytest.raises(ImageError, match="lie outside of the flashes of board stm32f407"):
        write_node(board, folder, tmp_path / "firmware.elf", [(end - 1, b"no")], PORT)


def test_the_models_are_part_of_the_package() -> None:
    assert [path.name for path in model_files()] == list(MODELS)
    for path in model_files():
        assert "namespace Antmicro.Renode.Peripherals.Tinyfleet" in path.read_text("utf-8")
