"""Calls single C functions on a core in QEMU, as ``kernel_call`` does in Unicorn.

QEMU has the vectors of a Cortex-M55, and faults where a Cortex-M0+ has no unaligned access. Code,
stack and arguments lie in the board's largest memory, which this process shares; the debugger is
asked for no more than registers.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from codegen.firmware.boards import Cpu, load_board
from simulator.errors import MachineFault
from simulator.machines.elf_image import load_elf
from simulator.machines.kernel_call import BOARDS, Call, Frame, build_kernels
from simulator.machines.qemu.debugger import LR, PC, SP, Debugger
from simulator.machines.qemu.process import MODELS, Model, find_qemu, start

_STACK_BYTES, _ARGUMENT_BYTES = 16 << 10, 4 << 20
_CODE_BYTES = 1 << 20
_TRAP_BYTES = 16
_VECTORS, _STACKED_PC = 16, 24
_SECONDS = 60.0
_IN_REGISTERS = 4
_START = """
#include <stdint.h>
#define CCR (*(volatile uint32_t *)0xE000ED14u)
#define CPACR (*(volatile uint32_t *)0xE000ED88u)
void tf_start_core(void);
void tf_start_core(void) {
#if __ARM_ARCH == 6
    CCR |= 1u << 3; /* the larger core that stands in for it has unaligned accesses, too */
#else
    CPACR |= 0xFu << 20; /* floats and vectors */
#endif
    __asm volatile("dsb\\n\\tisb" ::: "memory");
}
"""


class QemuKernels:
    """Functions of an image without firmware around it."""

    pointer_bytes = 4

    def __init__(self, elf: Path, cpu: Cpu) -> None:
        """``elf``: an image of ``build_kernels`` from the start of the memory on.

        Raises: QemuError where QEMU is missing.
        """
        model = _model_of(cpu)
        self.image = load_elf(elf)
        self._base = model.ram_address
        self._trap = self._base + _CODE_BYTES - _TRAP_BYTES
        self._fault = self._trap + _TRAP_BYTES // 2
        self._stack = self._base + _CODE_BYTES + _STACK_BYTES
        self._ram = os.memfd_create("tinyfleet-kernels")
        self._words = os.memfd_create("tinyfleet-words")
        os.ftruncate(self._ram, model.ram_bytes)
        for address, data in self.image.segments:
            self.write(address, data)
        begin = self.image.address_of("tf_start_core")
        vectors = [self._stack, begin | 1, *[self._fault | 1] * (_VECTORS - 2)]
        self._process, self._connection = start(
            find_qemu(),
            model,
            ram=self._ram,
            vectors=b"".join(word.to_bytes(4, "little") for word in vectors),
            words=self._words,
            sleeps=False,
        )
        self._debugger = Debugger(self._connection)
        self._debugger.set_breakpoint(self._trap)
        self._debugger.set_breakpoint(self._fault)
        self.call("tf_start_core")

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
        if debugger.register(PC) == self._fault:
            at = int.from_bytes(self.read_memory(debugger.register(SP) + _STACKED_PC, 4), "little")
            raise MachineFault(f"{function} faults ({self.image.locate(at)})", pc=at)
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
    cpu: Cpu,
    compiler: Literal["gcc", "zig"] | None = None,
) -> QemuKernels:
    """Compiles ``sources`` as firmware compiles its kernels, for calls in QEMU.

    ``cpu``: one that a board of Arm's in QEMU has, or stands in for.

    Raises ToolchainError where that fails; QemuError where QEMU is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        start_core = Path(folder) / "start_core.c"
        start_core.write_text(_START)
        sources, base = [*sources, start_core], _model_of(cpu).ram_address
        image = build_kernels(sources, include_dirs, cpu, compiler, base, Path(folder))
        return QemuKernels(image, cpu)


def _model_of(cpu: Cpu) -> Model:
    return MODELS[load_board(BOARDS[cpu]).defines["TF_BOARD_AN"]]
