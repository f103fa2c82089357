"""What the simulator needs of a board: core, memories, flash sectors, USART version."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from simulator.errors import ImageError


@dataclass(frozen=True)
class BoardMap:
    """Memory map of a board (docs/specification/boards.md)."""

    name: str
    cpu: str
    sram_address: int
    sram_bytes: int
    sram_limit_bytes: int
    flash_address: int
    sectors: tuple[int, ...]
    usart_version: int

    @property
    def flash_bytes(self) -> int:
        """Size of the flash."""
        return sum(self.sectors)

    def sector_range(self, index: int) -> tuple[int, int]:
        """(address, bytes) of a flash sector."""
        return self.flash_address + sum(self.sectors[:index]), self.sectors[index]


def _number(value: Any) -> int:
    return int(value, 0) if isinstance(value, str) else int(value)


def board_map_from_json(data: dict[str, Any]) -> BoardMap:
    """Build the map from a board's JSON object.

    Raises: ImageError when a field is missing or the port isn't one that can be emulated.
    """
    try:
        if data["port"] != "stm32":
            raise ImageError(
                f"board {data['name']}: port {data['port']!r} can't be emulated, only 'stm32' can"
            )
        return BoardMap(
            name=data["name"],
            cpu=data["cpu"],
            sram_address=_number(data["sram"]["address"]),
            sram_bytes=_number(data["sram"]["bytes"]),
            sram_limit_bytes=_number(data["sram_limit_bytes"]),
            flash_address=_number(data["flash"]["address"]),
            sectors=tuple(_number(size) for size in data["flash"]["sectors"]),
            usart_version=2 if data.get("defines", {}).get("TF_BOARD_USART_V2") else 1,
        )
    except KeyError as error:
        raise ImageError(f"the board's description lacks {error}; see boards.md") from error


@functools.lru_cache
def load_board_map(name: str) -> BoardMap:
    """The board that ``codegen/boards/<name>.json`` describes.

    Raises: ImageError when there is no such board.
    """
    folder = resources.files("codegen") / "boards"
    try:
        text = (folder / f"{name}.json").read_text()
    except OSError:
        known = sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".json"))
        raise ImageError(f"there is no board {name!r}; known are {', '.join(known)}") from None
    return board_map_from_json(json.loads(text))
