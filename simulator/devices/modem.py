"""The modem: DTR dials the broker over TCP, DCD says that the stream is open, bytes flow.

Never blocks. Its owner calls ``step`` between slices of the machine and waits on ``socket``
for what ``wants_read`` and ``wants_write`` say.

A stream that was open and ended is not dialled again until the firmware has dropped DTR: a
firmware that is in a long training step would otherwise miss that the stream is another one.
A dial that fails is repeated after a pause for as long as DTR is up.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import math
import os
import socket
from collections.abc import Callable
from typing import Protocol

from simulator.clock import Milliseconds, host_milliseconds

RECEIVE_BYTES = 512
"""At most so many bytes reach the ring between two looks of the firmware, as on a serial line,
which is far slower than the core. Receive maximum alone doesn't protect the ring: Mosquitto up
to 2.0 (seen in 2.0.11, its issue 2301) sends two messages for each one acknowledged."""


class Terminal(Protocol):
    """The serial side of a machine."""

    @property
    def data_terminal_ready(self) -> bool:
        """DTR."""
        ...

    @property
    def hang_ups(self) -> int:
        """How often DTR has fallen: it may have risen again since the modem's last look."""
        ...

    @property
    def ready_to_receive(self) -> bool:
        """Whether bytes have a ring to go to."""
        ...

    def set_data_carrier_detect(self, connected: bool) -> None:
        """DCD."""
        ...

    def take_transmitted(self) -> bytes:
        """Bytes sent since the last call."""
        ...

    def receive(self, data: bytes) -> int:
        """Bytes arrive; returns how many were taken."""
        ...


class ModemState(enum.Enum):
    """What the modem is at."""

    ON_HOOK = "on hook"
    DIALLING = "dialling"
    CONNECTED = "connected"
    PAUSING = "pausing"
    """The dial failed; again after a pause."""
    LOST = "lost"
    """The stream ended; waits for DTR to drop."""


class Modem:
    """Connects one machine's serial line to a TCP server."""

    def __init__(
        self,
        terminal: Terminal,
        address: tuple[str, int],
        *,
        clock: Milliseconds = host_milliseconds,
        redial_milliseconds: int = 500,
        on_socket: Callable[[socket.socket | None], None] = lambda _: None,
    ) -> None:
        """``on_socket`` is told of each new socket, and of None just before one is closed."""
        self._terminal = terminal
        self._address = address
        self._clock = clock
        self._redial_milliseconds = redial_milliseconds
        self._redial_at = 0
        self._hang_ups = terminal.hang_ups
        self._on_socket = on_socket
        self._outgoing = bytearray()
        self._incoming = b""
        self.socket: socket.socket | None = None
        self.state = ModemState.ON_HOOK
        self.dials = 0
        self.last_error = ""

    @property
    def wants_read(self) -> bool:
        """Whether bytes from the broker could be delivered now."""
        return (
            self.state is ModemState.CONNECTED
            and not self._incoming
            and self._terminal.ready_to_receive
        )

    @property
    def wants_write(self) -> bool:
        """Whether the socket is being connected, or has bytes to take."""
        return self.state is ModemState.DIALLING or bool(self._outgoing and self.socket)

    @property
    def wait_seconds(self) -> float:
        """After how long ``step`` has something to do by itself; infinity where it hasn't."""
        if self.state is not ModemState.PAUSING:
            return math.inf
        return max(0, self._redial_at - self._clock()) / 1000.0

    def step(self, *, readable: bool = False, writable: bool = False) -> bool:
        """Move what can move; returns whether something reached the firmware.

        ``readable`` and ``writable``: what is known of the socket; a write is tried anyway.
        """
        fell = self._terminal.hang_ups != self._hang_ups
        self._hang_ups = self._terminal.hang_ups
        if fell or not self._terminal.data_terminal_ready:
            last_words = self._terminal.take_transmitted()
            if self.state is not ModemState.ON_HOOK:
                self._outgoing += last_words
                self._hang_up(ModemState.ON_HOOK)
                return True
            return False
        if self.state is ModemState.ON_HOOK or (
            self.state is ModemState.PAUSING and self._clock() >= self._redial_at
        ):
            self._dial()
        if self.state is ModemState.DIALLING and writable:
            self._finish_dialling()
            return True
        if self.state is not ModemState.CONNECTED:
            self._terminal.take_transmitted()  # nobody is listening
            return False
        reached = self._receive(readable)
        self._send()
        return reached

    def close(self) -> None:
        """Hang up."""
        self._hang_up(ModemState.ON_HOOK)

    def _dial(self) -> None:
        self.dials += 1
        self._terminal.take_transmitted()
        try:
            # IPv4 first: that is what a broker on "localhost" listens on.
            family, _, _, _, address = min(
                socket.getaddrinfo(*self._address, type=socket.SOCK_STREAM),
                key=lambda entry: entry[0] != socket.AF_INET,
            )
            stream = socket.socket(family, socket.SOCK_STREAM)
            stream.setblocking(False)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            status = stream.connect_ex(address)
        except OSError as error:
            self._failed(str(error))
            return
        if status not in (0, errno.EINPROGRESS):
            stream.close()
            self._failed(os.strerror(status))
            return
        self.socket = stream
        self.state = ModemState.DIALLING
        self._on_socket(stream)

    def _finish_dialling(self) -> None:
        assert self.socket is not None
        status = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            self._close_socket()
            self._failed(os.strerror(status))
        else:
            self.state = ModemState.CONNECTED
            self._terminal.set_data_carrier_detect(True)

    def _failed(self, why: str) -> None:
        self.last_error = f"dialling {self._address[0]}:{self._address[1]}: {why}"
        self.state = ModemState.PAUSING
        self._redial_at = self._clock() + self._redial_milliseconds

    def _receive(self, readable: bool) -> bool:
        assert self.socket is not None
        if readable and not self._incoming and self._terminal.ready_to_receive:
            try:
                self._incoming = self.socket.recv(RECEIVE_BYTES)
                if not self._incoming:
                    self._lost("closed by the other side")
                    return True
            except BlockingIOError:
                pass
            except OSError as error:
                self._lost(str(error))
                return True
        if self._incoming:
            taken = self._terminal.receive(self._incoming)
            self._incoming = self._incoming[taken:]
            return taken > 0
        return False

    def _send(self) -> None:
        self._outgoing += self._terminal.take_transmitted()
        if self._outgoing and self.socket is not None:
            try:
                del self._outgoing[: self.socket.send(self._outgoing)]
            except BlockingIOError:
                pass
            except OSError as error:
                self._lost(str(error))

    def _lost(self, why: str) -> None:
        self.last_error = f"stream lost: {why}"
        self._hang_up(ModemState.LOST)

    def _hang_up(self, state: ModemState) -> None:
        if state is ModemState.ON_HOOK and self._outgoing and self.socket is not None:
            # What the firmware sent before it dropped DTR has left its board.
            with contextlib.suppress(OSError):
                self.socket.send(self._outgoing)
        self._close_socket()
        self._outgoing.clear()
        self._incoming = b""
        self.state = state
        self._terminal.set_data_carrier_detect(False)

    def _close_socket(self) -> None:
        if self.socket is not None:
            self._on_socket(None)
            self.socket.close()
            self.socket = None
