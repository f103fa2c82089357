"""The memories of a board as buffers, addressed as the core sees them."""

from __future__ import annotations

import functools
import os
import tempfile
from typing import IO

from codegen.firmware.boards import Board, FlashName
from simulator.errors import ImageError
from simulator.machines.elf_image import ElfImage
from simulator.machines.lazy_memory import LazyMemory

_NOISE = b"\xa5\x5a\xc3\x3c"
"""Real SRAM comes up with anything in it; a fixed pattern keeps runs repeatable."""


@functools.lru_cache(maxsize=16)
def _pristine(size: int, pieces: tuple[tuple[int, bytes], ...]) -> IO[bytes]:
    """A file of erased flash with ``pieces`` (offset, content); devices map it copy-on-write."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("flash"), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the cache entry
    file.write(b"\xff" * size)
    for first, data in pieces:
        file.seek(first)
        file.write(data)
    file.flush()
    return file


def sram_of(board: Board) -> LazyMemory:
    """The board's SRAM as it is when the power comes on."""
    size = board.sram.bytes
    return LazyMemory(size, _pristine(size, ((0, _NOISE * (size // 4)),)))


class FlashContent:
    """The content of a board's flashes; kept while the power is off.

    The external flash costs nothing before something looks at it: most bundles don't use it.
    """

    def __init__(self, board: Board, image: ElfImage | None = None) -> None:
        """Erased, but for ``image``.

        Raises: ImageError when the image lies outside the internal flash.
        """
        self._board = board
        pieces: list[tuple[int, bytes]] = []
        for start, data in image.segments if image is not None else ():
            first = start - board.flash.address
            if first < 0 or first + len(data) > board.flash.bytes:
                raise ImageError(
                    f"{image.path if image else ''} puts {len(data)} bytes at {start:#010x}, "
                    f"outside the flash of {board.name}; compile it for this board"
                )
            pieces.append((first, data))
        self._memories: dict[FlashName, LazyMemory] = {}
        self._views: dict[FlashName, memoryview] = {}
        self._open("internal", tuple(pieces))

    def view(self, flash: FlashName) -> memoryview:
        """All bytes of a flash of the board."""
        if flash not in self._views:
            self._open(flash, ())
        return self._views[flash]

    def start_of(self, flash: FlashName) -> int:
        """Where this process has the bytes of ``view``."""
        self.view(flash)
        return self._memories[flash].start

    def locate(self, address: int, size: int) -> tuple[memoryview, int] | None:
        """The flash that holds ``size`` bytes at ``address``, and their offset in it."""
        for name, flash in self._board.flashes.items():
            first = address - flash.address
            if first >= 0 and first + size <= flash.bytes:
                return self.view(name), first
        return None

    def write(self, address: int, data: bytes) -> None:
        """As a debug probe does, without regard to what was there.

        Raises: ImageError outside of all flashes.
        """
        place = self.locate(address, len(data))
        if place is None:
            raise ImageError(f"{len(data)} bytes for {address:#010x} lie outside the flash")
        view, first = place
        view[first : first + len(data)] = data

    def close(self) -> None:
        """Give back all memory."""
        for view in self._views.values():
            view.release()
        for memory in self._memories.values():
            memory.close()
        self._views.clear()
        self._memories.clear()

    def _open(self, name: FlashName, pieces: tuple[tuple[int, bytes], ...]) -> None:
        size = self._board.flashes[name].bytes
        memory = LazyMemory(size, _pristine(size, pieces))
        self._memories[name], self._views[name] = memory, memory.view()
