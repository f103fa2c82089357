"""The parts of a board in Unicorn, wired up: core, memories, peripherals, serial line.

What they tell of refused accesses, resets and lost power goes to the methods that a machine
overrides; time is the machine's, too.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
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
from simulator.machines.board_memory import FlashContent
from simulator.machines.elf_image import ElfImage
from simulator.machines.protocol import StopReason
from simulator.machines.unicorn_core import ACCESS, INVALID_ACCESS, MODELS, UnicornCore

BUS_CLOCKS = 16
"""Clocks of the core that an access to a register takes over the bridge to a peripheral bus."""


def can_run(board: Board) -> bool:
    """Whether there is a core like this board's, and the peripherals that its port uses."""
    return board.port == "stm32" and board.cpu in MODELS


class UnicornBoard(UnicornCore, ABC):
    """A board with an image in its flash, without power."""

    def __init__(
        self,
        board: Board,
        image: ElfImage,
        battery_percent: Callable[[], float],
        seed: int,
        flash_content: Iterable[tuple[int, bytes]],
    ) -> None:
        """Raises ImageError when the image doesn't fit the board."""
        super().__init__()
        self.board, self.image = board, image
        if not can_run(board):
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
        self._sram_map = mmap.mmap(-1, board.sram.bytes)
        self.flash = self._flashes.view("internal")
        self.sram = memoryview(self._sram_map)
        for address, data in flash_content:
            self._flashes.write(address, data)

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
        self._external_is_open = False

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
        self._flashes.write(address, data)

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

    def _open_engine(self) -> None:
        self._open_core(self.board.cpu)
        readable, writable = unicorn_const.UC_PROT_READ, unicorn_const.UC_PROT_WRITE
        self._map_memory(
            self.board.flash.address,
            self._flashes.map_of("internal"),
            readable | unicorn_const.UC_PROT_EXEC,
        )
        self._map_memory(self.board.sram.address, self._sram_map, readable | writable)
        self._external_is_open = False
        for peripheral in self._peripherals:
            self._map_peripheral(peripheral)
        self._keep_hook(INVALID_ACCESS, binding.HOOK_MEM_INVALID_CFUNC(self._invalid_access))
        self._keep_hook(
            unicorn_const.UC_HOOK_BLOCK, self.clock.callback, context=self.clock.context
        )
        self._keep_hook(unicorn_const.UC_HOOK_INTR, binding.HOOK_INTR_CFUNC(self._exception))

    def _close_engine(self) -> None:
        if self._engine is not None:
            binding.uclib.uc_close(self._engine)
            self._engine = None
        self._callbacks.clear()

    def _map_peripheral(self, peripheral: Peripheral) -> None:
        base = peripheral.BASE

        def read(engine: Any, offset: int, size: int, _: Any) -> int:
            self.clock.execute(BUS_CLOCKS)
            try:
                if self._pending_flash:
                    self._settle_flash()
                if size == 4 and peripheral.has(offset):
                    return peripheral.read(offset)
                self._register_fault("read", base + offset, size)
            except Exception as error:  # must not escape into C
                self._stop_with(self._make_fault(str(error), base + offset, "read"))
            return 0

        def write(engine: Any, offset: int, size: int, value: int, _: Any) -> None:
            if self._stop_cause is not None:
                return
            self.clock.execute(BUS_CLOCKS)
            try:
                if self._pending_flash:
                    self._settle_flash()
                if size == 4 and peripheral.has(offset):
                    peripheral.write(offset, value & 0xFFFFFFFF)
                else:
                    self._register_fault("write", base + offset, size)
            except Exception as error:  # must not escape into C
                self._stop_with(self._make_fault(str(error), base + offset, "write"))

        callbacks = binding.MMIO_READ_CFUNC(read), binding.MMIO_WRITE_CFUNC(write)
        self._callbacks.extend(callbacks)
        self._check(
            binding.uclib.uc_mmio_map(
                self._engine,
                base,
                peripheral.SIZE,
                ctypes.cast(callbacks[0], ctypes.c_void_p),
                None,
                ctypes.cast(callbacks[1], ctypes.c_void_p),
                None,
            ),
            "peripheral",
        )

    def _stop(self, cause: StopReason) -> None:
        if self._stop_cause is None:
            self._stop_cause = cause
        binding.uclib.uc_emu_stop(self._engine)

    def _stop_with(self, fault: MachineFault) -> None:
        if self._caught is None:
            self._caught = fault
        binding.uclib.uc_emu_stop(self._engine)

    def _set_external_flash_mapped(self, on: bool) -> None:
        flash = self.board.external_flash
        if flash is None or self._engine is None:
            return
        permissions = unicorn_const.UC_PROT_READ if on else unicorn_const.UC_PROT_NONE
        if not self._external_is_open:
            self._map_memory(flash.address, self._flashes.map_of("external"), permissions)
            self._external_is_open = True
        self._protect_memory(flash.address, flash.bytes, permissions)

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

    def _invalid_access(
        self, engine: Any, kind: int, address: int, size: int, value: int, _: Any
    ) -> bool:
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
            self._stop_with(
                self._make_fault(
                    f"{access} of {size} bytes at {address:#010x}, where {self.board.name} has"
                    f" {self._what_is_at(address)}",
                    address,
                    access,
                    core_exceptions.status_of_access(kind, address),
                )
            )
        except FlashMisuse as error:
            self._stop_with(self._make_fault(f"{error} at {address:#010x}", address, "write"))
        except Exception as error:  # must not escape into C
            self._stop_with(self._make_fault(repr(error), address, "access"))
        return False

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

    def _exception(self, engine: Any, number: int, _: Any) -> None:
        names = {2: "svc", 3: "prefetch abort", 7: "bkpt"}
        text = f"{names.get(number, f'exception {number}')}, which the firmware must not use"
        undefined = core_exceptions.UNDEFINED_INSTRUCTION
        self._stop_with(self._make_fault(text, None, "execute", undefined))

    def _execution_fault(self, status: int) -> MachineFault:
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
