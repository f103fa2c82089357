"""Calls single C functions, on an emulated Cortex-M and on this machine, with numpy buffers.

For tests of kernels: no board, no firmware around them. Both sides place their
arguments in fresh memory with red zones around every buffer, so that a write outside of one is
an error and not luck; ARM counts instructions exactly.

>>> arm = arm_kernels([kernels / "pool.c"], include_dirs=[include])
>>> call = arm.call("tf_pool_forward", Struct(("H", 16), ("H", 8), ...), codes, output)
>>> call.instructions
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from unicorn import arm_const, unicorn_const
from unicorn.unicorn_py3 import unicorn as binding

from codegen.firmware.boards import Cpu, load_board
from codegen.firmware.toolchain import find_toolchain
from codegen.host_toolchain import Source, host_toolchain
from simulator.errors import ImageError, MachineFault
from simulator.machines.counting import InstructionCounter
from simulator.machines.elf_image import ElfImage, load_elf
from simulator.machines.unicorn_core import UnicornCore, check

Array = NDArray[Any]

_FLASH, _FLASH_BYTES = 0x08000000, 1 << 20
_RAM, _RAM_BYTES, _STACK_BYTES = 0x20000000, 4 << 20, 16 << 10
_RED_ZONE = bytes(range(0xA1, 0xC1))
_LINKER_SCRIPT = """
Reset_Handler = $flash + 1;
SECTIONS
{
  . = $flash;
  .text : { KEEP(*(.text .text.tf_*)) *(.text.*) }
  .rodata : { *(.rodata .rodata.*) }
  .data : { *(.data .data.*) *(.bss .bss.*) }
  /DISCARD/ : { *(.ARM.exidx*) *(.comment) *(.note*) *(.debug*) }
}
"""
BOARDS = {
    "cortex-m0plus": "mps2-an383",
    "cortex-m3": "mps2-an385",
    "cortex-m4": "stm32f407",
    "cortex-m7": "stm32f746",
    "cortex-m33": "mps2-an505",
    "cortex-m55": "mps3-an547",
}
"""Boards whose cores kernels are compiled for, by core."""


@dataclass(frozen=True)
class View:
    """A pointer into ``array``: its element ``first``. Buffers that overlap are views of one."""

    array: Array
    first: int


class Struct:
    """A C structure by its fields: (format, value) in order, laid out as both ABIs do.

    Formats are those of ``struct`` ("B", "b", "H", "h", "I", "i"), or "P" for a pointer to an
    array, a view, or nothing. After a call, ``values`` holds what the function left in it.
    """

    def __init__(self, *fields: tuple[str, Any]) -> None:
        """Copies nothing: arrays are those that calls read and write."""
        self.formats = [item[0] for item in fields]
        self.values = [item[1] for item in fields]


@dataclass(frozen=True)
class Call:
    """What a call returned, and on ARM how many instructions it took, also per function."""

    result: int
    instructions: int = 0
    by_function: dict[str, int] = field(default_factory=dict)


class Memory(Protocol):
    """What arguments are placed in."""

    pointer_bytes: int

    def write(self, address: int, data: bytes) -> None:
        """Stores to it."""

    def read_memory(self, address: int, size: int) -> bytes:
        """Loads from it."""


class Frame:
    """Arguments of one call, placed one after the other from ``start`` on."""

    def __init__(self, memory: Memory, start: int, size: int) -> None:
        """Nothing is placed yet."""
        self._memory, self._next, self._end = memory, start, start + size
        self._arrays: dict[int, tuple[Array, int]] = {}
        self._structs: list[tuple[Struct, int, list[int]]] = []
        self._red_zones: list[int] = []

    def place(self, argument: Any) -> int:
        """The machine word that stands for ``argument``."""
        if argument is None:
            return 0
        if isinstance(argument, View):
            return self._place_array(argument.array) + argument.first * argument.array.itemsize
        if isinstance(argument, np.ndarray):
            return self._place_array(argument)
        if isinstance(argument, Struct):
            return self._place_struct(argument)
        return int(argument)

    def take_back(self) -> None:
        """Copies what the function wrote into arrays and structures.

        Raises: MachineFault for a write outside of them.
        """
        for address in self._red_zones:
            if self._memory.read_memory(address, len(_RED_ZONE)) != _RED_ZONE:
                raise MachineFault("a kernel wrote outside its buffers", address=address)
        for array, address in self._arrays.values():
            content = np.frombuffer(self._memory.read_memory(address, array.nbytes), array.dtype)
            if array.flags.writeable:
                array[...] = content.reshape(array.shape)
            elif content.tobytes() != array.tobytes():
                raise MachineFault("a kernel wrote to a read-only buffer", address=address)
        for item, address, offsets in self._structs:
            for i, offset in enumerate(offsets):
                if item.formats[i] != "P":
                    kind = np.dtype(item.formats[i])
                    data = self._memory.read_memory(address + offset, kind.itemsize)
                    item.values[i] = int(np.frombuffer(data, kind)[0])

    def _place_array(self, array: Array) -> int:
        if id(array) not in self._arrays:
            if not array.flags.c_contiguous:
                raise ImageError("buffers of kernels are contiguous; pass a copy")
            self._arrays[id(array)] = array, self._allocate(array.tobytes())
        return self._arrays[id(array)][1]

    def _place_struct(self, item: Struct) -> int:
        content, offsets = bytearray(), []
        for code, value in zip(item.formats, item.values, strict=True):
            size = self._memory.pointer_bytes if code == "P" else np.dtype(code).itemsize
            content += bytes(-len(content) % size)
            offsets.append(len(content))
            word = self.place(value) if code == "P" else int(value)
            content += word.to_bytes(size, "little", signed=word < 0)
        address = self._allocate(bytes(content) + bytes(-len(content) % 8))
        self._structs.append((item, address, offsets))
        return address

    def _allocate(self, content: bytes) -> int:
        """Aligned to 8; a red zone before and behind."""
        first = self._next + len(_RED_ZONE)
        behind = first + len(content)
        if behind + len(_RED_ZONE) > self._end:
            raise ImageError(f"the arguments need more than {_RAM_BYTES >> 20} MiB")
        self._memory.write(self._next, _RED_ZONE + content + _RED_ZONE)
        self._red_zones += [self._next, behind]
        self._next = behind + len(_RED_ZONE)
        self._next += -self._next % 8
        return first


class HostKernels:
    """Functions of a shared library for this machine."""

    pointer_bytes = ctypes.sizeof(ctypes.c_void_p)

    def __init__(self, library: Path) -> None:
        """Loads the library."""
        self._library = ctypes.CDLL(str(library))

    def call(self, function: str, *arguments: Any) -> Call:
        """Calls ``function``; arrays are copied in, and back after it.

        Raises: MachineFault for writes outside of the arrays.
        """
        buffer = ctypes.create_string_buffer(_RAM_BYTES)
        start = ctypes.addressof(buffer)
        frame = Frame(self, start + -start % 8, _RAM_BYTES - 8)
        words = [ctypes.c_size_t(frame.place(argument)) for argument in arguments]
        result = self._library[function](*words)
        frame.take_back()
        return Call(result)

    def write(self, address: int, data: bytes) -> None:
        """Stores to this process."""
        ctypes.memmove(address, data, len(data))

    def read_memory(self, address: int, size: int) -> bytes:
        """Loads from this process."""
        return ctypes.string_at(address, size)


class ArmKernels(UnicornCore):
    """Functions of an image without a board around it."""

    pointer_bytes = 4

    def __init__(self, elf: Path, cpu: Cpu) -> None:
        """``cpu`` is one of ``simulator.machines.unicorn_core.MODELS``."""
        super().__init__()
        self.image: ElfImage = load_elf(elf)
        self._open_core(cpu)
        every = unicorn_const.UC_PROT_ALL
        for start, size in ((_FLASH, _FLASH_BYTES), (_RAM, _RAM_BYTES)):
            status = binding.uclib.uc_mem_map(
                self._engine, ctypes.c_uint64(start), ctypes.c_size_t(size), every
            )
            check(status, "memory")
        for start, data in self.image.segments:
            self.write(start, data)

    def call(self, function: str, *arguments: Any) -> Call:
        """Calls ``function`` by the AAPCS; arrays are copied in, and back after it.

        Raises: MachineFault for faults and for writes outside of the arrays; ImageError for a
        function that the image doesn't have.
        """
        address = self.image.address_of(function)
        frame = Frame(self, _RAM + _STACK_BYTES, _RAM_BYTES - _STACK_BYTES)
        words = [frame.place(argument) & 0xFFFFFFFF for argument in arguments]
        on_stack = b"".join(word.to_bytes(4, "little") for word in words[4:])
        self.stack_pointer = (_RAM + _STACK_BYTES - len(on_stack)) & ~7
        self.write(self.stack_pointer, on_stack)
        for number, word in enumerate(words[:4]):
            self.write_register(arm_const.UC_ARM_REG_R0 + number, word)
        trap = _FLASH + _FLASH_BYTES - 4
        self.write_register(arm_const.UC_ARM_REG_LR, trap | 1)
        with InstructionCounter(self) as counter:
            status = binding.uclib.uc_emu_start(self._engine, address | 1, trap, 0, 0)
        if status != unicorn_const.UC_ERR_OK or self.pc != trap:
            text = binding.uclib.uc_strerror(status).decode()
            raise MachineFault(
                f"{function}: {text} at PC {self.pc:#010x} ({self.image.locate(self.pc)})",
                pc=self.pc,
            )
        frame.take_back()
        by_function = counter.by_function()
        result = self.read_register(arm_const.UC_ARM_REG_R0)
        return Call(result, sum(by_function.values()), by_function)

    def write(self, address: int, data: bytes) -> None:
        """Stores to the machine."""
        status = binding.uclib.uc_mem_write(
            self._engine, ctypes.c_uint64(address), data, ctypes.c_size_t(len(data))
        )
        check(status, "store")

    def read_memory(self, address: int, size: int) -> bytes:
        """Loads from the machine."""
        data = ctypes.create_string_buffer(size)
        status = binding.uclib.uc_mem_read(
            self._engine, ctypes.c_uint64(address), data, ctypes.c_size_t(size)
        )
        check(status, "load")
        return data.raw


def arm_kernels(
    sources: Sequence[Path],
    include_dirs: Sequence[Path],
    *,
    cpu: Cpu = "cortex-m7",
    compiler: Literal["gcc", "zig"] | None = None,
) -> ArmKernels:
    """Compiles ``sources`` as firmware compiles its kernels, for calls in Unicorn.

    Raises ToolchainError where that fails, or where there is no such compiler.
    """
    with tempfile.TemporaryDirectory() as folder:
        elf = build_kernels(sources, include_dirs, cpu, compiler, _FLASH, Path(folder))
        return ArmKernels(elf, cpu)


def build_kernels(
    sources: Sequence[Path],
    include_dirs: Sequence[Path],
    cpu: Cpu,
    compiler: Literal["gcc", "zig"] | None,
    flash: int,
    folder: Path,
) -> Path:
    """An image of ``sources`` from address ``flash`` on, in ``folder``.

    Raises ToolchainError where that fails, or where there is no such compiler.
    """
    script, elf = folder / "kernels.ld", folder / "kernels.elf"
    script.write_text(Template(_LINKER_SCRIPT).substitute(flash=f"{flash:#x}"))
    find_toolchain(compiler).build(
        [Source(path, optimize="-O3") for path in sources],
        include_dirs=include_dirs,
        defines={},
        board=load_board(BOARDS[cpu]),
        linker_script=script,
        output_elf=elf,
    )
    return elf


def host_kernels(
    sources: Sequence[Path],
    include_dirs: Sequence[Path],
    *,
    sanitize: Sequence[str] = (),
    compiler: str | None = None,
    flags: tuple[str, ...] = (),
) -> HostKernels:
    """The same for this machine; ``flags`` choose an instruction set. Raises ToolchainError."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernels.so"
        host_toolchain(compiler).build_host(
            [Source(path, optimize="-O3", flags=flags) for path in sources],
            include_dirs=include_dirs,
            output=library,
            sanitize=sanitize,
        )
        return HostKernels(library)
