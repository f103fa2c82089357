"""Memory that costs only the pages that are written: flash with its firmware, and unused SRAM.

All of one size and content show the same pages until they are written (a private mapping of one
file), so that ten thousand devices with a megabyte of flash each fit a computer.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import tempfile
import weakref
from typing import IO

_FAILED = ctypes.c_void_p(-1).value
_FIXED = 0x10
"""MAP_FIXED of Linux, macOS and the BSDs, which ``mmap`` doesn't name."""
ZEROS, ERASED = 0x00, 0xFF
_BLOCK_BYTES = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


@functools.cache
def _full_of(content: int, size: int) -> IO[bytes]:
    """A file without a name, kept for as long as the process lives."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    if content == ZEROS:
        file.truncate(size)
    else:
        for _ in range(-(-size // _BLOCK_BYTES)):
            file.write(bytes([content]) * _BLOCK_BYTES)
    file.flush()
    return file


class LazyMemory:
    """``size`` bytes from the address ``start`` on, given back with this object."""

    def __init__(self, size: int, content: int | IO[bytes]) -> None:
        """``content``: what each byte is at first, or a file of ``size`` bytes that holds them all.

        Raises: OSError where the system has no more memory.
        """
        self._file = _full_of(content, size) if isinstance(content, int) else content
        self.size = size
        self.start = self._map(None, mmap.MAP_PRIVATE)
        self._unmap = weakref.finalize(self, _libc.munmap, self.start, size)
        self._unmap.atexit = False

    def view(self) -> memoryview:
        """All of its bytes, to be released before this object."""
        return memoryview((ctypes.c_ubyte * self.size).from_address(self.start)).cast("B")

    def forget(self) -> None:
        """Be as at first; whatever was written costs nothing any more."""
        self._map(self.start, mmap.MAP_PRIVATE | _FIXED)

    def close(self) -> None:
        """Give it back now."""
        self._unmap()

    def _map(self, place: int | None, flags: int) -> int:
        # `mmap.mmap` would keep a file descriptor for each mapping.
        rights = mmap.PROT_READ | mmap.PROT_WRITE
        start = _libc.mmap(place, self.size, rights, flags, self._file.fileno(), 0)
        if start == _FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return int(start)
