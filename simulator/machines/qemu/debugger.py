"""QEMU's debugger stub, over a socket that only the two have: GDB's remote serial protocol.

The packets that are used: registers, memory, breakpoints, a step, going on, and QEMU's monitor. An
answer is acknowledged by the next command: QEMU takes its first byte for that.
"""

from __future__ import annotations

import contextlib
import socket
import time

from simulator.errors import SimulatorError

ANSWER_SECONDS = 60.0
SP, LR, PC = 13, 14, 15
_PACKET_BYTES = 1 << 12
_CHECKSUM_BYTES = 2


class QemuError(SimulatorError):
    """QEMU is missing, has ended, or refuses something."""


class Debugger:
    """A core that is stopped, or runs until it comes to a breakpoint."""

    def __init__(self, connection: socket.socket) -> None:
        """The core waits for ``go_on``. Raises: QemuError where nobody answers."""
        self._connection = connection
        self._received = bytearray()
        self._breakpoints: set[int] = set()
        self.running = False
        # Only who has asked what the registers are may read one of them.
        self._ask("qXfer:features:read:target.xml:0,40")

    def set_breakpoint(self, address: int) -> None:
        """Stop before the instruction at ``address``."""
        if address not in self._breakpoints:
            self._ask(f"Z1,{address:x},2")
            self._breakpoints.add(address)

    def clear_breakpoint(self, address: int) -> None:
        """Don't stop there any more."""
        if address in self._breakpoints:
            self._ask(f"z1,{address:x},2")
            self._breakpoints.discard(address)

    @property
    def is_at_breakpoint(self) -> bool:
        """Whether the next instruction has one."""
        return self.register(PC) in self._breakpoints

    def register(self, number: int) -> int:
        """Value of a register of the stopped core: 0 … 15."""
        return int.from_bytes(bytes.fromhex(self._ask(f"p{number:x}")), "little")

    def set_register(self, number: int, value: int) -> None:
        """Change one."""
        self._ask(f"P{number:x}={value.to_bytes(4, 'little').hex()}")

    def read_memory(self, address: int, size: int) -> bytes:
        """What the stopped core would read there."""
        found = bytearray()
        while len(found) < size:
            count = min(size - len(found), _PACKET_BYTES // 2 - 1)
            found += bytes.fromhex(self._ask(f"m{address + len(found):x},{count:x}"))
        return bytes(found)

    def write_memory(self, address: int, data: bytes) -> None:
        """Store to RAM; the core is stopped."""
        most = _PACKET_BYTES // 2 - 32
        for first in range(0, len(data), most):
            piece = data[first : first + most]
            self._ask(f"M{address + first:x},{len(piece):x}:{piece.hex()}")

    def read_word(self, address: int) -> int:
        """Little-endian word."""
        return int.from_bytes(self.read_memory(address, 4), "little")

    def monitor(self, command: str) -> None:
        """A command to QEMU's monitor, whose words are dropped."""
        self._ask(f"qRcmd,{command.encode().hex()}")

    def step(self) -> None:
        """Execute one instruction, whether or not it has a breakpoint."""
        self._ask("s")

    def go_on(self) -> None:
        """Let the stopped core run; a breakpoint where it stands doesn't count."""
        if self.is_at_breakpoint:
            self.step()
        self._send("c")
        self.running = True

    def go_on_at(self, address: int) -> None:
        """Let the core run from an instruction without a breakpoint; bit 0 says: Thumb."""
        self._send(f"c{address:x}")
        self.running = True

    def wait(self, seconds: float) -> bool:
        """Whether the running core comes to a breakpoint within that time."""
        if self._packet(seconds) is None:
            return False
        self.running = False
        return True

    def halt(self) -> None:
        """Stop the running core where it is."""
        self._write(b"\x03")
        if not self.wait(ANSWER_SECONDS):
            raise QemuError(f"QEMU's core hasn't stopped in {ANSWER_SECONDS:.0f} s")

    def _ask(self, command: str) -> str:
        self._send(command)
        answer = self._packet(ANSWER_SECONDS)
        if answer is None:
            raise QemuError(f"QEMU hasn't answered {command!r} in {ANSWER_SECONDS:.0f} s")
        if answer.startswith("E") or (not answer and command[0] != "q"):
            raise QemuError(f"QEMU's debugger refuses {command!r}: {answer or 'not known'}")
        return answer

    def _send(self, command: str) -> None:
        data = command.encode()
        self._write(b"$%b#%02x" % (data, sum(data) & 0xFF))

    def _write(self, data: bytes) -> None:
        try:
            self._connection.settimeout(ANSWER_SECONDS)
            self._connection.sendall(data)
        except OSError as error:
            raise QemuError(f"QEMU's debugger is gone: {error}") from None

    def _packet(self, seconds: float) -> str | None:
        """The next one, without its frame; None where none has come in time."""
        end = time.monotonic() + seconds
        while (found := self._complete()) is None:
            left = end - time.monotonic()
            self._connection.settimeout(max(left, 0.0))
            data = None
            with contextlib.suppress(TimeoutError, BlockingIOError):
                try:
                    data = self._connection.recv(1 << 16)
                except ConnectionError as error:
                    raise QemuError(f"QEMU's debugger is gone: {error}") from None
            if data is None:
                if left <= 0.0:
                    return None
            elif not data:
                raise QemuError("QEMU has closed its debugger")
            else:
                self._received += data
        return found

    def _complete(self) -> str | None:
        start = self._received.find(b"$")
        end = self._received.find(b"#", start)
        if start < 0 or end < 0 or len(self._received) <= end + _CHECKSUM_BYTES:
            return None
        packet = self._received[start + 1 : end].decode("latin-1")
        del self._received[: end + 1 + _CHECKSUM_BYTES]
        return packet
