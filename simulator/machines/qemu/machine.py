"""A board of Arm's in QEMU: one process each, stopped and looked at by QEMU's own debugger stub.

The board's RAM is memory that this process and QEMU share, so that its flash outlives QEMU's
process, which is what ends when the power fails.

In the host's time a board runs by itself, and sleeps as long as it wants to. With another clock it
is stopped wherever its firmware wants to sleep, and goes on when that clock has gone on or bytes
have come; its own time is at most some milliseconds behind, and ahead by what it has computed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from codegen.firmware.boards import Board, load_board
from simulator.clock import Milliseconds, host_milliseconds
from simulator.devices.flash_operations import PowerCut
from simulator.errors import ImageError
from simulator.machines.elf_image import load_elf
from simulator.machines.protocol import CHARGING_FLAG, StopReason, TrafficCount
from simulator.machines.qemu.board_line import BoardLine
from simulator.machines.qemu.debugger import PC, Debugger, QemuError
from simulator.machines.qemu.process import MODELS, NANOSECONDS_LOG2, find_qemu, start

TICK_MILLISECONDS = 5.0
_FLASH_CONTROLLER = "ram"
_VECTOR_BYTES = 64
_STACK_PAINT = b"\xa5"
_LAST_WORDS_BYTES = 2000
_UART_RECEIVE_FULL = 1 << 1
_TURNS = 8
"""Of QEMU's loop, in which it has put a byte of the line into an empty UART. Two suffice: one to
see that there is room, one to fill it."""

T = TypeVar("T")
FlashContent = Iterable[tuple[int, bytes]]
"""(address, bytes)"""


def can_run(board: Board) -> bool:
    """Whether QEMU has this board, and this machine its flash."""
    return (
        board.port == "mps"
        and board.flash.controller == _FLASH_CONTROLLER
        and board.defines.get("TF_BOARD_AN") in MODELS
    )


class QemuMachine:
    """One board with its firmware. Implements ``simulator.machines.protocol.Machine``."""

    def __init__(
        self,
        board: Board | str,
        firmware: Path,
        *,
        clock: Milliseconds = host_milliseconds,
        battery_percent: Callable[[], float] = lambda: 100.0,
        charging: bool = False,
        flash_content: FlashContent = (),
    ) -> None:
        """Make the board with ``flash_content`` in its flash, and power it on.

        Raises: QemuError; ImageError when content lies outside the flash.
        """
        self.board = load_board(board) if isinstance(board, str) else board
        self._model = MODELS[self.board.defines["TF_BOARD_AN"]]
        self._program = find_qemu()
        self._clock = clock
        self._runs_alone = clock is host_milliseconds
        self._battery_percent = battery_percent
        self._charging = CHARGING_FLAG if charging else 0
        self._image = load_elf(firmware)
        self._idle = self._image.address_of("tf_board_idle")
        self._reset = self._image.address_of("Reset_Handler")
        self._programs = self._image.address_of("tf_mps_flash_program")
        self._erases = self._image.address_of("tf_mps_flash_erase")
        self._news = self._image.address_of("tf_mps_has_news")
        self.fault: Exception | None = None
        self._operations_before = self._operations = 0
        self._cut = PowerCut(self._power_fails)
        self._has_power = self._is_starting = False
        self._started_at = self._wakes_at = clock()
        self._sleeps_until = self._awake_milliseconds = 0
        self._left_on_line: tuple[int, bool] | None = None
        self._charge: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._words = os.memfd_create("tinyfleet-words")
        self._ram = os.memfd_create("tinyfleet-board")
        self._line = BoardLine()
        try:
            self._fill_ram(flash_content)
            self.power_on()
        except BaseException:
            self.close()
            raise

    # --- Terminal ------------------------------------------------------------------------------

    @property
    def data_terminal_ready(self) -> bool:
        """Whether the board wants the modem to dial and stay."""
        return self._line.data_terminal_ready

    @property
    def hang_ups(self) -> int:
        """How often DTR has fallen since the machine was made."""
        return self._line.hang_ups

    @property
    def bytes_under_way(self) -> int:
        """Bytes on the line that the board hasn't taken yet."""
        return self._line.bytes_under_way

    def set_data_carrier_detect(self, connected: bool) -> None:
        """Tell that the modem's stream is open, or isn't."""
        self._line.set_data_carrier_detect(connected)

    def take_transmitted(self) -> bytes:
        """Bytes that the board has sent since the last call."""
        return self._line.take_transmitted()

    def receive(self, data: bytes) -> int:
        """Bytes go on the line to the board; returns how many were taken."""
        return self._line.receive(data) if self._has_power else 0

    @property
    def traffic(self) -> TrafficCount:
        """Bytes on the serial line since the machine was made."""
        return self._line.traffic

    # --- Machine -------------------------------------------------------------------------------

    def run(self, max_milliseconds: float) -> StopReason:
        """Look what the board has done; where it doesn't run by itself, let it go on."""
        if self.fault is not None:
            return StopReason.FAULT
        if not self._has_power:
            return StopReason.POWER_CUT
        try:
            self._tell_battery()
            return self._run(max_milliseconds / 1000.0)
        except QemuError as error:
            self._ends(error)
            return StopReason.FAULT

    def _run(self, seconds: float) -> StopReason:
        # By itself the core comes to nobody, unless its flash operations are waited for.
        end = time.monotonic() + (seconds if not self._runs_alone or self._cut.is_armed else 0.0)
        self._left_on_line = None
        while True:
            if self._debugger.running and not self._debugger.wait(end - time.monotonic()):
                return StopReason.IDLE if self._runs_alone else StopReason.SLICE_OVER
            reason = self._stopped()
            if reason is not None:
                return reason
            self._debugger.go_on()

    def _stopped(self) -> StopReason | None:
        """What a stop of the core means; None: it goes on."""
        at = self._debugger.register(PC)
        if at == self._reset:
            if not self._is_starting:
                self._note_operations()
                self._starts()
                return StopReason.RESET
            self._is_starting = False
        if at == self._idle and not self._runs_alone:
            return None if self._may_sleep() else StopReason.IDLE
        if at in (self._programs, self._erases):
            self._operate_flash(is_erase=at == self._erases)
        return None if self._has_power else StopReason.POWER_CUT

    def _may_sleep(self) -> bool:
        """The firmware wants to sleep: whether it may now, and for how long."""
        debugger = self._debugger
        wanted = debugger.register(0)
        now = debugger.read_word(self._model.counter)
        self._awake_milliseconds += max(0, now - self._sleeps_until)
        self._sleeps_until = now
        behind = int(self._clock() - self._started_at) - now
        self._wakes_at = self._started_at + now + wanted
        # Bytes that came after its last look at the ring end its sleep as those do that will come.
        wakes_at_once = self._line_brings() or self._has_news()
        if not wakes_at_once and behind < wanted:
            return False
        sleeps = max(1, min(behind, wanted))
        self._sleeps_until = now + sleeps
        debugger.set_register(0, sleeps)
        return True

    def _line_brings(self) -> bool:
        """Whether the core takes a byte of the line when it goes on."""
        # QEMU fills the UART in the loop in which it answers the debugger, so that answers count
        # its turns, however late they are. What is under way is looked at first: a byte that has
        # left the line by then is in the UART when the answer comes.
        for _ in range(_TURNS):
            under_way = self._line.bytes_under_way
            is_full = self._uart_is_full()
            if is_full or not under_way:
                break
        # What it hasn't taken since the last time it won't take before its time goes on.
        left, self._left_on_line = self._left_on_line, (self._line.bytes_under_way, is_full)
        return is_full and self._left_on_line != left

    def _has_news(self) -> bool:
        """Whether bytes came or went that the core hasn't looked at."""
        return self._debugger.read_memory(self._news, 1) != b"\0"

    def _uart_is_full(self) -> bool:
        return bool(self._debugger.read_word(self._model.uart_state) & _UART_RECEIVE_FULL)

    @property
    def tick_milliseconds(self) -> float:
        """After how long the idle firmware wants to be run again; by itself, to be looked at."""
        if self._runs_alone:
            return TICK_MILLISECONDS
        return max(0.0, self._wakes_at - self._clock())

    def power_on(self, *, keep_sram: bool = False) -> None:
        """Start from the reset vector; SRAM is zero unless it is kept."""
        self._look(self._note_operations, None)
        if keep_sram and self._has_power:
            with self._halted():
                self._debugger.monitor("system_reset")
                self._starts()
            return
        self._kill()
        self.fault = None
        self._start_process()
        self._starts()
        self._debugger.go_on()
        self._is_starting = False

    def cut_power_at_flash_operation(self, operations: int, seed: int) -> None:
        """Cut power in the ``operations``-th (from 1) flash operation from now, which is torn."""
        self._cut.arm(operations, seed)
        if self._has_power:
            with self._halted():
                self._watch_flash()

    def _watch_flash(self) -> None:
        """Stop before flash operations while one of them is to be cut."""
        for place in (self._programs, self._erases):
            if self._cut.is_armed:
                self._debugger.set_breakpoint(place)
            else:
                self._debugger.clear_breakpoint(place)

    @property
    def flash_operations(self) -> int:
        """Words programmed and sectors erased since the machine was made."""
        self._operations = self._look(self._counted_operations, self._operations)
        return self._operations_before + self._operations

    def read_memory(self, address: int, size: int) -> bytes:
        """Bytes of the flash.

        Raises: ImageError outside of it.
        """
        return os.pread(self._ram, size, self._place_of(address, size))

    def stack_high_water_bytes(self) -> int:
        """Deepest stack use since power on."""
        bottom, top = (self._image.address_of(f"__stack_{end}") for end in ("bottom", "top"))
        stack = self._look(lambda: self._debugger.read_memory(bottom, top - bottom), b"")
        return len(stack.lstrip(_STACK_PAINT))

    @property
    def executed_instructions(self) -> int:
        """About: what the core has had the time for since the machine was made, while it was awake.

        To a millisecond for each sleep; 0 where it runs by itself.
        """
        return self._awake_milliseconds * 1_000_000 >> NANOSECONDS_LOG2

    @property
    def last_fault(self) -> Exception | None:
        """The same as ``fault``: one of the firmware's is dealt with by the firmware."""
        return self.fault

    def close(self) -> None:
        """End the process and give its memory back."""
        self._kill()
        self._line.close()
        os.close(self._words)
        os.close(self._ram)

    # --- The process ---------------------------------------------------------------------------

    def _fill_ram(self, content: FlashContent) -> None:
        os.ftruncate(self._ram, self._model.ram_bytes)
        flash = self.board.flash
        pieces = [(flash.address, b"\xff" * flash.bytes), *self._image.segments, *content]
        for address, data in pieces:
            os.pwrite(self._ram, data, self._place_of(address, len(data)))

    def _place_of(self, address: int, size: int) -> int:
        flash = self.board.flash
        if not flash.address <= address <= address + size <= flash.address + flash.bytes:
            raise ImageError(f"{size} bytes at {address:#010x} lie outside the flash")
        return address - self._model.ram_address

    def _start_process(self) -> None:
        options, files = self._options()
        line = self._line.boards_end.fileno()
        self._process, self._connection = start(
            self._program,
            self._model,
            ram=self._ram,
            vectors=self.read_memory(self.board.flash.address, _VECTOR_BYTES),
            words=self._words,
            sleeps=self._runs_alone,
            options=["-chardev", f"socket,id=line,fd={line}", "-serial", "chardev:line", *options],
            files=[line, *files],
        )
        self._has_power = True
        try:
            self._debugger = Debugger(self._connection)
        except QemuError as error:
            raise QemuError(f"{error}: {self._last_words() or 'it said nothing'}") from None
        self._debugger.set_breakpoint(self._reset)
        self._watch_flash()
        if not self._runs_alone:
            self._debugger.set_breakpoint(self._idle)

    def _options(self) -> tuple[list[str], tuple[int, ...]]:
        """What else QEMU is started with, and files that it inherits for that."""
        return [], ()

    def _starts(self) -> None:
        """The core is about to execute its first instruction."""
        self._is_starting = True
        self._sleeps_until = 0
        self._started_at = self._wakes_at = self._clock()
        self._charge = None
        self._line.board_starts()
        self._tell_battery()

    def _tell_battery(self) -> None:
        charge = max(0, min(100, round(self._battery_percent()))) | self._charging
        if charge != self._charge:
            self._charge = charge
            self._line.tell_battery(charge)

    def _kill(self) -> None:
        self._has_power = False
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._connection.close()

    def _last_words(self) -> str:
        said = os.pread(self._words, os.fstat(self._words).st_size, 0)
        return " ".join(said.decode(errors="replace").split())[-_LAST_WORDS_BYTES:]

    @contextlib.contextmanager
    def _halted(self) -> Iterator[None]:
        """The core stands still meanwhile."""
        was_running = self._debugger.running
        if was_running:
            self._debugger.halt()
        yield
        # At a breakpoint it waits for `run`, which finds out what that means.
        if was_running and not self._debugger.is_at_breakpoint:
            self._debugger.go_on()

    def _look(self, look: Callable[[], T], otherwise: T) -> T:
        """What is found while the core stands still, or ``otherwise`` without power."""
        if not self._has_power:
            return otherwise
        try:
            with self._halted():
                return look()
        except QemuError as error:
            self._ends(error)
            return otherwise

    def _ends(self, error: QemuError) -> None:
        """QEMU is gone, and with it the board's power."""
        self.fault = QemuError(f"{error}; it said last: {self._last_words() or 'nothing'}")
        self._kill()

    # --- The flash -----------------------------------------------------------------------------

    def _counted_operations(self) -> int:
        # Startup code clears the counter some time after the start.
        if self._is_starting and self._debugger.register(PC) == self._reset:
            return 0
        return self._debugger.read_word(self._image.address_of("tf_mps_flash_operations"))

    def _note_operations(self) -> None:
        """What the board has counted is about to be cleared."""
        self._operations_before += self._counted_operations()
        self._operations = 0

    def _operate_flash(self, *, is_erase: bool) -> None:
        """The core stands before a flash operation: it is done by the core, or torn here."""
        place = self._debugger.register(0)
        argument = self._debugger.register(1)
        self._operations = self._counted_operations() + 1
        if is_erase:
            torn = self._cut.erased(self.read_memory(place, argument))
        else:
            wanted = argument.to_bytes(4, "little")
            _, torn = self._cut.programmed(self.read_memory(place, 4), wanted)
        if not self._has_power:
            os.pwrite(self._ram, torn, self._place_of(place, len(torn)))

    def _power_fails(self) -> None:
        self._operations_before += self._operations
        self._operations = 0
        self._kill()
        self._line.power_is_cut()
