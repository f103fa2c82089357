"""Processes of this machine, found by what /proc says of them."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def running(*said: str, environment: str = "") -> list[int]:
    """Those that run with all of this in their command line, and with that in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            if all(one.encode() in line for one in said) and (
                not environment or environment.encode() in (entry / "environ").read_bytes()
            ):
                found.append(int(entry.name))
    return found


def kill(*said: str, environment: str = "") -> None:
    """SIGKILL to these; there has to be one that it meets."""
    killed = 0
    for pid in running(*said, environment=environment):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    assert killed, f"no process to kill has {said} in its command line"
