"""The line to a board of the port ``mps``: bytes, and between them what a modem's lines tell.

docs/specification/boards.md says how. Nothing is ever lost: what the board doesn't take waits in
the socket.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import termios

from simulator.machines.protocol import TrafficCount

_ESCAPE = b"\x10"
_SEND_BUFFER_BYTES = 1 << 20
_DTR, _NO_DTR, _DCD, _NO_DCD, _BATTERY = b"D", b"d", b"C", b"c", b"B"


class BoardLine:
    """The modem's end of the line. Implements ``simulator.devices.modem.Terminal``."""

    def __init__(self) -> None:
        """``boards_end`` is for the process that runs the board."""
        self._connection, self.boards_end = socket.socketpair()
        self._connection.setblocking(False)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._transmitted = bytearray()
        self._is_escaped = False
        self._dtr = self._carrier = False
        self._hang_ups = 0
        self._bytes_up = self._bytes_down = 0

    @property
    def data_terminal_ready(self) -> bool:
        """Whether the board wants the modem to dial and stay."""
        self._read()
        return self._dtr

    @property
    def hang_ups(self) -> int:
        """How often DTR has fallen."""
        self._read()
        return self._hang_ups

    @property
    def bytes_under_way(self) -> int:
        """Bytes that the board hasn't taken, those that tell of lines among them."""
        count = array.array("i", [0])
        fcntl.ioctl(self.boards_end, termios.FIONREAD, count)
        return count[0]

    def set_data_carrier_detect(self, connected: bool) -> None:
        """Tell that the modem's stream is open, or isn't."""
        self._carrier = connected
        self._send(_ESCAPE + (_DCD if connected else _NO_DCD))

    def tell_battery(self, charge: int) -> None:
        """Tell the board what its battery holds, as ``tinyfleet/port.h`` says it."""
        self._send(_ESCAPE + _BATTERY + bytes([charge]))

    def take_transmitted(self) -> bytes:
        """Bytes that the board has sent since the last call."""
        self._read()
        data = bytes(self._transmitted)
        self._transmitted.clear()
        return data

    def receive(self, data: bytes) -> int:
        """Bytes go on the line to the board; returns how many were taken."""
        room = max(0, _SEND_BUFFER_BYTES // 4 - self.bytes_under_way) // 2
        taken = data[:room]
        self._send(taken.replace(_ESCAPE, _ESCAPE * 2))
        self._bytes_down += len(taken)
        return len(taken)

    @property
    def traffic(self) -> TrafficCount:
        """Bytes on the line so far; what the board hasn't taken yet doesn't count."""
        return TrafficCount(self._bytes_up, max(0, self._bytes_down - self.bytes_under_way))

    def board_starts(self) -> None:
        """Whatever is on the line is lost, and the board is told of the carrier anew."""
        self._read()
        self._bytes_down -= min(self._bytes_down, self.bytes_under_way)
        with contextlib.suppress(BlockingIOError):
            while self.boards_end.recv(1 << 16, socket.MSG_DONTWAIT):
                pass
        self._is_escaped = False
        self._hangs_up()
        self.set_data_carrier_detect(self._carrier)

    def power_is_cut(self) -> None:
        """What the board has sent last doesn't reach the modem."""
        self._read()
        self._transmitted.clear()
        self._hangs_up()

    def close(self) -> None:
        """Both ends."""
        self._connection.close()
        self.boards_end.close()

    def _hangs_up(self) -> None:
        self._hang_ups += self._dtr
        self._dtr = False

    def _send(self, data: bytes) -> None:
        # There is room: no more than a quarter of the buffer is ever under way.
        self._connection.sendall(data)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := self._connection.recv(1 << 16):
                for byte in data:
                    self._take(bytes([byte]))

    def _take(self, byte: bytes) -> None:
        if not self._is_escaped and byte == _ESCAPE:
            self._is_escaped = True
            return
        if self._is_escaped and byte == _DTR:
            self._dtr = True
        elif self._is_escaped and byte == _NO_DTR:
            self._hangs_up()
        else:
            self._transmitted += byte
            self._bytes_up += 1
        self._is_escaped = False
