"""Emulated time of a board: what its core has executed, what it slept, and what it stood still.

The unit is the nanosecond. Executed code counts one clock of the core for each 16 bits of it, a
nominal figure between that of a core that never waits for its flash and that of one that always
does. Nothing here depends on the host: the same run gives the same times.
"""

from __future__ import annotations

import ctypes
import functools
from importlib import resources
from pathlib import Path

from unicorn.unicorn_py3 import unicorn as binding

from codegen.host_toolchain import host_toolchain
from simulator.clock import SECOND

NEVER = 2**64 - 1


class _Counter(ctypes.Structure):
    """core_clock of core_clock.c."""

    _fields_ = (
        ("clocks", ctypes.c_uint64),
        ("limit", ctypes.c_uint64),
        ("stop", ctypes.c_void_p),
        ("is_stopped", ctypes.c_uint64),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    """core_clock.c for this machine, kept with the objects that compilers cache.

    Raises: ToolchainError where there is no C compiler.
    """
    source = Path(str(resources.files("simulator.devices") / "core_clock.c"))
    return ctypes.CDLL(str(host_toolchain().library([source], include_dirs=[])))


def clock_callback() -> ctypes.c_void_p:
    """What Unicorn is to call at each block, with a pointer to a clock's ``address``."""
    return ctypes.cast(_library().core_clock_count, ctypes.c_void_p)


class CoreClock:
    """Counts the clocks of one core, stops it at a limit, and knows the time."""

    def __init__(self, hertz: int) -> None:
        """Time zero, with a clock of ``hertz``."""
        stop = ctypes.cast(binding.uclib.uc_emu_stop, ctypes.c_void_p)
        self._counter = _Counter(0, NEVER, stop, 0)
        self._base_nanoseconds = self._base_clocks = 0
        self._hertz = hertz

    @property
    def address(self) -> int:
        """Where the counter is, for the callback."""
        return ctypes.addressof(self._counter)

    @property
    def clocks(self) -> int:
        """Executed so far."""
        return int(self._counter.clocks)

    @property
    def now(self) -> int:
        """Nanoseconds since the clock was made."""
        executed: int = self._counter.clocks - self._base_clocks
        return self._base_nanoseconds + executed * SECOND // self._hertz

    def execute(self, clocks: int) -> None:
        """Clocks that an access takes beside its instruction."""
        self._counter.clocks += clocks

    def pass_time(self, nanoseconds: int) -> None:
        """The core executes nothing for so long."""
        self._base_nanoseconds += nanoseconds

    def set_frequency(self, hertz: int) -> None:
        """From now on the core runs at ``hertz``."""
        self._base_nanoseconds, self._base_clocks = self.now, self.clocks
        self._hertz = hertz

    def clocks_in(self, nanoseconds: int) -> int:
        """How many clocks there are in a span of time, rounded up."""
        return max(0, -(-nanoseconds * self._hertz // SECOND))

    def clocks_at(self, time: int) -> int:
        """How many clocks will have been executed once it is ``time``, if the core doesn't rest."""
        return self._base_clocks + self.clocks_in(time - self._base_nanoseconds)

    def stop_at(self, clocks: int) -> None:
        """Let no block start once so many clocks have been executed."""
        self._counter.limit = max(0, min(clocks, NEVER))
        self._counter.is_stopped = 0

    @property
    def is_stopped(self) -> bool:
        """Whether the core has come to the limit."""
        return bool(self._counter.is_stopped)
