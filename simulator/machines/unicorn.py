"""A board in Unicorn: its core, its memories and its peripherals, and nothing more.

Idle: the firmware runs with interrupts masked and waits with ``wfi``; Unicorn then leaves
``uc_emu_start`` with the PC behind the ``wfi``. Slices: one that is over ends
at the next read of a peripheral or entry of a long computation (``SLICE_POINTS``), from within
Unicorn's own callback, which is exact. A watchdog thread ends loops that do neither for long;
see slice_watchdog for what that can't promise.
Unicorn's own timeout polls from a thread of its own (140 µs per start) and its instruction
count slows everything down, so neither is used. A stop during a write to a peripheral leaves
the PC at that store, which Unicorn then executes again; the machine ignores the repetition.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from unicorn import arm_const, unicorn_const
from unicorn.unicorn_py3 import unicorn as binding

from codegen.firmware.boards import Board, load_board
from simulator.clock import Milliseconds, host_milliseconds
from simulator.devices.flash_controller import FlashController
from simulator.devices.flash_operations import FlashMisuse, PowerCut
from simulator.devices.nor_flash import NorFlash
from simulator.devices.peripherals import (
    Adc1,
    Dma2,
    GpioA,
    GpioB,
    GpioD,
    GpioE,
    Peripheral,
    Rcc,
    Rng,
    SystemControl,
    Tim2,
    Usart,
)
from simulator.devices.quadspi import Quadspi
from simulator.errors import ImageError, MachineFault
from simulator.machines import thumb_code
from simulator.machines.board_memory import FlashContent
from simulator.machines.elf_image import ElfImage, load_elf
from simulator.machines.protocol import StopReason, TrafficCount
from simulator.machines.slice_watchdog import slice_watchdog
from simulator.machines.unicorn_core import ACCESS, INVALID_ACCESS, MODELS, UnicornCore

_NOWHERE = 0xFFFFFFFE
STACK_PAINT = 0xA5A5A5A5
"""What the startup code fills the stack with (device_runtime/port/stm32/startup.c)."""
_PATIENCE_SECONDS = 1.0
"""So late a slice ends even at a write, for loops that do nothing else."""
SLICE_POINTS = re.compile(r"tf_(\w+_(forward|gradient|update|step|add)|crc32|cross_entropy)")
"""Functions of the firmware's long computations: a slice can end where one is entered."""
ARGUMENT_REGISTERS = (
    arm_const.UC_ARM_REG_R0,
    arm_const.UC_ARM_REG_R1,
    arm_const.UC_ARM_REG_R2,
    arm_const.UC_ARM_REG_R3,
)


class UnicornMachine(UnicornCore):
    """One board with its firmware. Implements ``simulator.machines.protocol.Machine``."""

    def __init__(
        self,
        board: Board | str,
        image: ElfImage | Path | str,
        *,
        clock: Milliseconds = host_milliseconds,
        battery_percent: Callable[[], float] = lambda: 100.0,
        seed: int = 0,
        flash_content: Iterable[tuple[int, bytes]] = (),
    ) -> None:
        """Build the board, write the image and ``flash_content`` to its flash, and power it on.

        Raises: ImageError when the image doesn't fit the board.
        """
        super().__init__()
        self.board = load_board(board) if isinstance(board, str) else board
        self.image = image if isinstance(image, ElfImage) else load_elf(image)
        if self.board.port != "stm32":
            raise ImageError(
                f"board {self.board.name}: port {self.board.port!r} can't be emulated, only stm32"
            )
        if self.board.cpu not in MODELS:
            raise ImageError(f"board {self.board.name}: Unicorn has no core {self.board.cpu!r}")
        self.fault: MachineFault | None = None
        self._transmitted = bytearray()
        self._bytes_up = self._bytes_down = 0
        self._pending_fault: MachineFault | None = None
        self._pending_flash: list[tuple[int, bytes]] = []
        # Address and value of the last access to a peripheral, where that was a write.
        self._last_write: tuple[int, int] | None = None
        # The write that the store at this PC may repeat, and that write once it is awaited.
        self._cut_store: tuple[int, tuple[int, int]] | None = None
        self._repetition: tuple[int, int] | None = None
        # Goes up by one on the way into a callback and by one on the way out of it.
        self._activity = 0
        self._stop_cause: StopReason | None = None
        self._deadline = float("inf")
        self._powered = False

        self._flashes = FlashContent(self.board, self.image)
        self._sram_map = mmap.mmap(-1, self.board.sram.bytes)
        self.flash = self._flashes.view("internal")
        self.sram = memoryview(self._sram_map)
        for address, data in flash_content:
            self._flashes.write(address, data)

        code = tuple((address, len(data)) for address, data in self.image.segments)
        self._power_cut = PowerCut(lambda: self._stop(StopReason.POWER_CUT))
        self.flash_controller = FlashController(self.board, self.flash, code, self._power_cut)
        defines = self.board.defines
        self.usart = Usart(2 if defines.get("TF_BOARD_USART_V2") else 1, self._transmit)
        self.dma = Dma2(self.usart, self._dma_load, self._dma_store, self._transmit)
        self.gpio = GpioB(defines.get("TF_BOARD_DTR_PIN", 0), defines.get("TF_BOARD_DCD_PIN", 1))
        self.clocks = Rcc()
        self.system = SystemControl(self.board.cpu, self._reset_requested)
        self._peripherals: list[Peripheral] = [
            self.clocks,
            self.flash_controller,
            self.usart,
            self.dma,
            self.gpio,
            GpioA(),
            Tim2(clock),
            Adc1(battery_percent),
            Rng(seed),
            self.system,
        ]
        self.nor_flash: NorFlash | None = None
        external = self.board.external_flash
        if external is not None:
            content = functools.partial(self._flashes.view, "external")
            self.nor_flash = NorFlash(external, content, self._power_cut)
            quadspi = Quadspi(self.nor_flash, self._set_external_flash_mapped)
            self._peripherals += [quadspi, GpioD(), GpioE()]
        self._external_is_open = False
        self.power_on()

    # --- Machine -----------------------------------------------------------------------------

    def run(self, max_milliseconds: float) -> StopReason:
        """Run until the firmware idles, the slice is over, or something happened."""
        if self.fault is not None:
            return StopReason.FAULT
        if not self._powered:
            return StopReason.POWER_CUT
        self._deadline = time.monotonic() + max_milliseconds / 1000.0
        return self._emulate(self.pc, _NOWHERE)

    def receive(self, data: bytes) -> int:
        """Bytes from the line go into the receive ring by DMA; returns how many were taken."""
        if not self._powered:
            return 0
        taken = self.dma.receive(data)
        self._bytes_down += taken
        return taken

    @property
    def ready_to_receive(self) -> bool:
        """Whether the receiver is set up and the firmware has looked at the ring since the last
        bytes: a real line brings a few hundred bytes at most between two looks.
        """
        return self._powered and self.dma.ready_to_receive and self.dma.looked

    def take_transmitted(self) -> bytes:
        """Bytes that the firmware has sent since the last call."""
        data = bytes(self._transmitted)
        self._transmitted.clear()
        return data

    @property
    def data_terminal_ready(self) -> bool:
        """The pin that wants the modem to dial and stay."""
        return self._powered and self.gpio.data_terminal_ready

    @property
    def flash_operations(self) -> int:
        """Words programmed and sectors erased since the machine was made."""
        return self._power_cut.operations

    @property
    def hang_ups(self) -> int:
        """How often DTR has fallen since the machine was made."""
        return self.gpio.hang_ups

    @property
    def tick_milliseconds(self) -> float:
        """After how long the idle firmware wants to be run again when nothing happens."""
        return self.system.tick_milliseconds(self.clocks.core_hz)

    def stack_high_water_bytes(self) -> int:
        """Deepest stack use so far, from the paint of the startup code; 0 without any paint."""
        symbols = self.image.symbols
        if "__stack_bottom" not in symbols or "__stack_top" not in symbols:
            return 0
        bottom, top = symbols["__stack_bottom"][0], symbols["__stack_top"][0]
        words = memoryview(self.read_memory(bottom, top - bottom)).cast("I")
        painted = 0
        while painted < len(words) and words[painted] == STACK_PAINT:
            painted += 1
        return top - bottom - 4 * painted if painted else 0

    def set_data_carrier_detect(self, connected: bool) -> None:
        """The pin that tells that the modem's stream is open."""
        self.gpio.carrier = connected

    @property
    def traffic(self) -> TrafficCount:
        """Bytes on the serial line since the machine was made."""
        return TrafficCount(self._bytes_up, self._bytes_down)

    def power_on(self, *, keep_sram: bool = False) -> None:
        """Start from the reset vector. Flash stays; SRAM turns into noise unless kept."""
        self._close_engine()
        if not keep_sram:
            # Real SRAM comes up with anything in it; a fixed pattern keeps runs repeatable.
            self.sram[:] = b"\xa5\x5a\xc3\x3c" * (self.board.sram.bytes // 4)
        for peripheral in self._peripherals:
            peripheral.reset()
        if self.nor_flash is not None and not keep_sram:
            self.nor_flash.power_on()
        self.fault = self._pending_fault = None
        self._pending_flash.clear()
        self._last_write = self._cut_store = self._repetition = None
        self._transmitted.clear()
        self._powered = True
        self._open_engine()
        self._write_register(
            arm_const.UC_ARM_REG_SP, int.from_bytes(self.flash[0:4], "little") & ~3
        )
        self.pc = int.from_bytes(self.flash[4:8], "little") & ~1

    def cut_power_at_flash_operation(self, operations: int, seed: int) -> None:
        """Cut power in the ``operations``-th (from 1) flash operation from now."""
        self._power_cut.arm(operations, seed)

    def close(self) -> None:
        """Give back all memory."""
        self._powered = False
        self._close_engine()
        self.sram.release()
        self.flash_controller.content = memoryview(b"")
        self._flashes.close()
        self._sram_map.close()

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

    def call(
        self,
        function: str,
        *arguments: int,
        max_milliseconds: float = 120_000,
        slice_milliseconds: float = float("inf"),
    ) -> int:
        """Call a function of the image on the present stack and return R0.

        ``slice_milliseconds`` interrupts and resumes it, as a fleet does.

        Raises: ImageError for an unknown function or more than 8 arguments; MachineFault when
        it faults, idles or runs longer than ``max_milliseconds``.
        """
        if len(arguments) > 8:
            raise ImageError(f"{function}: at most 8 arguments, not {len(arguments)}")
        address = self.image.address_of(function)
        trap = self.board.flash.address + self.board.flash.bytes - 4
        with self.registers_kept():
            stack = self.stack_pointer
            on_stack = b"".join(value.to_bytes(4, "little") for value in arguments[4:])
            top = (stack - len(on_stack)) & ~7
            self._dma_store(top, on_stack)
            self.stack_pointer = top
            for register, value in zip(ARGUMENT_REGISTERS, arguments, strict=False):
                self._write_register(register, value & 0xFFFFFFFF)
            self._write_register(arm_const.UC_ARM_REG_LR, trap | 1)
            give_up = time.monotonic() + max_milliseconds / 1000.0
            reason = StopReason.SLICE_OVER
            self.pc = address
            while reason is StopReason.SLICE_OVER and self.pc != trap:
                if time.monotonic() >= give_up:
                    break
                self._deadline = min(give_up, time.monotonic() + slice_milliseconds / 1000.0)
                reason = self._emulate(self.pc, trap)
            if reason is StopReason.FAULT:
                assert self.fault is not None
                raise self.fault
            if self.pc != trap:
                raise MachineFault(
                    f"{function} didn't return ({reason.value}) at PC {self.pc:#010x}"
                    f" ({self.image.locate(self.pc)})",
                    pc=self.pc,
                )
            return self.read_register(arm_const.UC_ARM_REG_R0)

    # --- Engine --------------------------------------------------------------------------------

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
        entered = binding.HOOK_CODE_CFUNC(self._slice_point)
        for name, (address, _) in self.image.symbols.items():
            if SLICE_POINTS.fullmatch(name):
                at = address & ~1
                self._keep_hook(unicorn_const.UC_HOOK_BLOCK, entered, at, at)
        self._keep_hook(unicorn_const.UC_HOOK_INTR, binding.HOOK_INTR_CFUNC(self._exception))

    def _close_engine(self) -> None:
        if self._engine is not None:
            binding.uclib.uc_close(self._engine)
            self._engine = None
        self._callbacks.clear()

    def _map_peripheral(self, peripheral: Peripheral) -> None:
        base = peripheral.BASE
        # Unicorn may repeat the load on resume, which does no harm to most.
        ends_slice = not peripheral.READS_HAVE_EFFECTS
        monotonic = time.monotonic

        def read(engine: Any, offset: int, size: int, _: Any) -> int:
            self._activity += 1
            self._last_write = self._repetition = None
            try:
                if self._pending_flash:
                    self._settle_flash()
                if size == 4 and peripheral.has(offset):
                    if ends_slice and monotonic() > self._deadline:
                        self._stop(StopReason.SLICE_OVER)
                    return peripheral.read(offset)
                self._register_fault("read", base + offset, size)
            except Exception as error:  # must not escape into C
                self._stop_with(self._make_fault(str(error), base + offset, "read"))
            finally:
                self._activity += 1
            return 0

        def write(engine: Any, offset: int, size: int, value: int, _: Any) -> None:
            if self._stop_cause in (StopReason.POWER_CUT, StopReason.RESET):
                return
            self._activity += 1
            self._last_write = (base + offset, value)
            repetition, self._repetition = self._repetition, None
            if repetition == self._last_write:
                self._activity += 1
                return
            try:
                if self._pending_flash:
                    self._settle_flash()
                if size == 4 and peripheral.has(offset):
                    peripheral.write(offset, value & 0xFFFFFFFF)
                    if monotonic() > self._deadline + _PATIENCE_SECONDS:
                        self._stop(StopReason.SLICE_OVER)
                else:
                    self._register_fault("write", base + offset, size)
            except Exception as error:  # must not escape into C
                self._stop_with(self._make_fault(str(error), base + offset, "write"))
            finally:
                self._activity += 1

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

    def _emulate(self, address: int, until: int) -> StopReason:
        self._stop_cause = None
        self._pending_fault = None
        self._last_write = self._repetition = None
        if self._cut_store is not None and self._cut_store[0] == address:
            self._repetition = self._cut_store[1]
            self._cut_store = None
        slice_watchdog.begin(self._engine, self._deadline, self._look_at_activity)
        try:
            status = binding.uclib.uc_emu_start(self._engine, address | 1, until, 0, 0)
        finally:
            slice_watchdog.end(self._engine)
        if self._pending_flash:
            self._settle_flash()
        pc = self.pc
        if self._stop_cause is StopReason.POWER_CUT:
            self._powered = False
            self.sram[:] = bytes(self.board.sram.bytes)
            self._transmitted.clear()
            return StopReason.POWER_CUT
        if self._pending_fault is None and status != unicorn_const.UC_ERR_OK:
            text = binding.uclib.uc_strerror(status).decode()
            self._pending_fault = self._make_fault(text, None, "execute")
        if self._pending_fault is not None:
            # Only now is the PC that of the instruction, not of its block.
            self.fault = self._located(self._pending_fault, pc)
            return StopReason.FAULT
        if self._stop_cause is StopReason.RESET:
            self.power_on(keep_sram=True)
            return StopReason.RESET
        waits = pc != until and thumb_code.ends_in_wfi(self._code_before(pc))
        if self._stop_cause is None and waits:
            return StopReason.IDLE
        if self._last_write is not None and thumb_code.is_store(self._halfword(pc)):
            self._cut_store = pc, self._last_write
        return StopReason.SLICE_OVER

    def _halfword(self, pc: int) -> int:
        first = pc - self.board.flash.address
        return int.from_bytes(self.flash[first : first + 2], "little")

    def _code_before(self, pc: int) -> bytes:
        first = pc - self.board.flash.address
        return bytes(self.flash[first - 4 : first])

    # --- What the peripherals and hooks call ----------------------------------------------------

    def _stop(self, cause: StopReason) -> None:
        if self._stop_cause is None:
            self._stop_cause = cause
        binding.uclib.uc_emu_stop(self._engine)

    def _stop_with(self, fault: MachineFault) -> None:
        if self._pending_fault is None:
            self._pending_fault = fault
        binding.uclib.uc_emu_stop(self._engine)

    def _slice_point(self, engine: Any, address: int, size: int, _: Any) -> None:
        self._activity += 2
        self._last_write = None
        if time.monotonic() > self._deadline:
            self._stop(StopReason.SLICE_OVER)

    def _look_at_activity(self) -> int:
        return self._activity

    def _set_external_flash_mapped(self, on: bool) -> None:
        flash = self.board.external_flash
        if flash is None or self._engine is None:
            return
        permissions = unicorn_const.UC_PROT_READ if on else unicorn_const.UC_PROT_NONE
        if not self._external_is_open:
            self._map_memory(flash.address, self._flashes.map_of("external"), permissions)
            self._external_is_open = True
        self._protect_memory(flash.address, flash.bytes, permissions)

    def _reset_requested(self) -> None:
        self._stop(StopReason.RESET)

    def _transmit(self, data: bytes) -> None:
        self._transmitted += data
        self._bytes_up += len(data)

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
        self._activity += 1
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
                )
            )
        except FlashMisuse as error:
            self._stop_with(self._make_fault(f"{error} at {address:#010x}", address, "write"))
        except Exception as error:  # must not escape into C
            self._stop_with(self._make_fault(repr(error), address, "access"))
        finally:
            self._activity += 1
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
        names = {1: "undefined instruction", 2: "svc", 3: "prefetch abort", 7: "bkpt"}
        name = names.get(number, f"exception {number}")
        text = f"{name}, which the firmware must not use"
        self._stop_with(self._make_fault(text, None, "execute"))

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
    def _make_fault(text: str, address: int | None, access: str) -> MachineFault:
        return MachineFault(text, address=address, access=access)

    def _located(self, fault: MachineFault, pc: int) -> MachineFault:
        return MachineFault(
            f"{fault} by PC {pc:#010x} ({self.image.locate(pc)})",
            address=fault.address,
            access=fault.access,
            pc=pc,
            symbol=self.image.function_at(pc),
        )
