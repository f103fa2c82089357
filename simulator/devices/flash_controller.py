"""The flash interface of STM32F4/F7: unlock, program by words, erase by sectors, lose power.

Content lives in one buffer for all of the flash. Programming can only clear bits, erasing
sets a whole sector to ones. These flashes have one bank: while it programs or erases, nothing can
be read from it, so that a core whose code lies there stands still.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from codegen.firmware.boards import Board
from simulator.clock import MILLISECOND
from simulator.devices.flash_operations import FlashMisuse, PowerCut
from simulator.devices.peripherals import Peripheral

ERASE_MILLISECONDS = {
    "stm32f4": {
        16 << 10: (800, 600, 500),
        64 << 10: (2400, 1400, 1100),
        128 << 10: (4000, 2600, 2000),
    },
    "stm32f7": {
        32 << 10: (800, 600, 500),
        128 << 10: (2400, 1400, 1100),
        256 << 10: (4000, 2600, 2000),
    },
}
"""The longest that erasing a sector of this size takes, with PSIZE of 8, 16 and 32 bits (datasheets
of the STM32F405/407 and the STM32F745/746, "Flash memory programming"). Typical is half of it."""
PROGRAM_NANOSECONDS = 16_000
"""Typical for a word; 100 µs at most."""


class FlashController(Peripheral):
    """Registers of the flash interface, and what they do to the content."""

    BASE = 0x40023C00
    ACR, KEYR, OPTKEYR, SR, CR, OPTCR = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x14
    PG, SER, MER, STRT, LOCK = 1 << 0, 1 << 1, 1 << 2, 1 << 16, 1 << 31
    PSIZE_WORD = 2
    KEYS = (0x45670123, 0xCDEF89AB)
    REGISTERS: ClassVar[dict[str, int]] = {
        "ACR": 0x00,
        "KEYR": 0x04,
        "OPTKEYR": 0x08,
        "SR": 0x0C,
        "CR": 0x10,
        "OPTCR": 0x14,
    }

    def __init__(
        self,
        board: Board,
        content: memoryview,
        code: tuple[tuple[int, int], ...],
        power: PowerCut,
        stand_still: Callable[[int], None],
    ) -> None:
        """``content``: all of the flash. ``code``: (address, bytes) that must not be erased.

        ``stand_still`` is called with the nanoseconds for which the core executes nothing.
        """
        super().__init__()
        self._stand_still = stand_still
        self._board, self.content, self._code, self._power = board, content, code, power
        self._keys_seen = 0
        self._key_error = False
        self.reset()

    def reset(self) -> None:
        """Locked, nothing selected; the content stays."""
        super().reset()
        self.values[self.CR] = self.LOCK
        self._keys_seen = 0
        self._key_error = False

    def read(self, offset: int) -> int:
        """The core stands still during an operation, so SR never shows busy to it."""
        return 0 if offset in (self.KEYR, self.OPTKEYR, self.SR) else self.values[offset]

    def write(self, offset: int, value: int) -> None:
        """Keys unlock CR; STRT with SER erases.

        Raises: FlashMisuse.
        """
        if offset == self.KEYR:
            self._take_key(value)
        elif offset == self.CR:
            self._control(value)
        elif offset != self.SR:
            self.values[offset] = value

    def _take_key(self, value: int) -> None:
        if not self._key_error and value == self.KEYS[self._keys_seen % 2]:
            self._keys_seen += 1
            if self._keys_seen == 2:
                self.values[self.CR] &= ~self.LOCK
                self._keys_seen = 0
        else:  # the real interface stays locked until the next reset
            self._key_error = True
            raise FlashMisuse(f"wrong flash key {value:#010x}")

    def _control(self, value: int) -> None:
        if self.values[self.CR] & self.LOCK:
            if value & self.LOCK:
                return
            raise FlashMisuse("flash control written while locked")
        if value & self.MER:
            raise FlashMisuse("mass erase would erase the running firmware")
        start = value & self.STRT
        self.values[self.CR] = value & ~self.STRT
        if start:
            if not value & self.SER or value & self.PG:
                raise FlashMisuse("STRT needs SER set and PG clear")
            self._erase(value >> 3 & 0xF)

    def _erase(self, sector: int) -> None:
        if sector >= len(self._board.flash.sectors):
            raise FlashMisuse(f"erase of sector {sector}, which isn't there")
        address = self._board.flash.sector_address(sector)
        size = self._board.flash.sectors[sector]
        for start, length in self._code:
            if start < address + size and address < start + length:
                raise FlashMisuse(f"erase of sector {sector}, which holds the running firmware")
        self._stand_still(self.erase_milliseconds(size) * MILLISECOND)
        first = address - self._board.flash.address
        sector_content = self.content[first : first + size]
        sector_content[:] = self._power.erased(bytes(sector_content))

    def erase_milliseconds(self, sector_bytes: int) -> int:
        """The longest that erasing such a sector takes with the parallelism that is set."""
        times = ERASE_MILLISECONDS[self._board.flash.controller]
        listed = min((size for size in times if size >= sector_bytes), default=max(times))
        return times[listed][min(2, self.values[self.CR] >> 8 & 3)]

    def program(self, address: int, size: int, value: int) -> tuple[bool, bytes]:
        """A store of the CPU to flash.

        Returns: whether the store went through (False: power was cut in it and the content is
        as the cut left it), and the bytes that the location must hold afterwards.

        Raises: FlashMisuse when locked, PG not set, or not one aligned word.
        """
        control = self.values[self.CR]
        if control & self.LOCK or not control & self.PG:
            raise FlashMisuse("store to flash without unlock and PG")
        if control >> 8 & 3 != self.PSIZE_WORD or size != 4 or address % 4:
            raise FlashMisuse(f"flash takes aligned words (PSIZE 2), not {size} bytes")
        for start, length in self._code:
            if start <= address < start + length:
                raise FlashMisuse("store over the running firmware")
        self._stand_still(PROGRAM_NANOSECONDS)
        first = address - self._board.flash.address
        went_through, data = self._power.programmed(
            bytes(self.content[first : first + 4]), (value & 0xFFFFFFFF).to_bytes(4, "little")
        )
        if not went_through:
            self.content[first : first + 4] = data
        return went_through, data
