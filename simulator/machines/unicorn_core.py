"""A core in Unicorn without its board: registers, hooks and translations."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from unicorn import arm_const, unicorn_const
from unicorn.unicorn_py3 import unicorn as binding
from unicorn.unicorn_py3.arch.types import uc_context, uc_engine, uc_hook_h

from codegen.firmware.boards import Cpu
from codegen.host_toolchain import host_toolchain
from simulator.errors import ImageError

_TRANSLATION_BYTES = 4 << 20
MODELS: dict[Cpu, int] = {
    # Unicorn has no core that refuses what this one lacks: its images run on a larger one.
    "cortex-m0plus": arm_const.UC_CPU_ARM_CORTEX_M3,
    "cortex-m3": arm_const.UC_CPU_ARM_CORTEX_M3,
    "cortex-m4": arm_const.UC_CPU_ARM_CORTEX_M4,
    "cortex-m7": arm_const.UC_CPU_ARM_CORTEX_M7,
    "cortex-m33": arm_const.UC_CPU_ARM_CORTEX_M33,
}


ACCESS = {
    unicorn_const.UC_MEM_READ_UNMAPPED: "read",
    unicorn_const.UC_MEM_READ_PROT: "read",
    unicorn_const.UC_MEM_WRITE_UNMAPPED: "write",
    unicorn_const.UC_MEM_WRITE_PROT: "write",
    unicorn_const.UC_MEM_FETCH_UNMAPPED: "fetch",
    unicorn_const.UC_MEM_FETCH_PROT: "fetch",
}
NOT_EXECUTABLE = unicorn_const.UC_ERR_EXCEPTION
"""Status of an emulation that came to a page without code, see ``_keep_data_apart``."""
INVALID_ACCESS = (
    unicorn_const.UC_HOOK_MEM_READ_UNMAPPED
    | unicorn_const.UC_HOOK_MEM_WRITE_UNMAPPED
    | unicorn_const.UC_HOOK_MEM_FETCH_UNMAPPED
    | unicorn_const.UC_HOOK_MEM_READ_PROT
    | unicorn_const.UC_HOOK_MEM_WRITE_PROT
    | unicorn_const.UC_HOOK_MEM_FETCH_PROT
)


class _PageRights(ctypes.Structure):
    """page_rights of page_rights.c."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("data_end", ctypes.c_uint64),
        ("write_register", ctypes.c_void_p),
        ("epsr", ctypes.c_int),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    """page_rights.c for this machine.

    Raises: ToolchainError where there is no C compiler.
    """
    source = Path(str(resources.files("simulator.machines") / "page_rights.c"))
    return ctypes.CDLL(str(host_toolchain().library([source], include_dirs=[])))


def check(status: int, what: str) -> None:
    """Raises: ImageError where Unicorn refused ``what``."""
    if status != unicorn_const.UC_ERR_OK:
        text = binding.uclib.uc_strerror(status).decode()
        raise ImageError(f"Unicorn refused the {what}: {text}")


class CoreRegisters(ABC):
    """Registers of a core that Unicorn emulates."""

    _starts = 0
    """How often the core has been reset."""

    @property
    @abstractmethod
    def _engine(self) -> Any:
        """Unicorn's handle."""

    @property
    def pc(self) -> int:
        """Address of the next instruction."""
        return self.read_register(arm_const.UC_ARM_REG_PC)

    @pc.setter
    def pc(self, address: int) -> None:
        self.write_register(arm_const.UC_ARM_REG_PC, address | 1)

    @property
    def stack_pointer(self) -> int:
        """SP."""
        return self.read_register(arm_const.UC_ARM_REG_SP)

    @stack_pointer.setter
    def stack_pointer(self, address: int) -> None:
        self.write_register(arm_const.UC_ARM_REG_SP, address)

    def read_register(self, register: int) -> int:
        """A 32-bit register by Unicorn's number."""
        value = ctypes.c_uint32()
        binding.uclib.uc_reg_read(self._engine, register, ctypes.byref(value))
        return value.value

    def write_register(self, register: int, value: int) -> None:
        """Set a 32-bit register by Unicorn's number."""
        binding.uclib.uc_reg_write(self._engine, register, ctypes.byref(ctypes.c_uint32(value)))

    @contextlib.contextmanager
    def registers_kept(self) -> Iterator[None]:
        """Puts all registers back at the end, so that the idle firmware isn't disturbed."""
        library, context, starts = binding.uclib, uc_context(), self._starts
        check(library.uc_context_alloc(self._engine, ctypes.byref(context)), "context")
        try:
            library.uc_context_save(self._engine, context)
            yield
        finally:
            if self._starts == starts:  # not after a reset, which starts with new ones
                library.uc_context_restore(self._engine, context)
            library.uc_context_free(context)


class UnicornCore(CoreRegisters):
    """An engine of Unicorn: memory, hooks and translations."""

    def __init__(self) -> None:
        """No engine yet."""
        self._handle: Any = None
        # C keeps no reference to the Python functions that it calls.
        self._callbacks: list[Any] = []

    @property
    def _engine(self) -> Any:
        return self._handle

    def add_hook(self, kind: int, callback: Any) -> int:
        """Install a raw Unicorn hook (a ctypes callback); translations start afresh.

        Returns: its handle for ``remove_hook``.
        """
        handle = self._keep_hook(kind, callback)
        self.flush_translations()
        return handle

    def remove_hook(self, handle: int) -> None:
        """Take out a hook."""
        check(binding.uclib.uc_hook_del(self._engine, uc_hook_h(handle)), "hook")
        self.flush_translations()

    def flush_translations(self) -> None:
        """Forget translated code."""
        control = unicorn_const.UC_CTL_TB_FLUSH | unicorn_const.UC_CTL_IO_WRITE << 30
        check(binding.uclib.uc_ctl(self._engine, control), "flush")

    def _map_memory(self, address: int, size: int, start: int, permissions: int) -> None:
        """``start``: where this process has the bytes."""
        status = binding.uclib.uc_mem_map_ptr(
            self._engine, address, size, permissions, ctypes.c_void_p(start)
        )
        check(status, "memory map")

    def _unmap_memory(self, address: int, size: int) -> None:
        status = binding.uclib.uc_mem_unmap(self._engine, address, ctypes.c_size_t(size))
        check(status, "memory map")

    def _protect_memory(self, address: int, size: int, permissions: int) -> None:
        """Changes what a mapped region may be used for, also from within a callback."""
        library, flush = binding.uclib, unicorn_const.UC_CTL_TLB_FLUSH
        status = library.uc_mem_protect(self._engine, address, size, permissions)
        check(status, "memory protection")
        status = library.uc_ctl(self._engine, flush | unicorn_const.UC_CTL_IO_WRITE << 30)
        check(status, "flush")

    def _close_core(self) -> None:
        """Give back all memory."""
        if self._handle is not None:
            binding.uclib.uc_close(self._handle)
            self._handle = None
        self._callbacks.clear()

    def _open_core(self, cpu: Cpu) -> None:
        """A core of ``MODELS`` without memory."""
        library = binding.uclib
        engine = uc_engine()
        mode = unicorn_const.UC_MODE_THUMB | unicorn_const.UC_MODE_MCLASS
        check(library.uc_open(unicorn_const.UC_ARCH_ARM, mode, ctypes.byref(engine)), "board")
        self._handle = engine
        write = unicorn_const.UC_CTL_IO_WRITE << 30 | 1 << 26
        check(
            library.uc_ctl(
                engine,
                unicorn_const.UC_CTL_CPU_MODEL | write,
                ctypes.c_int(MODELS[cpu]),
            ),
            "core",
        )
        check(
            library.uc_ctl(
                engine,
                unicorn_const.UC_CTL_TCG_BUFFER_SIZE | write,
                ctypes.c_uint32(_TRANSLATION_BYTES),
            ),
            "translation buffer",
        )

    def _keep_data_apart(self, first: int, size: int) -> None:
        """Nothing is executed from these pages, which makes stores to them twice as fast.

        Only as long as no hook watches accesses there: ``_keep_hook`` with a range.
        """
        write = unicorn_const.UC_CTL_IO_WRITE << 30 | 1 << 26
        kind = ctypes.c_int(unicorn_const.UC_TLB_VIRTUAL)
        status = binding.uclib.uc_ctl(self._engine, unicorn_const.UC_CTL_TLB_TYPE | write, kind)
        check(status, "cache of translations")
        write_register = ctypes.cast(binding.uclib.uc_reg_write, ctypes.c_void_p)
        rights = _PageRights(first, first + size, write_register, arm_const.UC_ARM_REG_EPSR)
        self._callbacks.append(rights)
        fill = ctypes.cast(_library().page_rights_fill, ctypes.c_void_p)
        self._keep_hook(unicorn_const.UC_HOOK_TLB_FILL, fill, context=ctypes.addressof(rights))

    def _keep_hook(
        self,
        kind: int,
        callback: Any,
        *,
        context: Any = None,
        addresses: tuple[int, int] = (1, 0),
    ) -> int:
        """``context`` is handed to the callback.

        ``addresses``: the first and the last; everywhere where the last lies before the first.
        """
        handle = uc_hook_h()
        self._callbacks.append(callback)
        check(
            binding.uclib.uc_hook_add(
                self._engine,
                ctypes.byref(handle),
                kind,
                ctypes.cast(callback, ctypes.c_void_p),
                context,
                ctypes.c_uint64(addresses[0]),
                ctypes.c_uint64(addresses[1]),
            ),
            "hook",
        )
        return int(handle.value or 0)
