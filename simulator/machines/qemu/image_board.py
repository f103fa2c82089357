"""A board of Arm's in QEMU whose firmware's functions are called one by one and counted.

A plugin of QEMU's counts the instructions of every piece of code (block_counter.c). A function is
called from where the firmware wants to sleep, with interrupts masked, and returns to there.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codegen.firmware.boards import Board
from codegen.host_toolchain import host_toolchain
from simulator.errors import ImageError, MachineFault
from simulator.machines.elf_image import ElfImage
from simulator.machines.protocol import StopReason
from simulator.machines.qemu.debugger import LR, PC, SP, QemuError
from simulator.machines.qemu.machine import QemuMachine

_BLOCK = np.dtype([("address", "<u4"), ("instructions", "<u4"), ("executions", "<u8")])
_HEAD_BYTES = 16
_MOST_BLOCKS = 1 << 17
_MASK_INTERRUPTS = bytes.fromhex("72b6")
"""The instruction ``cpsid i``, with which every startup code of ours begins."""
_STARTUP_STEPS = 8
_CORE_REGISTERS = 16
_LONGEST_CALL_SECONDS = 120.0
_IN_REGISTERS = 4


class ImageBoard(QemuMachine):
    """The board up to its first sleep; from there on it does what it is called for."""

    def __init__(
        self,
        board: Board,
        firmware: Path,
        *,
        flash_content: Iterable[tuple[int, bytes]] = (),
        paint: int | None = None,
    ) -> None:
        """``paint``: a word that the SRAM is full of before the firmware starts.

        Raises: QemuError; ImageError when content lies outside the flash.
        """
        self._paint = paint
        with contextlib.ExitStack() as opened:
            self._counts = opened.enter_context(open(os.memfd_create("tinyfleet-counts"), "r+b"))
            self._counts.truncate(_HEAD_BYTES + _MOST_BLOCKS * _BLOCK.itemsize)
            self._counted = opened.enter_context(mmap.mmap(self._counts.fileno(), 0))
            super().__init__(board, firmware, clock=lambda: 0.0, flash_content=flash_content)
            opened.pop_all()

    @property
    def image(self) -> ElfImage:
        """Its symbols."""
        return self._image

    @property
    def stack_pointer(self) -> int:
        """SP."""
        return self._debugger.register(SP)

    @stack_pointer.setter
    def stack_pointer(self, address: int) -> None:
        self._debugger.set_register(SP, address)

    @property
    def pc(self) -> int:
        """Address of the next instruction."""
        return self._debugger.register(PC)

    @contextlib.contextmanager
    def registers_kept(self) -> Iterator[None]:
        """Puts the core's registers back at the end; interrupts stay masked from now on."""
        before = [self._debugger.register(number) for number in range(_CORE_REGISTERS)]
        self._mask_interrupts()
        self._restore(before)
        yield
        if self._has_power:
            self._restore(before)

    def call(self, function: str, *arguments: int) -> int:
        """Call a function of the image on the present stack and return R0.

        Raises: ImageError for an unknown function or more than 8 arguments; MachineFault when it
            doesn't return.
        """
        if len(arguments) > 2 * _IN_REGISTERS:
            raise ImageError(f"{function}: at most 8 arguments, not {len(arguments)}")
        debugger = self._debugger
        before = [debugger.register(number) for number in range(_CORE_REGISTERS)]
        on_stack = b"".join(value.to_bytes(4, "little") for value in arguments[_IN_REGISTERS:])
        top = (before[SP] - len(on_stack)) & ~7
        if on_stack:
            debugger.write_memory(top, on_stack)
        for number, value in enumerate(arguments[:_IN_REGISTERS]):
            debugger.set_register(number, value & 0xFFFFFFFF)
        self.stack_pointer = top
        debugger.set_register(LR, self._idle | 1)
        debugger.set_register(PC, self._image.address_of(function))
        try:
            debugger.go_on()
            came_back = debugger.wait(_LONGEST_CALL_SECONDS)
        except QemuError as error:
            raise MachineFault(f"{function}: {error}") from error
        if not came_back or self.pc != self._idle or self.stack_pointer != top:
            where = "is still running" if not came_back else self._image.locate(self.pc)
            raise MachineFault(f"{function} didn't return: {where}")
        result = debugger.register(0)
        self._restore(before)
        return result

    def read_memory(self, address: int, size: int) -> bytes:
        """Bytes of the flash, or what the core would read elsewhere."""
        flash = self.board.flash
        if flash.address <= address < flash.address + flash.bytes:
            return super().read_memory(address, size)
        return self._debugger.read_memory(address, size)

    def write_flash(self, address: int, data: bytes) -> None:
        """As a debug probe does.

        Raises: ImageError outside of the flash.
        """
        os.pwrite(self._ram, data, self._place_of(address, len(data)))

    @contextlib.contextmanager
    def counting(self) -> Iterator[CountedBlocks]:
        """Count the instructions of calls."""
        yield CountedBlocks(self)

    def blocks(self) -> NDArray[np.void]:
        """All pieces of code so far: address, instructions, executions.

        Raises: MachineFault where there were more than the counter has room for.
        """
        used = int.from_bytes(self._counted[:8], "little")
        if used > _MOST_BLOCKS:
            raise MachineFault(f"QEMU has made {used} blocks of code; {_MOST_BLOCKS} are counted")
        return np.frombuffer(self._counted[: _HEAD_BYTES + used * _BLOCK.itemsize], _BLOCK, -1, 16)

    def close(self) -> None:
        """End the process and give its memory back."""
        super().close()
        self._counted.close()
        self._counts.close()

    def boot(self) -> StopReason:
        """Let the firmware go on to its first sleep."""
        return self.run(_LONGEST_CALL_SECONDS * 1000.0)

    def _options(self) -> tuple[list[str], tuple[int, ...]]:
        # What the process before has counted is no count of this one.
        self._counted[:_HEAD_BYTES] = bytes(_HEAD_BYTES)
        source = Path(str(resources.files("simulator.machines.qemu") / "block_counter.c"))
        plugin = host_toolchain().library([source], include_dirs=[])
        counts = self._counts.fileno()
        return ["-plugin", f"{plugin},counts=/proc/self/fd/{counts}"], (counts,)

    def _starts(self) -> None:
        super()._starts()
        if self._paint is not None:
            word = self._paint.to_bytes(4, "little")
            words = self.board.sram_limit_bytes // 4
            self._debugger.write_memory(self.board.sram.address, word * words)

    def _restore(self, registers: list[int]) -> None:
        for number, value in enumerate(registers):
            self._debugger.set_register(number, value)

    def _mask_interrupts(self) -> None:
        """A debugger can't: the core executes the instruction of its startup code for it."""
        debugger = self._debugger
        at = self._image.address_of("Reset_Handler")
        for _ in range(_STARTUP_STEPS):
            if debugger.read_memory(at, 2) == _MASK_INTERRUPTS:
                debugger.set_register(PC, at)
                debugger.step()
                return
            at += 2
        raise ImageError(f"{self._image.path}: Reset_Handler doesn't begin with cpsid")


class CountedBlocks:
    """What a board has executed since this was made, or cleared."""

    def __init__(self, board: ImageBoard) -> None:
        """Counts start at zero."""
        self._board = board
        self._before = board.blocks()["executions"].copy()

    def clear(self) -> None:
        """Count from zero."""
        self._before = self._board.blocks()["executions"].copy()

    @property
    def total(self) -> int:
        """Number of instructions executed."""
        return sum(self.by_function().values())

    def by_function(self) -> dict[str, int]:
        """Instructions executed per function symbol of the image, most first."""
        blocks = self._board.blocks()
        executions = blocks["executions"].copy()
        executions[: len(self._before)] -= self._before
        counts: dict[str, int] = {}
        for address, instructions, times in zip(
            blocks["address"].tolist(),
            blocks["instructions"].tolist(),
            executions.tolist(),
            strict=True,
        ):
            if times:
                name = self._board.image.function_at(address) or "unknown"
                counts[name] = counts.get(name, 0) + instructions * times
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
