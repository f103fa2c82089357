"""What a node says and hears: its serial line, its modem's pins, its flash operations.

The model of the node's USART dials this end and speaks in frames; what they are stands in
``models/Stm32Serial.cs``.
"""

from __future__ import annotations

import contextlib
import socket
import struct

from simulator.machines.protocol import TrafficCount
from simulator.machines.renode.monitor import RenodeError

RUN_SECONDS = 600.0
_HEAD_BYTES = 3
_MOST_IN_A_FRAME = 0xFFFF


class NodeLine:
    """This end of a node's connection. Implements ``simulator.devices.modem.Terminal``."""

    def __init__(self, connection: socket.socket) -> None:
        """``connection`` is what the node has dialled."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self._connection = connection
        self._received = bytearray()
        self._transmitted = bytearray()
        self._dtr = False
        self._hang_ups = 0
        self._bytes_up = self._bytes_sent = self._bytes_arrived = 0
        self._run_is_over: bool | None = None
        self.node = ""
        """Its name, once it has said it."""
        self.microseconds = 0
        """Of the emulation, when it last was let go on."""
        self.flash_operations = 0
        self.power_is_cut = False
        """An armed power cut has happened."""
        self.was_reset = False
        """The board was reset since somebody has set this to False."""
        self.end: RenodeError | None = None
        """Why nothing will come any more."""

    # --- Terminal ------------------------------------------------------------------------------

    @property
    def data_terminal_ready(self) -> bool:
        """The pin that wants the modem to dial and stay."""
        self.take_frames()
        return self._dtr and not self.power_is_cut

    @property
    def hang_ups(self) -> int:
        """How often DTR has fallen."""
        return self._hang_ups

    @property
    def bytes_under_way(self) -> int:
        """Bytes on the line that haven't reached the board yet."""
        self.take_frames()
        return self._bytes_sent - self._bytes_arrived

    def set_data_carrier_detect(self, connected: bool) -> None:
        """The pin that tells that the modem's stream is open."""
        self._send(b"C", bytes([connected]))

    def take_transmitted(self) -> bytes:
        """Bytes that have reached the modem since the last call."""
        self.take_frames()
        data = bytes(self._transmitted)
        self._transmitted.clear()
        return data

    def receive(self, data: bytes) -> int:
        """Bytes go on the line to the board; returns how many were taken."""
        if self.power_is_cut:
            return 0
        for start in range(0, len(data), _MOST_IN_A_FRAME):
            self._send(b"R", data[start : start + _MOST_IN_A_FRAME])
        self._bytes_sent += len(data)
        return len(data)

    # --- besides -------------------------------------------------------------------------------

    @property
    def traffic(self) -> TrafficCount:
        """Bytes on the serial line so far."""
        return TrafficCount(self._bytes_up, self._bytes_arrived)

    def power_is_back(self) -> None:
        """The board starts again."""
        self.take_frames()
        self.power_is_cut = self.was_reset = self._dtr = False

    def go_on(self, microseconds: int, at_most: int) -> bool:
        """Let an emulation that doesn't run by itself go on; returns whether the firmware sleeps.

        For so long, and then until it sleeps, at most for so many ``microseconds`` more.
        """
        self._run_is_over = None
        self._send(b"G", struct.pack(">II", microseconds, at_most))
        self._connection.settimeout(RUN_SECONDS)
        try:
            while self._run_is_over is None and self.end is None:
                self._read()
        finally:
            self._connection.setblocking(False)
        return bool(self._run_is_over)

    def take_frames(self) -> None:
        """Whatever has come by now."""
        with contextlib.suppress(BlockingIOError):
            while self.end is None:
                self._read()

    def close(self) -> None:
        """The node lives on without a line."""
        if self.end is None:
            self._send(b"E", b"")
        self._connection.close()

    def _send(self, kind: bytes, payload: bytes) -> None:
        if self.end is not None:
            return
        self._connection.settimeout(RUN_SECONDS)
        try:
            self._connection.sendall(kind + struct.pack(">H", len(payload)) + payload)
        except OSError as error:
            self._ends(error)
        finally:
            self._connection.setblocking(False)

    def _read(self) -> None:
        try:
            data = self._connection.recv(1 << 16)
        except BlockingIOError:
            raise
        except OSError as error:
            self._ends(error)
            return
        if not data:
            self._ends("its connection is closed")
        self._received += data
        while len(self._received) >= _HEAD_BYTES:
            kind, length = struct.unpack_from(">cH", self._received)
            end = _HEAD_BYTES + length
            if len(self._received) < end:
                break
            payload = bytes(self._received[_HEAD_BYTES:end])
            del self._received[:end]
            self._handle(kind, payload)

    def _handle(self, kind: bytes, payload: bytes) -> None:
        number = int.from_bytes(payload[1:], "big")
        match kind:
            case b"N":
                self.node = payload.decode()
            case b"U":
                self._bytes_up += len(payload)
                self._transmitted += payload
            case b"D":
                self._hang_ups += self._dtr and not payload[0]
                self._dtr = bool(payload[0])
            case b"A":
                self._bytes_arrived = number
            case b"F":
                self.flash_operations = number
            case b"B":
                self.was_reset = True
            case b"P":
                self.power_is_cut = True
                self._transmitted.clear()
            case b"I":
                self._run_is_over = bool(payload[0])
                self.microseconds = number

    def _ends(self, why: object) -> None:
        self.end = RenodeError(f"Renode has lost node {self.node or '(new)'}: {why}")
