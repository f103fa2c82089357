"""Memory that costs only the pages that are written: erased flash, and SRAM that nobody uses.

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

    def __init__(self, size: int, content: int) -> None:
        """Each byte is ``content`` at first.

        Raises: OSError where the system has no more memory.
        """
        # `mmap.mmap` would keep a file descriptor for each mapping.
        start = _libc.mmap(
            None,
            size,
            mmap.PROT_READ | mmap.PROT_WRITE,
            mmap.MAP_PRIVATE,
            _full_of(content, size).fileno(),
            0,
        )
        if start == _FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self.start = int(start)
        self.size = size
        weakref.finalize(self, _libc.munmap, self.start, size).atexit = False
