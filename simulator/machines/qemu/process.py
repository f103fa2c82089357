"""QEMU's process: one of Arm's boards, stopped, with a socket to its debugger.

The largest of its memories is a file that the process shares with whoever has made it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.machines.child_process import die_with_parent
from simulator.machines.qemu.debugger import QemuError

NANOSECONDS_LOG2 = 5
"""An instruction takes 2^5 ns of the board's time: about one a cycle at 25 MHz."""


@dataclass(frozen=True)
class Model:
    """What QEMU calls a board, and what of it this machine has to know."""

    name: str
    ram_address: int
    ram_bytes: int
    vectors: int
    """Where its core looks for the stack and the first instruction."""
    counter: int
    """Register with the milliseconds of the port."""
    uart_state: int
    """Register that tells whether a received byte waits to be taken."""


MODELS = {
    383: Model("mps2-an385", 0x21000000, 16 << 20, 0x00000000, 0x40028018, 0x40004004),
    385: Model("mps2-an385", 0x21000000, 16 << 20, 0x00000000, 0x40028018, 0x40004004),
    386: Model("mps2-an386", 0x21000000, 16 << 20, 0x00000000, 0x40028018, 0x40004004),
    500: Model("mps2-an500", 0x60000000, 16 << 20, 0x00000000, 0x40028018, 0x40004004),
    505: Model("mps2-an505", 0x80000000, 16 << 20, 0x10000000, 0x50302018, 0x50200004),
    547: Model("mps3-an547", 0x60000000, 2 << 30, 0x00000000, 0x59302018, 0x59303004),
}
"""By TF_BOARD_AN (device_runtime/port/mps/registers.h)."""


def find_qemu() -> str:
    """The program. Raises: QemuError that says how to get it."""
    found = shutil.which("qemu-system-arm")
    if found is None:
        raise QemuError(
            "there is no qemu-system-arm on the path; install it (Debian and Ubuntu: apt install "
            "qemu-system-arm), or run devices as host"
        )
    return found


def start(
    program: str,
    model: Model,
    *,
    ram: int,
    vectors: bytes,
    words: int,
    sleeps: bool,
    options: Sequence[str] = (),
    files: Sequence[int] = (),
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A board that stands before its first instruction.

    ``ram``: file of the memory; ``vectors``: where its core begins; ``words``: file for what QEMU
    says; ``sleeps``: whether its time is the host's. ``options`` are QEMU's, ``files`` inherited.
    """
    ours, debugged = socket.socketpair()
    first = os.memfd_create("tinyfleet-vectors")
    os.write(first, vectors)
    command = [
        *(program, "-M", f"{model.name},memory-backend=ram"),
        *("-nodefaults", "-display", "none", "-S"),
        *("-icount", f"shift={NANOSECONDS_LOG2},sleep={'on' if sleeps else 'off'}"),
        "-object",
        f"memory-backend-file,id=ram,share=on,size={model.ram_bytes},mem-path=/proc/self/fd/{ram}",
        "-device",
        f"loader,file=/proc/self/fd/{first},addr={model.vectors:#x},force-raw=on",
        *("-chardev", f"socket,id=debugger,fd={debugged.fileno()}", "-gdb", "chardev:debugger"),
        *options,
    ]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            pass_fds=(ram, first, debugged.fileno(), *files),
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    finally:
        debugged.close()
        os.close(first)
    return process, ours
