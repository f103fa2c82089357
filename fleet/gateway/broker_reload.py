"""Let a running Mosquitto read its passwords and its access list again.

By SIGHUP: Mosquitto 2.0 then reads both files, asks every live connection's password again of what
it has read, and ends those that are no longer right; all others stay. Measured with 2.0.11, that
takes 0.1 s, the pause of its main loop, and 70 µs for every live connection. Its dynamic-security
plugin ends connections as well, but keeps users in a file of its own that nobody else may write,
and is spoken to as one more user with rights over all.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from fleet.clock import Clock, SystemClock
from fleet.errors import BrokerError

# From writing its process id to minding signals it takes some milliseconds; SIGHUP then ends it.
START_SECONDS = 10.0
_POLL_SECONDS = 0.01
PROGRAM = "mosquitto"
_PROCESSES = Path("/proc")


def reload_broker(pid_file: Path, clock: Clock | None = None) -> bool:
    """Whether a broker was there to be told; one that isn't reads its files when it starts.

    BrokerError where it runs and can't be told.
    """
    clock = clock or SystemClock()
    end = clock.monotonic() + START_SECONDS
    while found := _running(pid_file):
        pid, minds_reload = found
        if not minds_reload:
            if clock.monotonic() > end:
                raise BrokerError(
                    f"the broker (process {pid}) has been starting for {START_SECONDS:g} s; "
                    f"its log says what it waits for"
                )
            clock.sleep(_POLL_SECONDS)
            continue
        try:
            os.kill(pid, signal.SIGHUP)
        except ProcessLookupError:
            continue  # it has ended meanwhile; another one may have started
        except PermissionError:
            raise BrokerError(
                f"the broker (process {pid}) can't be told to read its files again; "
                f"run it and the gateway as one user"
            ) from None
        return True
    return False


def _running(pid_file: Path) -> tuple[int, bool] | None:
    """The process of the file, where it is a Mosquitto, and whether it minds SIGHUP yet.

    A broker that was killed leaves the file behind, and its number may be somebody else's by now.
    """
    try:
        pid = int(pid_file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    if pid <= 0:
        return None
    if not (_PROCESSES / "self").exists():
        return (pid, True) if _name_elsewhere(pid) == PROGRAM else None
    try:
        status = (_PROCESSES / str(pid) / "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = (line.partition(":") for line in status.splitlines())
    about = {name: value.strip() for name, _, value in lines}
    if about["Name"] != PROGRAM or about["State"].startswith(("Z", "X")):
        return None
    return pid, bool(int(about["SigCgt"], 16) >> (signal.SIGHUP - 1) & 1)


def _name_elsewhere(pid: int) -> str:
    """Name of a process where there is no /proc, as on macOS."""
    told = subprocess.run(
        ["ps", "-p", str(pid), "-o", "comm="], capture_output=True, text=True, check=False
    )
    return Path(told.stdout.strip()).name
