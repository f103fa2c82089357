"""The parts of a board in Unicorn, wired up: core, memories, peripherals, serial line.

What they tell of refused accesses, resets and lost power goes to the methods that a machine
overrides; time is the machine's, too.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from unicorn import unicorn_const
from unicorn.unicorn_py3 import unicorn as binding

from codegen.firmware.boards import Board
from simulator.devices.core_clock import CoreClock
from simulator.devices.flash_controller import FlashController
from simulator.devices.flash_operations import FlashMisuse, PowerCut
from simulator.devices.interrupts import SystemControl
from simulator.devices.nor_flash import NorFlash
from simulator.devices.peripherals import (
    Adc1,
    GpioA,
    GpioB,
    GpioD,
    GpioE,
    Iwdg,
    Peripheral,
    Pwr,
    Rcc,
    Rng,
    Tim2,
)
from simulator.devices.quadspi import Quadspi
from simulator.devices.serial_line import SerialLine
from simulator.devices.serial_port import Dma2, Usart
from simulator.errors import ImageError, MachineFault
from simulator.machines import core_exceptions
from simulator.machines.board_memory import FlashContent, sram_of
from simulator.machines.elf_image import ElfImage
from simulator.machines.protocol import StopReason
from simulator.machines.unicorn_core import ACCESS, MODELS, NOT_EXECUTABLE, CoreRegisters
from simulator.machines.unicorn_engine import (
    EXECUTABLE,
    READABLE,
    WRITABLE,
    BoardEngine,
    Mapping,
)

BUS_CLOCKS = 16
"""Clocks of the core that an access to a register takes over the bridge to a peripheral bus."""


def can_run(board: Board) -> bool:
    """Whether there is a core like this board's, and the peripherals that its port uses."""
    return board.port == "stm32" and can_call(board)


def can_call(board: Board) -> bool:
    """Whether functions of its image can be called: also of a port that touches no peripherals."""
    return (board.port == "stm32" or board.engine_only) and board.cpu in MODELS


class UnicornBoard(CoreRegisters, ABC):
    """A board with an image in its flash, without power."""

    def __init__(
        self,
        board: Board,
        image: ElfImage,
        battery_percent: Callable[[], float],
        seed: int,
        flash_content: Iterable[tuple[int, bytes]],
        takes_turns: bool,
    ) -> None:
        """``takes_turns``: on the engine of all boards of this image that do.

        Raises: ImageError when the image doesn't fit the board.
        """
        super().__init__()
        self.board, self.image = board, image
        if not can_call(board):
            raise ImageError(
                f"board {board.name}: Unicorn has boards of the port stm32 with "
                f"{' or '.join(sorted(MODELS))}, not {board.port} with {board.cpu}; run it as "
                "another machine, and measure the model on such a board with a core of its kind"
            )
        self.clock = CoreClock(Rcc.INTERNAL_HZ)
        self._caught: MachineFault | None = None
        self._pending_flash: list[tuple[int, bytes]] = []
        self._stop_cause: StopReason | None = None

        self._flashes = FlashContent(board, image)
        self._sram = sram_of(board)
        self.flash = self._flashes.view("internal")
        """Its content; ``write_flash`` writes to it."""
        self.sram = self._sram.view()
        self._has_own_code = False
        for address, data in flash_content:
            self._write_flash(address, data)

        code = tuple((address, len(data)) for address, data in image.segments)
        self._power_cut = PowerCut(lambda: self._stop(StopReason.POWER_CUT))
        self.flash_controller = FlashController(
            board, self.flash, code, self._power_cut, self._stand_still
        )
        defines = board.defines
        self.gpio = GpioB(defines.get("TF_BOARD_DTR_PIN", 0), defines.get("TF_BOARD_DCD_PIN", 1))
        self.clocks = Rcc(self._clocks_changed)
        self.watchdog = Iwdg(self.clock, self._set_limit)
        self.system = SystemControl(
            board.cpu,
            self.clock,
            lambda: self.clocks.core_hz,
            lambda: self._stop(StopReason.RESET),
        )
        self._make_serial_port(2 if defines.get("TF_BOARD_USART_V2") else 1)
        self._peripherals: list[Peripheral] = [
            self.clocks,
            Pwr(),
            self.watchdog,
            self.flash_controller,
            self.usart,
            self.dma,
            self.gpio,
            GpioA(),
            Tim2(self._timer_time, lambda: self.clocks.apb1_timer_hz),
            Adc1(battery_percent),
            Rng(seed),
            self.system,
        ]
        self.nor_flash: NorFlash | None = None
        external = board.external_flash
        if external is not None:
            content = functools.partial(self._flashes.view, "external")
            self.nor_flash = NorFlash(external, content, self._power_cut)
            quadspi = Quadspi(self.nor_flash, self._set_external_flash_mapped)
            self._peripherals += [quadspi, GpioD(), GpioE()]
        self._external_permissions: int | None = None
        self.hooks: dict[int, tuple[int, Any]] = {}
        self._hooks_installed = 0
        places = [(peripheral.BASE, peripheral.SIZE) for peripheral in self._peripherals]
        if takes_turns:
            self._turns = BoardEngine.shared(board, places, image)
        else:
            self._turns = BoardEngine(board, places)
        self._turns.join(self)

    # --- What a machine adds -------------------------------------------------------------------

    @abstractmethod
    def _stand_still(self, nanoseconds: int) -> None:
        """The core executes nothing for so long; all else goes on."""

    @abstractmethod
    def _set_limit(self) -> None:
        """When the core is to be stopped has changed."""

    @abstractmethod
    def _clocks_changed(self) -> None:
        """The firmware has set up its clocks."""

    @abstractmethod
    def _timer_time(self) -> int:
        """What timers count: nanoseconds."""

    @abstractmethod
    def _transmit(self, data: bytes) -> None:
        """Bytes have reached the modem."""

    # --- For measuring and tests ---------------------------------------------------------------

    def read_memory(self, address: int, size: int) -> bytes:
        """Bytes of SRAM or flash.

        Raises: MachineFault outside of both.
        """
        view, first = self._memory(address, size, "read")
        return bytes(view[first : first + size])

    def write_flash(self, address: int, data: bytes) -> None:
        """Put ``data`` into a flash as a debug probe does.

        Raises: ImageError outside of all flashes.
        """
        if self._write_flash(address, data):
            self._turns.code_changed(self)

    def write_sram(self, address: int, data: bytes) -> None:
        """Store to SRAM.

        Raises: MachineFault outside of it.
        """
        self._dma_store(address, data)

    # --- Parts ---------------------------------------------------------------------------------

    def _make_serial_port(self, version: int) -> None:
        self.usart = Usart(version, self._transmit, lambda: self.clocks.usart1_hz)
        self.line = SerialLine(self.clock, self.usart, self._transmit)
        self.dma = Dma2(
            self.usart,
            self._dma_load,
            self._dma_store,
            self.line.send_to_modem,
            self.line.stop_sending,
        )
        self.line.dma = self.dma
        self.usart.bring_up_to_date = self.dma.bring_up_to_date = self.line.bring_up_to_date
        connect = self.system.interrupts.connect
        self.usart.interrupt_may_rise = connect(
            Usart.INTERRUPT, lambda: self.usart.interrupt_is_asserted
        )
        for stream, line in enumerate(Dma2.INTERRUPTS):
            is_asserted = functools.partial(self.dma.interrupt_is_asserted, stream)
            self.dma.interrupt_may_rise[stream] = connect(line, is_asserted)

    # --- Turns ---------------------------------------------------------------------------------

    @property
    def _engine(self) -> Any:
        return self._turns.turn_of(self)

    def add_hook(self, kind: int, callback: Any) -> int:
        """Install a raw Unicorn hook (a ctypes callback); translations start afresh.

        Returns: its handle for ``remove_hook``. Hooks don't survive ``power_on``.
        """
        self._hooks_installed += 1
        self.hooks[self._hooks_installed] = kind, callback
        self._turns.hooks_changed(self)
        return self._hooks_installed

    def remove_hook(self, handle: int) -> None:
        """Take out a hook, if it is still there."""
        if self.hooks.pop(handle, None) is not None:
            self._turns.hooks_changed(self)

    def flush_translations(self) -> None:
        """Forget translated code, for whoever has written code to ``flash`` itself."""
        self._turns.code_changed(self)

    def mappings(self) -> Iterator[Mapping]:
        """All memory that the core sees."""
        flash, sram = self.board.flash, self.board.sram
        own = self._flashes.start_of("internal") - flash.address
        for part in self._turns.flash:
            shared = None if self._has_own_code else part.shared
            start = own + part.address if shared is None else shared
            yield Mapping(part.address, part.size, start, EXECUTABLE)
        yield Mapping(sram.address, sram.bytes, self._sram.start, WRITABLE)
        external = self.board.external_flash
        if external is not None and self._external_permissions is not None:
            start = self._flashes.start_of("external")
            yield Mapping(external.address, external.bytes, start, self._external_permissions)

    def read_register_of(self, peripheral: int, offset: int, size: int) -> int:
        """The core reads from a peripheral."""
        one = self._peripherals[peripheral]
        self.clock.execute(BUS_CLOCKS)
        try:
            if self._pending_flash:
                self._settle_flash()
            if size == 4 and one.has(offset):
                return one.read(offset)
            self._register_fault("read", one.BASE + offset, size)
        except Exception as error:  # must not escape into C
            self._stop_with(self._make_fault(str(error), one.BASE + offset, "read"))
        return 0

    def write_register_of(self, peripheral: int, offset: int, size: int, value: int) -> None:
        """The core writes to a peripheral."""
        if self._stop_cause is not None:
            return
        one = self._peripherals[peripheral]
        self.clock.execute(BUS_CLOCKS)
        try:
            if self._pending_flash:
                self._settle_flash()
            if size == 4 and one.has(offset):
                one.write(offset, value & 0xFFFFFFFF)
            else:
                self._register_fault("write", one.BASE + offset, size)
        except Exception as error:  # must not escape into C
            self._stop_with(self._make_fault(str(error), one.BASE + offset, "write"))

    def _stop(self, cause: StopReason) -> None:
        if self._stop_cause is None:
            self._stop_cause = cause
        binding.uclib.uc_emu_stop(self._engine)

    def _stop_with(self, fault: MachineFault) -> None:
        if self._caught is None:
            self._caught = fault
        binding.uclib.uc_emu_stop(self._engine)

    def _set_external_flash_mapped(self, on: bool) -> None:
        self._external_permissions = READABLE if on else unicorn_const.UC_PROT_NONE
        self._turns.map_memory_of(self)

    def _memory(self, address: int, size: int, access: str) -> tuple[memoryview, int]:
        board = self.board
        sram_end = board.sram.address + board.sram.bytes
        if board.sram.address <= address and address + size <= sram_end:
            return self.sram, address - board.sram.address
        in_flash = self._flashes.locate(address, size) if access == "read" else None
        if in_flash is not None:
            return in_flash
        raise self._make_fault(f"{size} bytes outside the memory of {board.name}", address, access)

    def _dma_load(self, address: int, size: int) -> bytes:
        return self.read_memory(address, size)

    def _dma_store(self, address: int, data: bytes) -> None:
        view, first = self._memory(address, len(data), "write")
        view[first : first + len(data)] = data

    def _settle_flash(self) -> None:
        """Unicorn stores the plain value after the hook; flash can only clear bits."""
        for address, data in self._pending_flash:
            first = address - self.board.flash.address
            self.flash[first : first + len(data)] = data
        self._pending_flash.clear()

    def invalid_access(self, kind: int, address: int, size: int, value: int) -> bool:
        """The memory refuses an access of the core; whether it is made all the same."""
        try:
            access = ACCESS.get(kind, "access")
            if self._stop_cause is StopReason.POWER_CUT:
                return False
            if kind == unicorn_const.UC_MEM_WRITE_PROT and self._in_flash(address):
                if self._pending_flash:
                    self._settle_flash()
                went_through, data = self.flash_controller.program(address, size, value)
                if went_through and int.from_bytes(data, "little") != value & 0xFFFFFFFF:
                    self._pending_flash.append((address, data))
                return went_through
            status = core_exceptions.status_of_access(kind, address)
            self._stop_with(
                self._access_fault(f"{access} of {size} bytes", access, address, status)
            )
        except FlashMisuse as error:
            self._stop_with(self._make_fault(f"{error} at {address:#010x}", address, "write"))
        except Exception as error:  # must not escape into C
            self._stop_with(self._make_fault(repr(error), address, "access"))
        return False

    def _access_fault(self, what: str, access: str, address: int, status: int) -> MachineFault:
        text = f"{what} at {address:#010x}, where {self.board.name} has {self._what_is_at(address)}"
        return self._make_fault(text, address, access, status)

    def _write_flash(self, address: int, data: bytes) -> bool:
        """Returns whether it went over code, which is this board's own from now on."""
        self._flashes.write(address, data)
        is_code = any(
            start < address + len(data) and address < start + len(content)
            for start, content in self.image.segments
        )
        self._has_own_code |= is_code
        return is_code

    def _in_flash(self, address: int) -> bool:
        return 0 <= address - self.board.flash.address < self.board.flash.bytes

    def _what_is_at(self, address: int) -> str:
        if self._in_flash(address) or (
            0 <= address - self.board.sram.address < self.board.sram.bytes
        ):
            return "no such access"
        if self._flashes.locate(address, 1) is None:
            return "nothing"
        return "an external flash that can only be read, and only while QUADSPI maps it"

    def exception(self, number: int) -> None:
        """The core takes an exception of Unicorn's, of which the firmware uses none."""
        names = {2: "svc", 3: "prefetch abort", 7: "bkpt"}
        text = f"{names.get(number, f'exception {number}')}, which the firmware must not use"
        undefined = core_exceptions.UNDEFINED_INSTRUCTION
        self._stop_with(self._make_fault(text, None, "execute", undefined))

    def _execution_fault(self, status: int) -> MachineFault:
        if status == NOT_EXECUTABLE:
            not_executable = core_exceptions.INSTRUCTION_ACCESS
            return self._access_fault("fetch", "fetch", self.pc, not_executable)
        if status == unicorn_const.UC_ERR_INSN_INVALID:
            undefined = core_exceptions.UNDEFINED_INSTRUCTION
            return self._make_fault("undefined instruction", None, "execute", undefined)
        return self._make_fault(binding.uclib.uc_strerror(status).decode(), None, "execute")

    def _register_fault(self, access: str, address: int, size: int) -> None:
        self._stop_with(
            self._make_fault(
                f"{access} of {size} bytes at {address:#010x}: no such 32-bit register on"
                f" {self.board.name}",
                address,
                access,
            )
        )

    @staticmethod
    def _make_fault(text: str, address: int | None, access: str, status: int = 0) -> MachineFault:
        return MachineFault(text, address=address, access=access, status=status)

    def _located(self, fault: MachineFault, pc: int) -> MachineFault:
        return MachineFault(
            f"{fault} by PC {pc:#010x} ({self.image.locate(pc)})",
            address=fault.address,
            access=fault.access,
            pc=pc,
            symbol=self.image.function_at(pc),
            status=fault.status,
        )
