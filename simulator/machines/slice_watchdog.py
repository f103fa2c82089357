"""Ends slices that run late although the firmware reads no register and enters no computation.

A stop from another thread isn't exact in Unicorn 2.1: generated code looks for it after every
access to memory, leaves with the PC at that very instruction and executes it again on resume.
After a register of a peripheral that does harm, and so does an ``ldrd`` that overwrites its own
base. So this is the last resort, for code that has called nothing back for a while. A while
is time of the processor, not of the wall: a thread that has come back from a callback and was
then suspended hasn't finished the instruction yet.

One thread for all machines of a process; it only runs while it is needed at all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from unicorn.unicorn_py3 import unicorn as binding


def _processor_time() -> Callable[[], float]:
    """A clock of what the calling thread has executed, for other threads to read."""
    if not hasattr(time, "pthread_getcpuclockid"):  # then the wall's time has to do
        return time.monotonic
    clock = time.pthread_getcpuclockid(threading.get_ident())
    return lambda: time.clock_gettime(clock)


class _Slice:
    """One machine within ``uc_emu_start``."""

    def __init__(self, engine: Any, deadline: float, activity: Callable[[], int]) -> None:
        self.engine, self.deadline, self._activity = engine, deadline, activity
        self._executed = _processor_time()
        self._seen, self._since = activity(), self._executed()

    def has_been_quiet(self, seconds: float) -> bool:
        """Whether the thread has executed for so long without any callback."""
        activity, executed = self._activity(), self._executed()
        if activity % 2 or activity != self._seen:
            self._seen, self._since = activity, executed
            return False
        return executed - self._since >= seconds


class _SliceWatchdog:
    """Ends slices that run late although the firmware calls nothing back."""

    PERIOD_SECONDS = 0.02
    QUIET_SECONDS = 0.1

    def __init__(self) -> None:
        self._running: dict[int, _Slice] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, engine: Any, deadline: float, activity: Callable[[], int]) -> None:
        """A slice begins; ``activity`` is odd within a callback and never the same after one."""
        with self._lock:
            self._running[id(engine)] = _Slice(engine, deadline, activity)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._watch, name="slices", daemon=True)
            self._thread.start()

    def end(self, engine: Any) -> None:
        """The slice is over."""
        # Under the lock, so that an engine isn't closed while it is being stopped.
        with self._lock:
            self._running.pop(id(engine), None)

    def _watch(self) -> None:
        while True:
            time.sleep(self.PERIOD_SECONDS)
            with self._lock:
                now = time.monotonic()
                for running in self._running.values():
                    if running.has_been_quiet(self.QUIET_SECONDS) and now > running.deadline:
                        binding.uclib.uc_emu_stop(running.engine)


slice_watchdog = _SliceWatchdog()
