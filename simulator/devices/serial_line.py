"""The wire between a board's USART and its modem: one byte after the other, in emulated time.

The modem sends as fast as the line allows and doesn't know what the firmware does with the bytes.
"""

from __future__ import annotations

from collections.abc import Callable

from simulator.clock import SECOND
from simulator.devices.core_clock import NEVER, CoreClock
from simulator.devices.serial_port import Dma2, Usart

MODEM_BAUD = 115_200
"""The modem's speed where the firmware hasn't set one."""


class SerialLine:
    """Bytes on their way in both directions, and when they arrive."""

    def __init__(
        self, clock: CoreClock, usart: Usart, transmitted: Callable[[bytes], None]
    ) -> None:
        """``transmitted`` is given what has arrived at the modem."""
        self._clock, self._usart, self._transmitted = clock, usart, transmitted
        self.dma: Dma2 | None = None
        self.bytes_received = 0
        """Bytes that have reached the board, whatever became of them there."""
        self._incoming = bytearray()
        # Bytes follow each other without a pause since a moment; so many of them have arrived.
        self._incoming_since = self._arrived = 0
        self._is_stopped = False  # by RTS
        self._quiet_since = NEVER
        self._outgoing = b""
        self._outgoing_since = 0

    @property
    def bytes_under_way(self) -> int:
        """Bytes from the modem that haven't arrived yet."""
        self.bring_up_to_date()
        return len(self._incoming)

    def send_to_board(self, data: bytes) -> None:
        """The modem has bytes for the board, which go behind those that are under way."""
        self.bring_up_to_date()
        if data and not self._incoming:
            self._start_incoming()
        self._incoming += data

    def send_to_modem(self, data: bytes) -> None:
        """DMA begins to transmit a buffer."""
        self._outgoing, self._outgoing_since = data, self._clock.now

    def stop_sending(self) -> None:
        """DMA was stopped: what has left the board by now arrives."""
        gone = (self._clock.now - self._outgoing_since) * self._baud // (10 * SECOND)
        data, self._outgoing = self._outgoing[:gone], b""
        self._transmitted(data)

    def hang_up(self) -> None:
        """The modem drops what it hasn't sent yet."""
        self.bring_up_to_date()
        self._incoming.clear()
        self._is_stopped = False

    def reset(self) -> None:
        """The board was reset: what it was sending is lost."""
        self._outgoing = b""

    @property
    def horizon(self) -> int:
        """Until when it is known what happens on the line; 0 where it is quiet.

        Later than that the modem may have more to send.
        """
        if self._is_moving:
            return self._arrival(len(self._incoming))
        if self._outgoing:
            return self._departure
        return 0

    @property
    def next_event(self) -> int:
        """When the next interrupt flag rises if no more bytes come; NEVER where none does."""
        at = self._departure if self._outgoing else NEVER
        if self._is_moving:
            count = self.dma.bytes_to_next_flag if self.dma is not None else 0
            if 0 < count <= len(self._incoming):
                return min(at, self._arrival(count))
            return min(at, self._arrival(len(self._incoming)))
        return min(at, self._idle_at)

    def bring_up_to_date(self) -> None:
        """Let everything happen that has happened by now."""
        now = self._clock.now
        if self._outgoing and now >= self._departure:
            data, self._outgoing = self._outgoing, b""
            self._transmitted(data)
            if self.dma is not None:
                self.dma.transmission_ended()
        if self._is_stopped and self._usart.requests_to_send:
            self._is_stopped = False
            self._start_incoming()
        if self._incoming and not self._is_stopped:
            self._deliver(now)
        if now >= self._idle_at:
            self._quiet_since = NEVER
            self._usart.line_fell_idle()

    def _deliver(self, now: int) -> None:
        count = (now - self._incoming_since) * self._baud // (10 * SECOND) - self._arrived
        data = bytes(self._incoming[:count])
        if not data:
            return
        taken = self.dma.receive(data) if self.dma is not None else len(data)
        self.bytes_received += taken
        self._arrived += taken
        del self._incoming[:taken]
        self._is_stopped = taken < len(data)
        self._quiet_since = NEVER if self._is_moving else self._arrival(0)

    def _start_incoming(self) -> None:
        self._incoming_since, self._arrived = self._clock.now, 0

    @property
    def _baud(self) -> int:
        return self._usart.baud or MODEM_BAUD

    @property
    def _is_moving(self) -> bool:
        return bool(self._incoming) and not self._is_stopped

    @property
    def _idle_at(self) -> int:
        if self._quiet_since == NEVER or self._is_moving:
            return NEVER
        return self._quiet_since + 10 * SECOND // self._baud

    @property
    def _departure(self) -> int:
        return self._outgoing_since + -(-len(self._outgoing) * 10 * SECOND // self._baud)

    def _arrival(self, count: int) -> int:
        """When the last of the first ``count`` bytes under way is there."""
        characters = self._arrived + count
        return self._incoming_since + -(-characters * 10 * SECOND // self._baud)
