"""Ends slices that run late although the firmware reads neither clock nor ring.

One thread for all machines of a process; it only runs while it is needed at all.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from unicorn.unicorn_py3 import unicorn as binding


class _SliceWatchdog:
    """Ends slices that run late although the firmware reads neither clock nor ring."""

    PERIOD_SECONDS = 0.02

    def __init__(self) -> None:
        self._running: dict[int, tuple[Any, float]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, engine: Any, deadline: float) -> None:
        with self._lock:
            self._running[id(engine)] = (engine, deadline)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._watch, name="slices", daemon=True)
            self._thread.start()

    def end(self, engine: Any) -> None:
        # Under the lock, so that an engine isn't closed while it is being stopped.
        with self._lock:
            self._running.pop(id(engine), None)

    def _watch(self) -> None:
        while True:
            time.sleep(self.PERIOD_SECONDS)
            with self._lock:
                now = time.monotonic()
                for engine, deadline in self._running.values():
                    if now > deadline:
                        binding.uclib.uc_emu_stop(engine)


slice_watchdog = _SliceWatchdog()
