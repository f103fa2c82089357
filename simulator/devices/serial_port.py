"""USART1 and DMA2: bytes of the serial line go to a ring in SRAM and come from a buffer there.

Bytes arrive when ``serial_line.SerialLine`` says so, whatever the core does. Reception by DMA
raises no interrupt but those of DMA (half and full transfer) and that of a line which falls idle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from simulator.devices.peripherals import Peripheral


def _nothing() -> None:
    pass


class Usart(Peripheral):
    """USART1. Version 1 (F4) has SR and DR, version 2 (F7) ISR, ICR, RDR and TDR."""

    BASE = 0x40011000
    INTERRUPT = 37
    TXE, TC, RXNE, IDLE, ORE = 1 << 7, 1 << 6, 1 << 5, 1 << 4, 1 << 3
    IDLEIE = 1 << 4
    DMAR, DMAT, RTSE = 1 << 6, 1 << 7, 1 << 8
    BITS_PER_CHARACTER = 10
    V1: ClassVar[dict[str, int]] = {
        "SR": 0x00,
        "DR": 0x04,
        "BRR": 0x08,
        "CR1": 0x0C,
        "CR2": 0x10,
        "CR3": 0x14,
        "GTPR": 0x18,
    }
    V2: ClassVar[dict[str, int]] = {
        "CR1": 0x00,
        "CR2": 0x04,
        "CR3": 0x08,
        "BRR": 0x0C,
        "GTPR": 0x10,
        "RTOR": 0x14,
        "RQR": 0x18,
        "ISR": 0x1C,
        "ICR": 0x20,
        "RDR": 0x24,
        "TDR": 0x28,
    }

    def __init__(
        self, version: int, transmit: Callable[[bytes], None], bus_hertz: Callable[[], int]
    ) -> None:
        """``transmit`` is given what the firmware writes to the data register."""
        self.registers = self.V1 if version == 1 else self.V2
        self.version = version
        self._transmit, self._bus_hertz = transmit, bus_hertz
        self.values = dict.fromkeys(self.registers.values(), 0)
        self.bring_up_to_date = _nothing
        """Called before the state is read: bytes may have come since."""
        self.interrupt_may_rise = _nothing
        self._status = 0
        self._received = 0
        self._status_was_read = False

    def reset(self) -> None:
        """Off."""
        super().reset()
        self._status = self._received = 0
        self._status_was_read = False

    @property
    def data_address(self) -> int:
        """Bus address of the receive data register, as a DMA stream's PAR names it."""
        return self.BASE + self.registers["DR" if self.version == 1 else "RDR"]

    @property
    def baud(self) -> int:
        """Bits per second; 0 where none are set."""
        divider = self.values[self.registers["BRR"]] & 0xFFFF
        return round(self._bus_hertz() / divider) if divider else 0

    @property
    def enabled(self) -> bool:
        """UE: bit 13 of CR1 in version 1, bit 0 in version 2."""
        return bool(self.values[self.registers["CR1"]] & (1 << 13 if self.version == 1 else 1))

    @property
    def receives(self) -> bool:
        """Receiver on (RE)."""
        return self.enabled and bool(self.values[self.registers["CR1"]] & 1 << 2)

    @property
    def receives_by_dma(self) -> bool:
        """Receiver on and DMAR set."""
        return self.receives and bool(self.values[self.registers["CR3"]] & self.DMAR)

    @property
    def transmits_by_dma(self) -> bool:
        """Transmitter on (TE) and DMAT set."""
        transmitter = self.values[self.registers["CR1"]] & 1 << 3
        return bool(self.enabled and transmitter and self.values[self.registers["CR3"]] & self.DMAT)

    @property
    def requests_to_send(self) -> bool:
        """RTS: false while a byte waits in the data register of a receiver with flow control."""
        has_flow_control = self.values[self.registers["CR3"]] & self.RTSE
        return not (has_flow_control and self._status & self.RXNE)

    @property
    def interrupt_is_asserted(self) -> bool:
        """The idle line, where its interrupt is enabled."""
        return bool(self._status & self.IDLE and self.values[self.registers["CR1"]] & self.IDLEIE)

    def receive(self, byte: int) -> bool:
        """A byte that DMA doesn't take at once; false: it is lost, as nobody has read the last."""
        if not self.receives:
            return False
        if self._status & self.RXNE:
            self._status |= self.ORE
            return False
        self._received = byte
        self._status |= self.RXNE
        return True

    def take_received(self) -> bytes:
        """The byte that waits in the data register, for DMA."""
        if not self._status & self.RXNE:
            return b""
        self._status &= ~self.RXNE
        return bytes([self._received])

    def line_fell_idle(self) -> None:
        """Nothing has come for the time of one character."""
        if self.receives:
            self._status |= self.IDLE
            self.interrupt_may_rise()

    def read(self, offset: int) -> int:
        """The transmitter is always ready."""
        self.bring_up_to_date()
        if offset == self.registers["SR" if self.version == 1 else "ISR"]:
            self._status_was_read = True
            status = self._status | self.TXE | self.TC
            if self.version == 2:  # TEACK and REACK follow TE and RE
                control = self.values[self.registers["CR1"]]
                status |= (control >> 3 & 1) << 21 | (control >> 2 & 1) << 22
            return status
        if offset == self.registers["DR" if self.version == 1 else "RDR"]:
            self._status &= ~self.RXNE
            if self.version == 1 and self._status_was_read:
                self._status &= ~(self.IDLE | self.ORE)
            self._status_was_read = False
            return self._received
        return self.values[offset]

    def write(self, offset: int, value: int) -> None:
        """A byte written to the data register goes out at once; ICR clears flags by ones."""
        self.bring_up_to_date()
        if offset == self.registers["DR" if self.version == 1 else "TDR"]:
            self._transmit(bytes([value & 0xFF]))
        elif offset == self.registers.get("ICR"):
            self._status &= ~(value & (self.IDLE | self.ORE))
        elif offset not in (self.registers.get("SR"), self.registers.get("ISR")):
            self.values[offset] = value
            self.interrupt_may_rise()


class Dma2(Peripheral):
    """DMA2: stream 2 fills the receive ring, stream 7 sends a buffer."""

    BASE = 0x40026400
    LISR, HISR, LIFCR, HIFCR = 0x00, 0x04, 0x08, 0x0C
    CR, NDTR, PAR, M0AR = range(4)
    EN, HTIE, TCIE, CIRC, MINC = 1 << 0, 1 << 3, 1 << 4, 1 << 8, 1 << 10
    HTIF, TCIF = 1 << 4, 1 << 5
    RX, TX = 2, 7
    INTERRUPTS = (56, 57, 58, 59, 60, 68, 69, 70)
    CHANNEL = 4

    def __init__(
        self,
        usart: Usart,
        load: Callable[[int, int], bytes],
        store: Callable[[int, bytes], None],
        send: Callable[[bytes], None],
        stop_sending: Callable[[], None],
    ) -> None:
        """``load`` and ``store`` move bytes from and to SRAM and fault outside of it.

        ``send`` puts a buffer on the line, which calls ``transmission_ended``.
        """
        self.values = dict.fromkeys((self.LISR, self.HISR, self.LIFCR, self.HIFCR), 0)
        for stream in range(8):
            for register in range(6):
                self.values[self._offset(stream, register)] = 0
        self._usart, self._load, self._store = usart, load, store
        self._send, self._stop_sending = send, stop_sending
        self._ring_bytes = 0
        self.bring_up_to_date = _nothing
        """Called before the state is read: bytes may have come since."""
        self.interrupt_may_rise: dict[int, Callable[[], None]] = {}

    @staticmethod
    def _offset(stream: int, register: int) -> int:
        """Registers of a stream: CR, NDTR, PAR, M0AR, 4 M1AR, 5 FCR."""
        return 0x10 + 0x18 * stream + 4 * register

    @staticmethod
    def _shift(stream: int) -> int:
        """Where the flags of a stream begin in LISR or HISR."""
        return (0, 6, 16, 22)[stream % 4]

    def _stream(self, stream: int, register: int) -> int:
        return self.values[self._offset(stream, register)]

    def interrupt_is_asserted(self, stream: int) -> bool:
        """A flag of the stream whose interrupt is enabled."""
        flags = self.values[self.LISR if stream < 4 else self.HISR] >> self._shift(stream)
        control = self._stream(stream, self.CR)
        return bool(
            (flags & self.HTIF and control & self.HTIE)
            or (flags & self.TCIF and control & self.TCIE)
        )

    def _raise(self, stream: int, flags: int) -> None:
        self.values[self.LISR if stream < 4 else self.HISR] |= flags << self._shift(stream)
        self.interrupt_may_rise.get(stream, _nothing)()

    def read(self, offset: int) -> int:
        """Positions and flags are those of now."""
        self.bring_up_to_date()
        return self.values[offset]

    def write(self, offset: int, value: int) -> None:
        """Clearing flags, and enabling a stream, act at once."""
        self.bring_up_to_date()
        if offset == self.LIFCR:
            self.values[self.LISR] &= ~value
        elif offset == self.HIFCR:
            self.values[self.HISR] &= ~value
        elif offset not in (self.LISR, self.HISR):
            stream, register = divmod((offset - 0x10) // 4, 6)
            was_on = self._stream(stream, self.CR) & self.EN
            if register == self.NDTR and was_on:
                return  # protected
            self.values[offset] = value
            if register == self.CR:
                if value & self.EN and not was_on:
                    self._enabled(stream)
                elif was_on and not value & self.EN:
                    if stream == self.TX:
                        self._stop_sending()
                    self._raise(stream, self.TCIF)
                self.interrupt_may_rise.get(stream, _nothing)()

    def _enabled(self, stream: int) -> None:
        if stream == self.RX:
            self._ring_bytes = self._stream(self.RX, self.NDTR)
            if self.ready_to_receive:
                self._take(self._usart.take_received())
            self.bring_up_to_date()  # the line goes on where RTS had stopped it
        elif stream == self.TX:
            control = self._stream(self.TX, self.CR)
            if control >> 25 & 7 == self.CHANNEL and self._usart.transmits_by_dma:
                place, size = self._stream(self.TX, self.M0AR), self._stream(self.TX, self.NDTR)
                self._send(self._load(place, size))

    def transmission_ended(self) -> None:
        """The last byte of stream 7's buffer has left the board."""
        self.values[self._offset(self.TX, self.CR)] &= ~self.EN
        self.values[self._offset(self.TX, self.NDTR)] = 0
        self._raise(self.TX, self.TCIF)

    @property
    def ready_to_receive(self) -> bool:
        """Whether bytes on the line have a ring to go to."""
        control = self._stream(self.RX, self.CR)
        return bool(
            control & self.EN
            and control >> 25 & 7 == self.CHANNEL
            and self._ring_bytes
            and self._stream(self.RX, self.PAR) == self._usart.data_address
            and self._usart.receives_by_dma
        )

    @property
    def bytes_to_next_flag(self) -> int:
        """So many more bytes until the ring is half full or full; 0 where none are received."""
        if not self.ready_to_receive:
            return 0
        remaining = self._stream(self.RX, self.NDTR)
        behind_half = self._ring_bytes // 2
        return remaining - behind_half if remaining > behind_half else remaining

    def receive(self, data: bytes) -> int:
        """Bytes from the line, of which those that DMA doesn't take stay with the USART.

        Returns: how many were received; the next one finds the line stopped (RTS), or is lost.
        """
        taken = self._take(data) if self.ready_to_receive else 0
        while taken < len(data) and self._usart.requests_to_send:
            self._usart.receive(data[taken])
            taken += 1
        return taken

    def _take(self, data: bytes) -> int:
        size, remaining = self._ring_bytes, self._stream(self.RX, self.NDTR)
        base = self._stream(self.RX, self.M0AR)
        taken = 0
        while taken < len(data):
            position = size - remaining
            part = data[taken : taken + remaining]
            self._store(base + position, part)
            taken += len(part)
            remaining -= len(part)
            flags = self.HTIF if 2 * position < size <= 2 * (position + len(part)) else 0
            is_circular = self._stream(self.RX, self.CR) & self.CIRC
            if remaining == 0:
                flags |= self.TCIF
                if is_circular:
                    remaining = size
                else:
                    self.values[self._offset(self.RX, self.CR)] &= ~self.EN
            self.values[self._offset(self.RX, self.NDTR)] = remaining
            if flags:
                self._raise(self.RX, flags)
            if remaining == 0:
                break
        return taken
