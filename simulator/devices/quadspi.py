"""The QUADSPI controller of STM32F7 (RM0385, chapter 14) in front of a NOR flash.

Commands and programming in indirect write mode, registers of the chip by status polling, reads in
memory-mapped mode: what the firmware's driver does. Indirect reads aren't emulated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from simulator.devices.flash_operations import FlashMisuse
from simulator.devices.nor_flash import NorFlash
from simulator.devices.peripherals import Peripheral

_ONE_LINE, _FOUR_LINES = 1, 3
_INDIRECT_WRITE, _POLL, _MAPPED = 0, 2, 3
_MAPPED_READ = {0xEB: (_FOUR_LINES, 10), 0x6B: (_ONE_LINE, 8)}
"""Commands that read over four lines: lines of the address, dummy cycles."""


@dataclass(frozen=True)
class _Command:
    """Fields of CCR."""

    instruction: int
    instruction_lines: int
    address_lines: int
    address_bytes: int
    dummy_cycles: int
    data_lines: int
    mode: int

    @classmethod
    def of(cls, value: int) -> _Command:
        return cls(
            value & 0xFF,
            value >> 8 & 3,
            value >> 10 & 3,
            (value >> 12 & 3) + 1,
            value >> 18 & 0x1F,
            value >> 24 & 3,
            value >> 26 & 3,
        )


class Quadspi(Peripheral):
    """Registers of the controller, and what they make of the chip."""

    BASE = 0xA0001000
    CR, DCR, SR, FCR, DLR, CCR, AR = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18
    DR, PSMKR, PSMAR = 0x20, 0x24, 0x28
    EN, ABORT, APMS = 1 << 0, 1 << 1, 1 << 22
    TCF, SMF, BUSY = 1 << 1, 1 << 3, 1 << 5
    REGISTERS: ClassVar[dict[str, int]] = {
        "CR": 0x00,
        "DCR": 0x04,
        "SR": 0x08,
        "FCR": 0x0C,
        "DLR": 0x10,
        "CCR": 0x14,
        "AR": 0x18,
        "ABR": 0x1C,
        "DR": 0x20,
        "PSMKR": 0x24,
        "PSMAR": 0x28,
        "PIR": 0x2C,
        "LPTR": 0x30,
    }

    def __init__(self, chip: NorFlash, set_mapped: Callable[[bool], None]) -> None:
        """``set_mapped`` opens and closes the chip's region of the address space for reads."""
        super().__init__()
        self.chip = chip
        self._set_mapped = set_mapped
        self.is_mapped = False
        self._flags = 0
        self._polled: _Command | None = None
        self._waits_for_data = False

    def reset(self) -> None:
        """Off; the chip has no reset line and goes on."""
        super().reset()
        self._flags = 0
        self._end()

    def read(self, offset: int) -> int:
        """A look at SR while polling is one poll of the chip."""
        if offset == self.SR:
            if self._polled is not None:
                self._poll(self._polled)
            busy = self._polled is not None or self._waits_for_data or self.is_mapped
            return self._flags | (self.BUSY if busy else 0)
        return 0 if offset == self.FCR else self.values[offset]

    def write(self, offset: int, value: int) -> None:
        """CCR, AR and DR start a command: whichever is the last that it needs.

        Raises: FlashMisuse.
        """
        if offset == self.CR:
            if value & self.ABORT or not value & self.EN:
                self._end()
            self.values[self.CR] = value & ~self.ABORT
        elif offset == self.FCR:
            self._flags &= ~value
        elif offset != self.SR:
            self._refuse_while_busy(offset)
            self.values[offset] = value
            if offset == self.CCR:
                self._start(_Command.of(value))
            elif offset == self.AR:
                self._address(_Command.of(self.values[self.CCR]))
            elif offset == self.DR:
                self._data(_Command.of(self.values[self.CCR]), value)

    def _refuse_while_busy(self, offset: int) -> None:
        if self.is_mapped:
            doing = "the flash is mapped"
        elif self._polled is not None:
            doing = "it polls"
        elif not self.values[self.CR] & self.EN and offset in (self.CCR, self.AR, self.DR):
            doing = "it is off"
        else:
            return
        name = next(name for name, place in self.REGISTERS.items() if place == offset)
        raise FlashMisuse(f"QUADSPI {name} written while {doing}")

    def _start(self, command: _Command) -> None:
        self._waits_for_data = False
        if command.instruction_lines != _ONE_LINE:
            raise FlashMisuse("the chip takes instructions over one line")
        if command.mode == _MAPPED:
            self._map(command)
        elif command.mode == _POLL:
            if command.address_lines or command.data_lines != _ONE_LINE or command.dummy_cycles:
                raise FlashMisuse("registers of the chip are read over one line, without address")
            if not self.values[self.CR] & self.APMS:
                raise FlashMisuse("polling without end (APMS is off)")
            self._polled = command
        elif command.mode != _INDIRECT_WRITE:
            raise FlashMisuse("indirect reads aren't emulated")
        elif command.address_lines == 0:
            if command.data_lines:
                raise FlashMisuse("the chip has no command with data and without address")
            self.chip.command(command.instruction)
            self._flags |= self.TCF
        elif command.address_lines != _ONE_LINE or command.address_bytes != 3:
            raise FlashMisuse("the chip takes addresses of 24 bits over one line")

    def _map(self, command: _Command) -> None:
        wanted = _MAPPED_READ.get(command.instruction)
        if (
            wanted != (command.address_lines, command.dummy_cycles)
            or command.address_bytes != 3
            or command.data_lines != _FOUR_LINES
        ):
            raise FlashMisuse(f"the chip's answer to {command} isn't where QUADSPI looks for it")
        if self.chip.is_busy:
            raise FlashMisuse("mapped while the chip programs or erases")
        if 2 << (self.values[self.DCR] >> 16 & 0x1F) != self.chip.description.bytes:
            raise FlashMisuse(f"mapped with FSIZE for another chip ({self.values[self.DCR]:#x})")
        self.is_mapped = True
        self._set_mapped(True)

    def _poll(self, command: _Command) -> None:
        answer = self.chip.register(command.instruction, self.values[self.DLR] % 4 + 1)
        value = self.values[self.DR] = int.from_bytes(answer, "little")
        if value & self.values[self.PSMKR] == self.values[self.PSMAR] & self.values[self.PSMKR]:
            self._flags |= self.SMF
            self._polled = None

    def _address(self, command: _Command) -> None:
        if command.address_lines == 0 or command.mode != _INDIRECT_WRITE:
            raise FlashMisuse("QUADSPI AR written for a command without address")
        if command.data_lines:
            self._waits_for_data = True
        else:
            self.chip.erase(command.instruction, self.values[self.AR])
            self._flags |= self.TCF

    def _data(self, command: _Command, value: int) -> None:
        if not self._waits_for_data or command.data_lines != _ONE_LINE:
            raise FlashMisuse("QUADSPI DR written for a command without data")
        if self.values[self.DLR] > 3:
            raise FlashMisuse("more than one word at a time isn't emulated")
        data = value.to_bytes(4, "little")[: self.values[self.DLR] + 1]
        self._waits_for_data = False
        self.chip.program(command.instruction, self.values[self.AR], data)
        self._flags |= self.TCF

    def _end(self) -> None:
        self._polled = None
        self._waits_for_data = False
        if self.is_mapped:
            self.is_mapped = False
            self._set_mapped(False)
