"""Calls single C functions on a core in QEMU, as ``kernel_call`` does in Unicorn.

QEMU has the vectors of a Cortex-M55, and faults where a Cortex-M0+ has no unaligned access. Code,
stack and arguments lie in the board's largest memory, which this process shares, and so does what
is to be called (kernel_caller.c): the debugger lets the core go on and tells that it has stopped.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from codegen.firmware.boards import Cpu, load_board
from simulator.errors import MachineFault
from simulator.machines.elf_image import load_elf
from simulator.machines.kernel_call import BOARDS, Call, Frame, build_kernels
from simulator.machines.qemu.debugger import PC, Debugger, QemuError
from simulator.machines.qemu.process import MODELS, Model, find_qemu, start

_STACK_BYTES, _ARGUMENT_BYTES = 16 << 10, 4 << 20
_CODE_BYTES = 1 << 20
_VECTORS = 16
_SECONDS = 60.0
_IN_REGISTERS = 4
_MAILBOX = struct.Struct("<8I")
"""Of kernel_caller.c: function, stack, arguments in registers, result, fault."""


class QemuKernels:
    """Functions of an image without firmware around it."""

    pointer_bytes = 4

    def __init__(self, elf: Path, cpu: Cpu) -> None:
        """``elf``: an image of ``build_kernels`` from the start of the memory on.

        Raises: QemuError where QEMU is missing.
        """
        program, model = find_qemu(), _model_of(cpu)
        self.image = load_elf(elf)
        self._base = model.ram_address
        self._stack = self._base + _CODE_BYTES + _STACK_BYTES
        self._mailbox, self._call, called, begin, fault = (
            self.image.address_of(name)
            for name in ("tf_mailbox", "tf_call", "tf_called", "tf_start_core", "tf_fault")
        )
        ram = os.memfd_create("tinyfleet-kernels")
        self._words = os.memfd_create("tinyfleet-words")
        os.ftruncate(ram, model.ram_bytes)
        self._memory = mmap.mmap(ram, _CODE_BYTES + _STACK_BYTES + _ARGUMENT_BYTES)
        for address, data in self.image.segments:
            self.write(address, data)
        vectors = [self._stack, begin | 1, *[fault | 1] * (_VECTORS - 2)]
        self._process, self._connection = start(
            program,
            model,
            ram=ram,
            vectors=b"".join(word.to_bytes(4, "little") for word in vectors),
            words=self._words,
            sleeps=False,
        )
        os.close(ram)
        try:
            self._debugger = Debugger(self._connection)
            self._debugger.set_breakpoint(called)
            self._start_core()
        except BaseException:
            self.close()
            raise

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
        in_registers = [*words, *[0] * _IN_REGISTERS][:_IN_REGISTERS]
        address = self.image.address_of(function) | 1
        self.write(self._mailbox, _MAILBOX.pack(address, top, *in_registers, 0, 0))
        self._debugger.go_on_at(self._call | 1)
        if not self._debugger.wait(_SECONDS):
            self._debugger.halt()
            at = self._debugger.register(PC)
            self._start_core()
            raise MachineFault(f"{function} doesn't return ({self.image.locate(at)})", pc=at)
        *_, result, at = _MAILBOX.unpack(self.read_memory(self._mailbox, _MAILBOX.size))
        if at:
            self._start_core()
            raise MachineFault(f"{function} faults ({self.image.locate(at)})", pc=at)
        frame.take_back()
        return Call(result)

    def write(self, address: int, data: bytes) -> None:
        """Stores to the memory."""
        first = address - self._base
        self._memory[first : first + len(data)] = data

    def read_memory(self, address: int, size: int) -> bytes:
        """Loads from the memory."""
        first = address - self._base
        return self._memory[first : first + size]

    def close(self) -> None:
        """End the process and give its memory back."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._memory.close()
        os.close(self._words)

    def _start_core(self) -> None:
        """From its vectors on, whatever it was in the middle of."""
        self._debugger.monitor("system_reset")
        self._debugger.go_on()
        if not self._debugger.wait(_SECONDS):
            raise QemuError(f"a core hasn't started in {_SECONDS:.0f} s")


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
        caller = Path(str(resources.files("simulator.machines.qemu") / "kernel_caller.c"))
        sources, base = [*sources, caller], _model_of(cpu).ram_address
        image = build_kernels(sources, include_dirs, cpu, compiler, base, Path(folder))
        return QemuKernels(image, cpu)


def _model_of(cpu: Cpu) -> Model:
    return MODELS[load_board(BOARDS[cpu]).defines["TF_BOARD_AN"]]
