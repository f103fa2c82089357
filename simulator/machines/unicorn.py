"""A board in Unicorn: its core, its memories and its peripherals, and nothing more.

Time is that of ``devices.core_clock``: it passes with executed code, while the core stands still
during an operation of its flash, and while it sleeps. A slice ends in front of a block of code, so
that it never cuts an access in two. The firmware runs with interrupts masked and waits with
``wfi``; Unicorn then leaves ``uc_emu_start`` with the PC behind it, and the core sleeps until an
enabled interrupt is pending. As long as bytes are on the serial line it is known what comes, and
sleep costs no time of the world; a quiet line is slept through in the time of the world's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from unicorn import arm_const, unicorn_const
from unicorn.unicorn_py3 import unicorn as binding

from codegen.firmware.boards import Board, load_board
from simulator.clock import MILLISECOND, Milliseconds, host_milliseconds
from simulator.devices.core_clock import NEVER
from simulator.devices.interrupts import SystemControl
from simulator.devices.peripherals import Rcc
from simulator.errors import ImageError, MachineFault
from simulator.machines import core_exceptions, thumb_code
from simulator.machines.elf_image import ElfImage, load_elf
from simulator.machines.protocol import StopReason, TrafficCount
from simulator.machines.unicorn_board import UnicornBoard

_NOWHERE = 0xFFFFFFFE
_LONGEST_CATCHING_UP = 1_000 * MILLISECOND
"""Of a core that has slept; our firmware wakes itself up twice in it."""
_HARD_FAULT_VECTOR = 12
STACK_PAINT = 0xA5A5A5A5
"""What the startup code fills the stack with (device_runtime/port/stm32/startup.c)."""
ARGUMENT_REGISTERS = (
    arm_const.UC_ARM_REG_R0,
    arm_const.UC_ARM_REG_R1,
    arm_const.UC_ARM_REG_R2,
    arm_const.UC_ARM_REG_R3,
)


class UnicornMachine(UnicornBoard):
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
        takes_turns: bool = False,
    ) -> None:
        """Build the board, write the image and ``flash_content`` to its flash, and power it on.

        ``clock`` is the world's. The board's own never falls behind it, and goes before it where
        bytes on the line or an operation of the flash take time that costs the host none.

        ``takes_turns``: share Unicorn's engine, and what it has translated, with all machines of
        this process that have the same image and do so, too.

        Raises: ImageError when the image doesn't fit the board.
        """
        self.fault: MachineFault | None = None
        self.last_fault: MachineFault | None = None
        """What the core last entered its fault handler for, or ``fault``."""
        self.world_clock, self._world_start = clock, clock()
        self._world_seen = 0
        self._may_sleep = self._catch_up = 0
        self._end_of_slice = NEVER
        self._is_asleep = self._is_locked_up = False
        self._transmitted = bytearray()
        self._bytes_up = 0
        self._powered = False
        super().__init__(
            load_board(board) if isinstance(board, str) else board,
            image if isinstance(image, ElfImage) else load_elf(image),
            battery_percent,
            seed,
            flash_content,
            takes_turns,
        )
        self.power_on()

    # --- Machine -----------------------------------------------------------------------------

    def run(self, max_milliseconds: float) -> StopReason:
        """Run until the firmware sleeps, the slice is over, or something happened.

        ``max_milliseconds`` are those of executed code, in the board's time.
        """
        if self.fault is not None:
            return StopReason.FAULT
        if not self._powered:
            return StopReason.POWER_CUT
        self._let_the_world_go_on()
        span = self.clock.clocks_in(int(max_milliseconds * MILLISECOND))
        self._end_of_slice = self.clock.clocks + span
        reason = None
        while reason is None:
            reason = self._sleep() if self._is_asleep else self._emulate(_NOWHERE)
            if reason is StopReason.IDLE and not self._is_asleep:
                self._is_asleep = True
                reason = None
            elif reason is StopReason.FAULT and self._enter_fault_handler():
                reason = None
        if not self._is_asleep:
            self._may_sleep = 0
        self._world_seen = self._world_time()
        return reason

    def receive(self, data: bytes) -> int:
        """Bytes go on the line to the board; returns how many were taken."""
        if not self._powered:
            return 0
        self.line.send_to_board(data)
        return len(data)

    @property
    def bytes_under_way(self) -> int:
        """Bytes on the line that haven't reached the board yet."""
        return self.line.bytes_under_way

    def take_transmitted(self) -> bytes:
        """Bytes that have reached the modem since the last call."""
        if self._powered:
            self.line.bring_up_to_date()
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
        """After how long the sleeping firmware wants to be run again when nothing happens."""
        event = self._next_event
        return float("inf") if event == NEVER else (event - self.clock.now) / MILLISECOND

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
        """The pin that tells that the modem's stream is open; without it the line falls quiet."""
        self.gpio.carrier = connected
        if not connected:
            self.line.hang_up()

    @property
    def traffic(self) -> TrafficCount:
        """Bytes on the serial line since the machine was made."""
        return TrafficCount(self._bytes_up, self.line.bytes_received)

    def power_on(self, *, keep_sram: bool = False) -> None:
        """Start from the reset vector. Flash stays; SRAM turns into noise unless kept."""
        if not keep_sram:
            self._sram.forget()
            if self.nor_flash is not None:
                self.nor_flash.power_on()
        self._restart(Rcc.PIN if keep_sram else Rcc.POWER_ON)

    def _restart(self, cause: int) -> None:
        """What the reset line does; SRAM stays as it is."""
        self.clocks.note_reset(cause)
        for peripheral in self._peripherals:
            peripheral.reset()
        self.line.reset()
        self.fault = self._caught = None
        self._is_asleep = self._is_locked_up = False
        self._pending_flash.clear()
        self._transmitted.clear()
        self._powered = True
        self._starts += 1
        self._external_permissions = None
        self._turns.reset(self)
        stack = int.from_bytes(self.flash[0:4], "little") & ~3
        self.write_register(arm_const.UC_ARM_REG_SP, stack)
        self.pc = int.from_bytes(self.flash[4:8], "little") & ~1

    def cut_power_at_flash_operation(self, operations: int, seed: int) -> None:
        """Cut power in the ``operations``-th (from 1) flash operation from now."""
        self._power_cut.arm(operations, seed)

    def close(self) -> None:
        """Give back all memory."""
        self._powered = False
        self._turns.leave(self)
        self.sram.release()
        self.flash_controller.content = memoryview(b"")
        self._flashes.close()
        self._sram.close()

    # --- For measuring and tests ---------------------------------------------------------------

    def call(
        self,
        function: str,
        *arguments: int,
        max_milliseconds: float = 120_000,
        slice_milliseconds: float = float("inf"),
    ) -> int:
        """Call a function of the image on the present stack and return R0.

        ``slice_milliseconds`` interrupts and resumes it, as a fleet does. Both are of the board's
        time. A fault doesn't enter the firmware's handler.

        Raises: ImageError for an unknown function or more than 8 arguments; MachineFault when
        it faults, sleeps or runs longer than ``max_milliseconds``.
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
                self.write_register(register, value & 0xFFFFFFFF)
            self.write_register(arm_const.UC_ARM_REG_LR, trap | 1)
            give_up = self.clock.clocks + self.clock.clocks_in(int(max_milliseconds * MILLISECOND))
            reason = StopReason.SLICE_OVER
            self.pc = address
            while reason is StopReason.SLICE_OVER and self.pc != trap:
                if self.clock.clocks >= give_up:
                    break
                self._end_of_slice = give_up
                if slice_milliseconds < max_milliseconds:
                    span = self.clock.clocks_in(int(slice_milliseconds * MILLISECOND))
                    self._end_of_slice = min(give_up, self.clock.clocks + span)
                reason = self._emulate(trap)
            if reason is StopReason.FAULT:
                assert self._caught is not None
                self.fault = self.last_fault = self._caught
                raise self.fault
            if self.pc != trap:
                raise MachineFault(
                    f"{function} didn't return ({reason.value}) at PC {self.pc:#010x}"
                    f" ({self.image.locate(self.pc)})",
                    pc=self.pc,
                )
            return self.read_register(arm_const.UC_ARM_REG_R0)

    # --- Time ----------------------------------------------------------------------------------

    def _world_time(self) -> int:
        return int((self.world_clock() - self._world_start) * MILLISECOND)

    def _timer_time(self) -> int:
        """Time as the firmware sees it: a host that is slow leaves a jump in it, so that the
        world's deadlines are the firmware's, too, and nothing on the line is lost by it.
        """
        own = self.clock.now
        self._catch_up = max(self._catch_up, self._world_time() - self._may_sleep - own)
        return own + self._catch_up

    @property
    def _next_event(self) -> int:
        return min(self.line.next_event, self.system.next_tick, self.watchdog.expires_at)

    def _bring_up_to_date(self) -> bool:
        """Whether something ends the core's sleep by now."""
        self.line.bring_up_to_date()
        self.system.bring_up_to_date()
        if self.watchdog.expires_at <= self.clock.now:
            return True
        return self.system.wakes_up and not self._is_locked_up

    def _let_the_world_go_on(self) -> None:
        """A core that sleeps may sleep for as long as the world's clock has gone on."""
        world = self._world_time()
        if self._is_asleep:
            self._may_sleep += world - self._world_seen
        self._world_seen = world

    def _sleep(self) -> StopReason | None:
        """Sleep as long as it may, or as it is known what comes; None when the core wakes up."""
        while not self._bring_up_to_date():
            now = self.clock.now
            known = self.line.horizon - now
            span = min(known if known > 0 else self._may_sleep, self._next_event - now)
            if span <= 0:
                return StopReason.IDLE
            self._may_sleep = max(0, self._may_sleep - span)
            self.clock.pass_time(span)
        if self.watchdog.expires_at <= self.clock.now:
            return self._reset_by_watchdog()
        self._is_asleep = False
        # Where nobody has looked for long the firmware sees a jump in its time: on a host that is
        # behind, ticks of all that time would put it further behind.
        self._may_sleep = min(self._may_sleep, _LONGEST_CATCHING_UP)
        return None

    def _reset_by_watchdog(self) -> StopReason:
        self._restart(Rcc.WATCHDOG)
        return StopReason.RESET

    def _stand_still(self, nanoseconds: int) -> None:
        """The flash can't be read, so that the core executes nothing; all else goes on."""
        self.clock.pass_time(nanoseconds)
        self._set_limit()

    def _set_limit(self) -> None:
        """No block of code starts after the end of the slice, nor after the watchdog's."""
        expires_at = self.watchdog.expires_at
        alive = NEVER if expires_at == NEVER else self.clock.clocks_at(expires_at)
        self.clock.stop_at(min(self._end_of_slice, alive))

    def _clocks_changed(self) -> None:
        self.clock.set_frequency(self.clocks.core_hz)
        self._set_limit()

    # --- Execution -----------------------------------------------------------------------------

    def _emulate(self, until: int) -> StopReason:
        """Execute from the PC to ``until``, the end of the slice, a ``wfi``, or what stops it."""
        self._stop_cause = None
        self._caught = None
        self._set_limit()
        status = binding.uclib.uc_emu_start(self._engine, self.pc | 1, until, 0, 0)
        if self._pending_flash:
            self._settle_flash()
        pc = self.pc
        if self._stop_cause is StopReason.POWER_CUT:
            self._powered = False
            self.sram[:] = bytes(self.board.sram.bytes)
            self._transmitted.clear()
            return StopReason.POWER_CUT
        if self._caught is None and status != unicorn_const.UC_ERR_OK:
            self._caught = self._execution_fault(status)
        if self._caught is not None:
            # Only now is the PC that of the instruction, not of its block.
            self._caught = self._located(self._caught, pc)
            return StopReason.FAULT
        if self._stop_cause is StopReason.RESET:
            self._restart(Rcc.SOFTWARE)
            return StopReason.RESET
        if self.watchdog.expires_at <= self.clock.now:
            return self._reset_by_watchdog()
        waits = pc != until and thumb_code.ends_in_wfi(self._code_before(pc))
        return StopReason.IDLE if waits and not self.clock.is_stopped else StopReason.SLICE_OVER

    def _enter_fault_handler(self) -> bool:
        """What the core does with the fault that was caught; false: there is nothing more to do.

        A fault within the handler locks the core up, which only the watchdog ends. What silicon
        doesn't notice stops the machine for good.
        """
        fault = self._caught
        assert fault is not None
        self.last_fault = fault
        table = self.system.read(SystemControl.VTOR) or self.board.flash.address
        handler = int.from_bytes(self.read_memory(table + _HARD_FAULT_VECTOR, 4), "little")
        is_lost = self.system.active_exception != 0 or not (handler & 1 and self._in_flash(handler))
        if fault.status and not is_lost:
            self.system.note_fault(fault.status, fault.address)
            if not core_exceptions.enter_hard_fault(self, handler, self._dma_store):
                self.system.note_fault(core_exceptions.BUS_STACKING, None)
            return True
        if fault.status and self.watchdog.expires_at != NEVER:
            self._is_asleep = self._is_locked_up = True
            return True
        self.fault = fault
        return False

    def _code_before(self, pc: int) -> bytes:
        first = pc - self.board.flash.address
        return bytes(self.flash[first - 4 : first])

    def _transmit(self, data: bytes) -> None:
        self._transmitted += data
        self._bytes_up += len(data)
