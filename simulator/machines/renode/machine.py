"""A board in Renode.

A *node* is a machine of an emulation, which is a Renode process. Nodes that live in the host's time
share one process of their worker, and run by themselves. One that is given another clock has a
process of its own, which only goes on while its owner runs it: up to the time of that clock, and
then until the firmware sleeps.

The line has its speed, and power cuts tear the operation that they are in. Operations of the
flashes take no time.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import re
import shlex
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from codegen.firmware.boards import Board, load_board
from simulator.clock import Milliseconds, host_milliseconds
from simulator.errors import ImageError
from simulator.machines.protocol import StopReason, TrafficCount
from simulator.machines.renode.monitor import Monitor, RenodeError, find_renode
from simulator.machines.renode.node_line import NodeLine
from simulator.machines.renode.platform_text import model_files, node_script, platform_text

QUANTUM_SECONDS = 0.01
"""How far nodes run apart; a hundredth of the default's cost when they idle."""
TICK_MILLISECONDS = 5.0
CONNECT_SECONDS = 30.0
_MOST_READ = 1 << 14
_LARGEST_SEED = 0x7FFFFFFF
_BYTE = re.compile(r"0x([0-9A-Fa-f]{2})\b")

FlashContent = Iterable[tuple[int, bytes]]
"""(address, bytes)"""


class Emulation:
    """A Renode process with our models, and the socket that its nodes dial."""

    def __init__(
        self, seed: int | None = None, *, on_close: Callable[[], None] = lambda: None
    ) -> None:
        """Start it.

        With a seed it runs as fast as it can and does the same every time; without one it never
        runs ahead of the host's clock. Raises: RenodeError.
        """
        self._seed, self._on_close = seed, on_close
        self.folder = Path(tempfile.mkdtemp(prefix="tinyfleet-renode-"))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(CONNECT_SECONDS)
        self._made = self._in_use = 0
        self._is_started = False
        try:
            self.monitor = Monitor(shlex.split(find_renode()), self.folder / "renode.log")
            for path in model_files():
                self.monitor.execute(f"include @{path}")
            if seed is not None:
                self.monitor.execute(f"emulation SetSeed {seed & _LARGEST_SEED}")
        except BaseException:
            self._clean_up()
            raise

    def add(self, board: Board, firmware: Path, content: FlashContent, percent: float) -> NodeLine:
        """A node with this flash; nodes that are there wait meanwhile."""
        was_started = self._is_started
        if was_started:
            self.monitor.execute("pause")
            self._is_started = False
        try:
            return self._add(board, firmware, content, percent)
        finally:
            if not self._in_use:
                self.close()
            elif was_started:
                self.start()

    def _add(self, board: Board, firmware: Path, content: FlashContent, percent: float) -> NodeLine:
        self._made += 1
        folder = self.folder / f"node-{self._made}"
        folder.mkdir()
        port = self._listener.getsockname()[1]
        script = write_node(board, folder, firmware, content, port)
        self.monitor.run_script(script)
        line = NodeLine(self._listener.accept()[0])
        self._in_use += 1
        self.monitor.execute(f"adc1 Percent {percent:.2f}")
        self.monitor.execute(f'emulation SetGlobalQuantum "{QUANTUM_SECONDS}"')
        if self._seed is not None:
            self.monitor.execute("emulation SetGlobalAdvanceImmediately true")
            self.monitor.execute("emulation SetGlobalSerialExecution true")
        line.power_is_back()
        return line

    def start(self) -> None:
        """Its nodes run by themselves, in the host's time, and so do those that come later."""
        if not self._is_started:
            self.monitor.execute("start")
            self._is_started = True

    def of(self, node: str, command: str) -> str:
        """What a command to a node says."""
        self.monitor.execute(f'mach set "{node}"')
        return self.monitor.execute(command)

    def release(self, node: str) -> None:
        """A node is of no use any more; with the last one the process ends.

        Renode crashes where a machine is removed that has run, so it is halted only.
        """
        self._in_use -= 1
        if self._in_use <= 0:
            self.close()
        else:
            with contextlib.suppress(RenodeError):
                self.of(node, "sysbus.cpu IsHalted true")

    def close(self) -> None:
        """End the process."""
        self.monitor.close()
        self._clean_up()

    def _clean_up(self) -> None:
        self._listener.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._on_close()


def write_node(
    board: Board,
    folder: Path,
    firmware: Path,
    content: FlashContent,
    port: int,
    *,
    ends_with_worker: bool = True,
) -> str:
    """Files of a node, which is called as its folder; returns the commands that make it.

    Its line is dialled to ``port`` of this machine; see ``platform_text`` for what ends with it.
    Raises: ImageError for content that lies outside of its flashes, or a board of another family.
    """
    platform = folder / "board.repl"
    platform.write_text(
        platform_text(board, port, folder.name, ends_with_worker=ends_with_worker), encoding="utf-8"
    )
    script = node_script(board, folder.name, platform, firmware)
    for number, (address, data) in enumerate(content):
        _check_place(board, address, len(data))
        piece = folder / f"flash-{number}.bin"
        piece.write_bytes(data)
        script += f"sysbus LoadBinary @{piece} {address:#010x}\n"
    return script


@functools.cache
def shared_emulation() -> Emulation:
    """The one of this process whose nodes live in the host's time."""
    made = Emulation(on_close=shared_emulation.cache_clear)
    atexit.register(made.close)
    return made


class RenodeMachine:
    """One board with its firmware. Implements ``simulator.machines.protocol.Machine``."""

    def __init__(
        self,
        board: Board | str,
        firmware: Path,
        *,
        clock: Milliseconds = host_milliseconds,
        battery_percent: Callable[[], float] = lambda: 100.0,
        seed: int = 0,
        flash_content: FlashContent = (),
    ) -> None:
        """Make the node with ``flash_content`` in its flash, and power it on.

        The battery is looked at now and at each power on. The seed is of what the firmware draws
        in a time that isn't the host's. Raises: RenodeError; ImageError when
        content lies outside the flash.
        """
        self.board = load_board(board) if isinstance(board, str) else board
        self._clock, self._start_of_clock = clock, clock()
        self._battery_percent = battery_percent
        self._runs_alone = clock is host_milliseconds
        self._emulation = shared_emulation() if self._runs_alone else Emulation(seed)
        self._line = self._emulation.add(self.board, firmware, flash_content, battery_percent())
        if self._runs_alone:
            self._emulation.start()

    def run(self, max_milliseconds: float) -> StopReason:
        """Look what the firmware has done; where it doesn't run by itself, let it go on."""
        line = self._line
        is_idle = True
        if not self._runs_alone and not line.power_is_cut and line.end is None:
            behind = (self._clock() - self._start_of_clock) * 1000.0 - line.microseconds
            is_idle = line.go_on(max(0, int(behind)), max(1, int(max_milliseconds * 1000.0)))
        line.take_frames()
        if line.end is not None:
            return StopReason.FAULT
        if line.power_is_cut:
            return StopReason.POWER_CUT
        if line.was_reset:
            line.was_reset = False
            return StopReason.RESET
        return StopReason.IDLE if is_idle else StopReason.SLICE_OVER

    @property
    def tick_milliseconds(self) -> float:
        """After how long it wants to be looked at: what its firmware waits for isn't known."""
        return TICK_MILLISECONDS

    @property
    def data_terminal_ready(self) -> bool:
        """The pin that wants the modem to dial and stay."""
        return self._line.data_terminal_ready

    @property
    def hang_ups(self) -> int:
        """How often DTR has fallen since the machine was made."""
        return self._line.hang_ups

    @property
    def bytes_under_way(self) -> int:
        """Bytes on the line that haven't reached the board yet."""
        return self._line.bytes_under_way

    def set_data_carrier_detect(self, connected: bool) -> None:
        """The pin that tells that the modem's stream is open."""
        self._line.set_data_carrier_detect(connected)

    def take_transmitted(self) -> bytes:
        """Bytes that have reached the modem since the last call."""
        return self._line.take_transmitted()

    def receive(self, data: bytes) -> int:
        """Bytes go on the line to the board; returns how many were taken."""
        return self._line.receive(data)

    @property
    def traffic(self) -> TrafficCount:
        """Bytes on the serial line since the machine was made."""
        return self._line.traffic

    def power_on(self, *, keep_sram: bool = False) -> None:
        """Start from the reset vector; SRAM is zero unless it is kept."""
        monitor = self._emulation.monitor
        self._emulation.of(self._line.node, "flash_controller PowerOn")
        monitor.execute(f"adc1 Percent {self._battery_percent():.2f}")
        if not keep_sram:
            monitor.execute("sysbus.sram ZeroAll")
            if self.board.external_flash is not None:
                monitor.execute("quadspi PowerOn")
        monitor.execute("machine Reset")
        monitor.execute("sysbus.cpu IsHalted false")
        self._line.power_is_back()

    def cut_power_at_flash_operation(self, operations: int, seed: int) -> None:
        """Cut power in the ``operations``-th (from 1) flash operation from now, which is torn."""
        command = f"flash_controller CutPowerAt {operations} {seed & _LARGEST_SEED}"
        self._emulation.of(self._line.node, command)

    @property
    def flash_operations(self) -> int:
        """Words programmed and sectors erased since the machine was made."""
        self._line.take_frames()
        return self._line.flash_operations

    def read_memory(self, address: int, size: int) -> bytes:
        """Bytes of the flash, as a debug probe would read them."""
        _check_place(self.board, address, size)
        found = bytearray()
        for start in range(address, address + size, _MOST_READ):
            count = min(_MOST_READ, address + size - start)
            said = self._emulation.of(self._line.node, f"sysbus ReadBytes {start:#010x} {count}")
            found += bytes(int(one, 16) for one in _BYTE.findall(said))
        return bytes(found)

    def stack_high_water_bytes(self) -> int:
        """Nobody knows: run the image in Unicorn for that."""
        return 0

    @property
    def executed_instructions(self) -> int:
        """Of the core, since the node was made."""
        return int(self._emulation.of(self._line.node, "sysbus.cpu ExecutedInstructions"), 16)

    @property
    def fault(self) -> Exception | None:
        """What stopped the machine for good, if anything did."""
        return self._line.end

    @property
    def last_fault(self) -> Exception | None:
        """The same: a fault of the firmware's is dealt with by the firmware."""
        return self._line.end

    def close(self) -> None:
        """Give it back; the process ends with its last node."""
        self._line.close()
        self._emulation.release(self._line.node)


def _check_place(board: Board, address: int, size: int) -> None:
    if not any(
        one.address <= address <= address + size <= one.address + one.bytes
        for one in board.flashes.values()
    ):
        raise ImageError(
            f"{size} bytes at {address:#010x} lie outside of the flashes of board {board.name}"
        )
