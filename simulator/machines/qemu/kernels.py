"""Calls single C functions on a Cortex-M55 in QEMU, as ``kernel_call`` does in Unicorn.

Unicorn has no core with vectors.

Code, stack and arguments lie in the board's largest memory, which this process shares; the debugger
is asked for no more than registers.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from codegen.firmware.boards import load_board
from simulator.errors import MachineFault
from simulator.machines.elf_image import load_elf
from simulator.machines.kernel_call import BOARDS, Call, Frame, build_kernels
from simulator.machines.qemu.debugger import LR, PC, SP, Debugger
from simulator.machines.qemu.process import MODELS, find_qemu, start

_STACK_BYTES, _ARGUMENT_BYTES = 16 << 10, 4 << 20
_CODE_BYTES = 1 << 20
_TRAP_BYTES = 16
_SECONDS = 60.0
_IN_REGISTERS = 4
_START = """
#include <stdint.h>
#define CPACR (*(volatile uint32_t *)0xE000ED88u)
void tf_start_vectors(void);
void tf_start_vectors(void) {
    CPACR |= 0xFu << 20;
    __asm volatile("dsb\\n\\tisb" ::: "memory");
}
"""


class QemuKernels:
    """Functions of an image without firmware around it."""

    pointer_bytes = 4

    def __init__(self, elf: Path) -> None:
        """``elf``: an image of ``build_kernels`` from the start of the memory on.

        Raises: QemuError where QEMU is missing.
        """
        model = MODELS[load_board(BOARDS["cortex-m55"]).defines["TF_BOARD_AN"]]
        self.image = load_elf(elf)
        self._base = model.ram_address
        self._trap = self._base + _CODE_BYTES - _TRAP_BYTES
        self._stack = self._base + _CODE_BYTES + _STACK_BYTES
        self._ram = os.memfd_create("tinyfleet-kernels")
        self._words = os.memfd_create("tinyfleet-words")
        os.ftruncate(self._ram, model.ram_bytes)
        for address, data in self.image.segments:
            self.write(address, data)
        begin = self.image.address_of("tf_start_vectors")
        vectors = self._stack.to_bytes(4, "little") + (begin | 1).to_bytes(4, "little")
        self._process, self._connection = start(
            find_qemu(),
            model,
            ram=self._ram,
            vectors=vectors,
            words=self._words,
            sleeps=False,
        )
        self._debugger = Debugger(self._connection)
        self._debugger.set_breakpoint(self._trap)
        self.call("tf_start_vectors")

    def call(self, function: str, *arguments: Any) -> Call:
        """Calls ``function`` by the AAPCS; arrays are copied in, and back after it.

        Raises: MachineFault for faults and for writes outside of the arrays; ImageError for a
        function that the image doesn't have.
        """
        frame = Frame(self, self._stack, _ARGUMENT_BYTES)
        words = [frame.place(argument) & 0xFFFFFFFF for argument in arguments]
        on_stack = b"".join(word.to_bytes(4, "little") for word in words[_IN_REGISTERS:])
        top = (self._stack - len(on_stack)) & ~7
        self.write(top, on_stack)
        debugger = self._debugger
        for number, word in enumerate(words[:_IN_REGISTERS]):
            debugger.set_register(number, word)
        debugger.set_register(SP, top)
        debugger.set_register(LR, self._trap | 1)
        debugger.set_register(PC, self.image.address_of(function))
        debugger.go_on()
        if not debugger.wait(_SECONDS):
            debugger.halt()
            at = debugger.register(PC)
            raise MachineFault(f"{function} doesn't return ({self.image.locate(at)})", pc=at)
        frame.take_back()
        return Call(debugger.register(0))

    def write(self, address: int, data: bytes) -> None:
        """Stores to the memory."""
        os.pwrite(self._ram, data, address - self._base)

    def read_memory(self, address: int, size: int) -> bytes:
        """Loads from the memory."""
        return os.pread(self._ram, size, address - self._base)

    def close(self) -> None:
        """End the process and give its memory back."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
        os.close(self._words)
        os.close(self._ram)


def qemu_kernels(
    sources: Sequence[Path],
    include_dirs: Sequence[Path],
    *,
    compiler: Literal["gcc", "zig"] | None = None,
) -> QemuKernels:
    """Compiles ``sources`` as firmware compiles its kernels, for calls on a Cortex-M55.

    Raises ToolchainError where that fails; QemuError where QEMU is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        start_vectors = Path(folder) / "start_vectors.c"
        start_vectors.write_text(_START)
        base = MODELS[load_board(BOARDS["cortex-m55"]).defines["TF_BOARD_AN"]].ram_address
        return QemuKernels(
            build_kernels(
                [*sources, start_vectors], include_dirs, "cortex-m55", compiler, base, Path(folder)
            )
        )
