"""Bytes on the serial line, in the time of a clock that only the test moves on."""

from __future__ import annotations

import pytest

from simulator.clock import MILLISECOND
from simulator.devices.core_clock import NEVER, CoreClock
from simulator.devices.serial_line import SerialLine
from simulator.devices.serial_port import Dma2, Usart

BAUD = 100_000
CHARACTER = 100_000
"""Nanoseconds."""
RING, BUFFER = 64, 256
CR, NDTR, PAR, M0AR = range(4)
RECEIVE = 4 << 25 | 1 << 10 | 3 << 3 | 1
CIRCULAR = 1 << 8


class Bench:
    """USART, DMA and line of an F7; the ring lies at 0, the buffer at 256."""

    def __init__(self, *, circular: bool = True, flow_control: bool = False) -> None:
        self.memory = bytearray(512)
        self.transmitted = b""
        self.clock = CoreClock(16_000_000)
        self.usart = Usart(2, self._transmit, lambda: 16_000_000)
        self.line = SerialLine(self.clock, self.usart, self._transmit)
        self.dma = Dma2(
            self.usart, self._load, self._store, self.line.send_to_modem, self.line.stop_sending
        )
        self.line.dma = self.dma
        self.dma.bring_up_to_date = self.usart.bring_up_to_date = self.line.bring_up_to_date
        registers = self.usart.registers
        self.usart.write(registers["BRR"], 16_000_000 // BAUD)
        self.usart.write(registers["CR3"], 3 << 6 | (3 << 8 if flow_control else 0))
        self.usart.write(registers["CR1"], 1 << 4 | 0xD)
        self.stream(2, PAR, self.usart.data_address)
        self.receive_into(0, RING, circular=circular)

    def stream(self, number: int, register: int, value: int) -> None:
        self.dma.write(self.dma._offset(number, register), value)

    def receive_into(self, place: int, size: int, *, circular: bool = False) -> None:
        self.stream(2, M0AR, place)
        self.stream(2, NDTR, size)
        self.stream(2, CR, RECEIVE | (CIRCULAR if circular else 0))

    def position(self) -> int:
        return RING - self.dma.read(self.dma._offset(2, NDTR))

    def flags(self) -> int:
        return self.dma.read(Dma2.LISR) >> 16 & 0x3F

    def is_idle(self) -> bool:
        return bool(self.usart.read(self.usart.registers["ISR"]) & Usart.IDLE)

    def characters(self, count: float) -> None:
        self.clock.pass_time(int(count * CHARACTER))

    def _load(self, place: int, size: int) -> bytes:
        return bytes(self.memory[place : place + size])

    def _store(self, place: int, data: bytes) -> None:
        self.memory[place : place + len(data)] = data

    def _transmit(self, data: bytes) -> None:
        self.transmitted += data


def test_bytes_come_one_after_the_other() -> None:
    bench = Bench()
    bench.line.send_to_board(b"abcdef")
    bench.characters(0.9)
    assert bench.position() == 0
    bench.characters(0.1)
    assert bench.position() == 1
    bench.characters(2.5)
    assert bench.position() == 3
    assert bench.line.bytes_under_way == 3
    bench.line.send_to_board(b"gh")
    bench.characters(10)
    assert bench.position() == 8
    assert bytes(bench.memory[:8]) == b"abcdefgh"


def test_flags_rise_at_the_half_and_the_end_of_the_ring() -> None:
    bench = Bench()
    bench.line.send_to_board(bytes(RING))
    bench.characters(RING / 2 - 1)
    assert bench.flags() == 0
    bench.characters(1)
    assert bench.flags() == Dma2.HTIF
    bench.characters(RING / 2)
    assert bench.flags() == Dma2.HTIF | Dma2.TCIF
    bench.dma.write(Dma2.LIFCR, 0x3D << 16)
    assert bench.flags() == 0
    assert bench.position() == 0


def test_a_ring_that_nobody_reads_is_written_over() -> None:
    bench = Bench()
    bench.line.send_to_board(bytes(range(RING + 10)))
    bench.characters(RING + 10)
    assert bench.position() == 10
    assert bytes(bench.memory[:10]) == bytes(range(RING, RING + 10))


def test_the_line_is_idle_only_once_it_has_paused() -> None:
    bench = Bench()
    for _ in range(30):
        bench.line.send_to_board(bytes(100))
        bench.characters(99)
    assert not bench.is_idle()
    bench.characters(30)
    assert bench.line.bytes_under_way == 0
    assert not bench.is_idle()
    bench.characters(1)
    assert bench.is_idle()
    bench.usart.write(bench.usart.registers["ICR"], Usart.IDLE)
    bench.characters(1000)
    assert not bench.is_idle(), "once for each pause"


def test_it_is_known_until_when_what_comes() -> None:
    bench = Bench()
    assert (bench.line.horizon, bench.line.next_event) == (0, NEVER)
    bench.line.send_to_board(bytes(50))
    assert bench.line.horizon == 50 * CHARACTER
    assert bench.line.next_event == 32 * CHARACTER, "half of the ring"
    bench.characters(32)
    bench.line.bring_up_to_date()
    assert bench.line.next_event == 50 * CHARACTER, "nothing rises, but then nothing is known"
    bench.characters(18)
    bench.line.bring_up_to_date()
    assert bench.line.horizon == 0
    assert bench.line.next_event == 51 * CHARACTER, "idle"


def test_bytes_without_a_receiver_are_lost() -> None:
    bench = Bench()
    bench.usart.write(bench.usart.registers["CR1"], 0)
    bench.line.send_to_board(b"lost")
    bench.characters(10)
    bench.line.bring_up_to_date()
    bench.usart.write(bench.usart.registers["CR1"], 1 << 4 | 0xD)
    assert bench.position() == 0
    assert bench.line.bytes_under_way == 0


def test_without_dma_one_byte_waits_and_the_next_is_an_overrun() -> None:
    bench = Bench(circular=False)
    bench.receive_into(0, 2)
    bench.stream(2, CR, 0)
    bench.line.send_to_board(b"abc")
    bench.characters(10)
    status = bench.usart.read(bench.usart.registers["ISR"])
    assert status & Usart.RXNE
    assert status & Usart.ORE
    assert bench.usart.read(bench.usart.registers["RDR"]) == ord("a")


def test_flow_control_stops_the_line_at_the_end_of_the_transfer() -> None:
    bench = Bench(circular=False, flow_control=True)
    sent = bytes(range(100))
    bench.line.send_to_board(sent)
    bench.characters(1000)
    assert bench.flags() & Dma2.TCIF
    assert bench.line.bytes_under_way == 100 - RING - 1, "one byte waits in the receiver"
    assert bench.is_idle(), "a line that stands still pauses, too"
    bench.dma.write(Dma2.LIFCR, 0x3D << 16)
    bench.receive_into(100, RING)
    assert bench.memory[100] == RING
    bench.characters(10)
    bench.line.bring_up_to_date()
    assert bytes(bench.memory[100:111]) == sent[RING : RING + 11]
    bench.characters(100)
    bench.line.bring_up_to_date()
    assert bytes(bench.memory[100:136]) == sent[RING:]


def send(bench: Bench, data: bytes) -> None:
    bench.memory[BUFFER : BUFFER + len(data)] = data
    bench.stream(7, M0AR, BUFFER)
    bench.stream(7, NDTR, len(data))
    bench.stream(7, CR, 4 << 25 | 1 << 10 | 1 << 6 | 1 << 4 | 1)


def is_sending(bench: Bench) -> bool:
    return bool(bench.dma.read(bench.dma._offset(7, CR)) & 1)


def test_a_buffer_takes_the_time_of_the_line() -> None:
    bench = Bench()
    send(bench, b"hello")
    bench.characters(4.9)
    assert is_sending(bench)
    assert bench.transmitted == b""
    bench.characters(0.1)
    assert not is_sending(bench)
    assert bench.transmitted == b"hello"
    assert bench.dma.read(Dma2.HISR) >> 22 & Dma2.TCIF


def test_a_stream_that_is_stopped_has_sent_what_has_left() -> None:
    bench = Bench()
    send(bench, b"hello")
    bench.characters(3.5)
    bench.stream(7, CR, 0)
    assert bench.transmitted == b"hel"
    bench.characters(10)
    assert not is_sending(bench)
    assert bench.transmitted == b"hel"


@pytest.mark.parametrize("milliseconds", [1, 7, 100])
def test_looks_do_not_change_when_bytes_come(milliseconds: int) -> None:
    bench = Bench()
    bench.line.send_to_board(bytes(range(64)) * 40)
    for _ in range(100 // milliseconds):
        bench.clock.pass_time(milliseconds * MILLISECOND)
        bench.line.bring_up_to_date()
    spent = 100 // milliseconds * milliseconds
    assert bench.line.bytes_received == spent * MILLISECOND // CHARACTER
