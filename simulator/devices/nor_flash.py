"""A NOR flash chip of the N25Q family behind a quad-SPI controller.

Of its commands those that the firmware's driver uses; every other one is a misuse, and so is what
the real chip would ignore or do to another place than the one that was meant.
Source: datasheet of the N25Q128A; names of commands and bits are its own.
"""

from __future__ import annotations

from collections.abc import Callable

from codegen.firmware.boards import ExternalFlash
from simulator.devices.flash_operations import FlashMisuse, PowerCut

PAGE_BYTES = 256
READY = 1 << 7
ERASE_FAILED, PROGRAM_FAILED = 1 << 5, 1 << 4
READ_FLAG_STATUS, READ_IDENTIFICATION = 0x70, 0x9F
WRITE_ENABLE, CLEAR_FLAG_STATUS, RESET_ENABLE, RESET = 0x06, 0x50, 0x66, 0x99
PAGE_PROGRAM = 0x02
ERASES = {0x20: 4096, 0xD8: 65536}


class NorFlash:
    """The chip: content, write enable latch, flag status, and how long it stays busy."""

    def __init__(
        self, description: ExternalFlash, content: Callable[[], memoryview], power: PowerCut
    ) -> None:
        """``content`` gives all of its bytes; it is asked for at the first operation."""
        self.description = description
        self._content = content
        self._power = power
        self.busy_polls = 3.0
        """How often the status reads busy after an operation; infinity: for ever."""
        self.worn_out: set[int] = set()
        """Sectors that can neither be programmed nor erased any more."""
        self.power_on()

    def power_on(self) -> None:
        """Idle; the content stays."""
        self._polls_to_go = 0.0
        self._flags = 0
        self._write_enabled = False
        self._reset_enabled = False

    @property
    def is_busy(self) -> bool:
        """Whether it still programs or erases."""
        return self._polls_to_go > 0

    def command(self, instruction: int) -> None:
        """A command without address and data.

        Raises: FlashMisuse.
        """
        reset_enabled, self._reset_enabled = self._reset_enabled, instruction == RESET_ENABLE
        if instruction == RESET and reset_enabled:
            self.power_on()
            return
        if instruction == RESET_ENABLE:
            return
        self._refuse_while_busy(instruction)
        if instruction == WRITE_ENABLE:
            self._write_enabled = True
        elif instruction == CLEAR_FLAG_STATUS:
            self._flags = 0
        else:
            raise FlashMisuse(f"command {instruction:#04x} without address")

    def register(self, instruction: int, size: int) -> bytes:
        """Answer to a command that reads a register; the flag status is one poll.

        Raises: FlashMisuse.
        """
        if instruction == READ_FLAG_STATUS:
            is_ready = not self.is_busy
            self._polls_to_go = max(0.0, self._polls_to_go - 1)
            return bytes([self._flags | (READY if is_ready else 0)]) * size
        if instruction == READ_IDENTIFICATION:
            if self.is_busy:  # it doesn't drive its line
                return b"\xff" * size
            return self.description.id.to_bytes(3, "big").ljust(size, b"\x10")[:size]
        raise FlashMisuse(f"read of a register by command {instruction:#04x}")

    def program(self, instruction: int, offset: int, data: bytes) -> None:
        """A command with address and data: page program.

        Raises: FlashMisuse.
        """
        if instruction != PAGE_PROGRAM:
            raise FlashMisuse(f"command {instruction:#04x} with data")
        self._start_change(instruction, offset, len(data))
        if offset % PAGE_BYTES + len(data) > PAGE_BYTES:
            raise FlashMisuse(
                f"{len(data)} bytes programmed at {offset:#x} cross a page, where the chip wraps"
            )
        if offset // self.description.sector_bytes in self.worn_out:
            self._flags |= PROGRAM_FAILED
            return
        place = self._content()[offset : offset + len(data)]
        place[:] = self._power.programmed(bytes(place), data)[1]

    def erase(self, instruction: int, offset: int) -> None:
        """A command with address and no data: subsector or sector erase.

        Raises: FlashMisuse.
        """
        if instruction not in ERASES:
            raise FlashMisuse(f"command {instruction:#04x} with address and without data")
        size = ERASES[instruction]
        self._start_change(instruction, offset, 1)
        if offset // self.description.sector_bytes in self.worn_out:
            self._flags |= ERASE_FAILED
            return
        place = self._content()[offset // size * size :][:size]
        place[:] = self._power.erased(bytes(place))

    def _start_change(self, instruction: int, offset: int, size: int) -> None:
        self._refuse_while_busy(instruction)
        if not self._write_enabled:
            raise FlashMisuse(f"command {instruction:#04x} without write enable")
        if offset + size > self.description.bytes:
            raise FlashMisuse(f"command {instruction:#04x} at {offset:#x}, beyond the chip")
        self._write_enabled = False
        self._polls_to_go = self.busy_polls

    def _refuse_while_busy(self, instruction: int) -> None:
        if self.is_busy:
            raise FlashMisuse(f"command {instruction:#04x} while the chip programs or erases")
