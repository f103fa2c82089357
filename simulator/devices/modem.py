"""The modem: DTR dials the broker over TCP or TLS, DCD says that the stream is open, bytes flow.

It sends what the broker sends at the speed of the serial line, whatever the firmware does with it.

Never blocks. Its owner calls ``step`` between slices of the machine and waits on ``socket``
for what ``wants_read`` and ``wants_write`` say.

With a TLS context it speaks TLS, as modems do that end TLS for their boards: the dial succeeds once
the other side has proved to be the host that was dialled.

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
import ssl
from collections.abc import Callable
from typing import Protocol

from simulator.clock import Milliseconds, host_milliseconds

BUFFER_BYTES = 4096
"""So many bytes of the broker's wait for the serial line at most; TCP holds back the others."""

_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


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
    def bytes_under_way(self) -> int:
        """Bytes on the line that haven't arrived yet."""
        ...

    def set_data_carrier_detect(self, connected: bool) -> None:
        """DCD."""
        ...

    def take_transmitted(self) -> bytes:
        """Bytes sent since the last call."""
        ...

    def receive(self, data: bytes) -> int:
        """Bytes go on the line; returns how many were taken."""
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
    """Connects one machine's serial line to a TCP or TLS server."""

    def __init__(
        self,
        terminal: Terminal,
        address: tuple[str, int],
        *,
        clock: Milliseconds = host_milliseconds,
        tls: ssl.SSLContext | None = None,
        redial_milliseconds: int = 500,
        on_socket: Callable[[socket.socket | None], None] = lambda _: None,
    ) -> None:
        """``on_socket`` is told of each new socket, and of None just before one is closed."""
        self._terminal = terminal
        self._address = address
        self._clock = clock
        self._tls = tls
        self._redial_milliseconds = redial_milliseconds
        self._redial_at = 0.0
        self._hang_ups = terminal.hang_ups
        self._on_socket = on_socket
        self._outgoing = bytearray()
        self._incoming = b""
        self._end = ""  # why no more bytes will come
        self._reads_to_dial = False
        self.socket: socket.socket | None = None
        self.state = ModemState.ON_HOOK
        self.dials = 0
        self.last_error = ""

    @property
    def wants_read(self) -> bool:
        """Whether there is room for bytes of the broker's, or TLS needs some."""
        if self.state is ModemState.DIALLING:
            return self._reads_to_dial
        return self.state is ModemState.CONNECTED and not self._end and self._room() > 0

    @property
    def wants_write(self) -> bool:
        """Whether the socket is being connected, or has bytes to take."""
        if self.state is ModemState.DIALLING:
            return not self._reads_to_dial
        return bool(self._outgoing and self.socket)

    @property
    def wait_seconds(self) -> float:
        """After how long ``step`` has something to do by itself; infinity where it hasn't."""
        if self.state is not ModemState.PAUSING:
            return math.inf
        return max(0, self._redial_at - self._clock()) / 1000.0

    def step(self, *, readable: bool = False, writable: bool = False) -> bool:
        """Move what can move; returns whether something reached the firmware.

        ``readable`` and ``writable``: what is known of the socket; a write is tried anyway, and so
        is a read where the line has nothing more to do, lest it fall idle for lack of a look.
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
        if self.state is ModemState.DIALLING and (readable if self._reads_to_dial else writable):
            self._go_on_dialling()
            return True
        if self.state is not ModemState.CONNECTED:
            self._terminal.take_transmitted()  # nobody is listening
            return False
        reached = self._receive(readable)
        if self._end and not self._incoming and self._terminal.bytes_under_way == 0:
            self._lost(self._end)
            return True
        self._send()
        return reached

    def _room(self) -> int:
        return BUFFER_BYTES - len(self._incoming) - self._terminal.bytes_under_way

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
        except (OSError, ValueError) as error:  # ValueError: a host that can't be one's name
            self._failed(str(error))
            return
        if status not in (0, errno.EINPROGRESS):
            stream.close()
            self._failed(os.strerror(status))
            return
        self.socket = stream
        self.state = ModemState.DIALLING
        self._on_socket(stream)

    def _go_on_dialling(self) -> None:
        assert self.socket is not None
        status = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            self._close_socket()
            self._failed(os.strerror(status))
            return
        try:
            if self._tls is not None:
                self._shake_hands(self._tls)
        except ssl.SSLWantReadError:
            self._reads_to_dial = True
            return
        except ssl.SSLWantWriteError:
            self._reads_to_dial = False
            return
        except (OSError, ValueError) as error:
            self._close_socket()
            self._failed(str(error))
            return
        self.state = ModemState.CONNECTED
        self._terminal.set_data_carrier_detect(True)

    def _shake_hands(self, tls: ssl.SSLContext) -> None:
        """Go on with TLS's handshake; raises OSError where it can't or can't yet."""
        assert self.socket is not None
        if not isinstance(self.socket, ssl.SSLSocket):
            self._on_socket(None)  # the descriptor moves into another socket
            plain, self.socket = self.socket, None
            self.socket = tls.wrap_socket(
                plain, do_handshake_on_connect=False, server_hostname=self._address[0]
            )
            self._on_socket(self.socket)
        self.socket.do_handshake()

    def _failed(self, why: str) -> None:
        self.last_error = f"dialling {self._address[0]}:{self._address[1]}: {why}"
        self.state = ModemState.PAUSING
        self._redial_at = self._clock() + self._redial_milliseconds

    def _receive(self, readable: bool) -> bool:
        assert self.socket is not None
        room = self._room()
        if not self._end and room > 0 and (readable or room == BUFFER_BYTES or self._decrypted()):
            try:
                data = self.socket.recv(room)
                self._incoming += data
                if not data:
                    self._end = "closed by the other side"
            except _NOT_NOW:
                pass
            except OSError as error:
                self._end = str(error)
        if not self._incoming:
            return False
        taken = self._terminal.receive(self._incoming)
        self._incoming = self._incoming[taken:]
        return taken > 0

    def _decrypted(self) -> bool:
        """Whether TLS holds bytes of which the socket knows nothing any more."""
        return isinstance(self.socket, ssl.SSLSocket) and self.socket.pending() > 0

    def _send(self) -> None:
        self._outgoing += self._terminal.take_transmitted()
        if self._outgoing and self.socket is not None:
            try:
                del self._outgoing[: self.socket.send(self._outgoing)]
            except _NOT_NOW:
                pass
            except OSError as error:
                self._outgoing.clear()
                self._end = self._end or str(error)

    def _lost(self, why: str) -> None:
        self.last_error = f"stream lost: {why}"
        self._hang_up(ModemState.LOST)

    def _hang_up(self, state: ModemState) -> None:
        if (
            state is ModemState.ON_HOOK
            and self.state is ModemState.CONNECTED
            and self._outgoing
            and self.socket is not None
        ):
            # What the firmware sent before it dropped DTR has left its board.
            with contextlib.suppress(OSError):
                self.socket.send(self._outgoing)
        self._close_socket()
        self._outgoing.clear()
        self._incoming = b""
        self._end = ""
        self.state = state
        self._terminal.set_data_carrier_detect(False)

    def _close_socket(self) -> None:
        if self.socket is not None:
            self._on_socket(None)
            if isinstance(self.socket, ssl.SSLSocket):
                with contextlib.suppress(OSError, ValueError):
                    self.socket.unwrap()  # says that this is the end; nobody waits for an answer
            self.socket.close()
            self.socket = None
        self._reads_to_dial = False
