"""`tinyfleet boards`: the boards that firmware can be built for."""

from __future__ import annotations

from codegen.firmware import boards
from fleet.cli._output import console, print_json, table


def list_boards(*, as_json: bool) -> None:
    """Print every board that comes with tinyfleet."""
    known = [boards.load_board(name) for name in boards.list_boards()]
    if as_json:
        print_json(
            [
                {
                    "name": board.name,
                    "title": board.title,
                    "cpu": board.cpu,
                    "clock_hz": board.clock_hz,
                    "sram_bytes": board.sram.bytes,
                    "sram_limit_bytes": board.sram_limit_bytes,
                    "stack_bytes": board.stack_bytes,
                    "flash_bytes": board.flash.bytes,
                    "external_flash_bytes": _external_bytes(board),
                }
                for board in known
            ]
        )
        return
    columns = ["board", "what it is", "MHz", "SRAM", "limit for firmware", "flash", "external"]
    rows = [
        [
            board.name,
            board.title,
            board.clock_hz // 1_000_000,
            board.sram.bytes,
            board.sram_limit_bytes,
            board.flash.bytes,
            _external_bytes(board) or "",
        ]
        for board in known
    ]
    console().print(table("Boards (sizes in bytes)", columns, rows))


def _external_bytes(board: boards.Board) -> int:
    return 0 if board.external_flash is None else board.external_flash.bytes
