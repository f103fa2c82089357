"""Let a running Mosquitto read its passwords and its access list again, and know that it has.

By SIGHUP: Mosquitto 2.0 then reads both files, asks every live connection's password again of what
it has read, and ends those that are no longer right; all others stay. Measured with 2.0.11, that
takes 0.1 s, the pause of its main loop, and 70 µs for every live connection. Its dynamic-security
plugin ends connections as well, but keeps users in a file of its own that nobody else may write,
and is spoken to as one more user with rights over all.

A SIGHUP that comes while it still asks for the one before is lost (2.0.11 forgets the signal at the
end): of removals one right after the other, two in five never took effect. So the files hold a user
whose password is new each time. Once that one is let in, the broker has read them.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fleet.clock import Clock, SystemClock
from fleet.errors import BrokerError

WAIT_SECONDS = 15.0
"""How long a broker may take to start, or to read its files."""
PROGRAM = "mosquitto"
_POLL_SECONDS = 0.02
_ANSWER = struct.Struct(">BBBB")  # MQTT 3.1.1: CONNACK
_ANSWER_HEAD = (0x20, 2)
_PROCESSES = Path("/proc")


@dataclass(frozen=True)
class Login:
    """A user that is let in by a broker that has read the files as they are now."""

    host: str
    port: int
    user: str
    password: str

    def is_let_in(self, seconds: float) -> bool | None:
        """Ask the broker; None where nobody answers."""
        try:
            with socket.create_connection((self.host, self.port), seconds) as found:
                found.sendall(self._packet())
                answer = found.recv(_ANSWER.size, socket.MSG_WAITALL)
        except OSError:
            return None
        if len(answer) < _ANSWER.size:
            return None
        *head, _, refusal = _ANSWER.unpack(answer)
        return None if tuple(head) != _ANSWER_HEAD else refusal == 0

    def _packet(self) -> bytes:
        """MQTT 3.1.1: CONNECT for a clean session, with name and password."""
        body = _text("MQTT") + bytes([4, 0xC2]) + struct.pack(">H", int(WAIT_SECONDS))
        body += _text(self.user) + _text(self.user) + _text(self.password)
        assert len(body) < 128, "more has a longer head"
        return bytes([0x10, len(body)]) + body


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack(">H", len(data)) + data


def reload_broker(pid_file: Path, sign: Login, clock: Clock | None = None) -> bool:
    """Whether a broker has read its files; there may be none, which reads them when it starts.

    ``sign`` is what tells: a user in the files as they are now, and in no earlier ones. BrokerError
    where a broker runs and can't be brought to it.
    """
    clock = clock or SystemClock()
    end = clock.monotonic() + WAIT_SECONDS
    answer: bool | None = None
    while (left := end - clock.monotonic()) > 0:
        pid = _signalled(pid_file)
        # It answers the first time maybe before it minds the signal, the second time after.
        for _ in range(2):
            answer = sign.is_let_in(left)
            if answer:
                return True
        if answer is None and pid is None:
            return False
        clock.sleep(_POLL_SECONDS)
    if pid is None:
        raise BrokerError(
            f"a broker at {sign.host}:{sign.port} hasn't read its files again, and {pid_file} "
            f"doesn't lead to it; start it with the mosquitto.conf beside that file, on the "
            f"gateway's machine"
        )
    raise BrokerError(
        f"the broker (process {pid}) was told to read its files again and in "
        f"{WAIT_SECONDS:g} s hasn't done so at {sign.host}:{sign.port}; its log says why"
    )


def _signalled(pid_file: Path) -> int | None:
    """The broker's process, which has a SIGHUP now where it minds that; None if it doesn't run."""
    found = _running(pid_file)
    if found is None:
        return None
    pid, minds_reload = found
    try:
        # From writing its process id to minding signals it takes some milliseconds, in which it
        # reads the files; SIGHUP would end it.
        if minds_reload:
            os.kill(pid, signal.SIGHUP)
    except ProcessLookupError:
        return None
    except PermissionError:
        raise BrokerError(
            f"the broker (process {pid}) can't be told to read its files again; "
            f"run it and the gateway as one user"
        ) from None
    return pid


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
