import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fleet.ports import free_port
from simulator.devices.modem import BUFFER_BYTES, Modem, ModemState
from simulator.machines.protocol import StopReason
from simulator.machines.unicorn import UnicornMachine
from tests.patience import PATIENCE_SECONDS

from ..conftest import WorldClock


class Server:
    """A TCP peer under the test's control."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.streams: list[socket.socket] = []

    def accept(self) -> socket.socket:
        self.listener.settimeout(PATIENCE_SECONDS)
        stream, _ = self.listener.accept()
        stream.settimeout(PATIENCE_SECONDS)
        self.streams.append(stream)
        return stream

    def close(self) -> None:
        for stream in (*self.streams, self.listener):
            stream.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def turn(machine: UnicornMachine, modem: Modem) -> None:
    """One slice, and what the worker does between slices."""
    assert isinstance(machine.world_clock, WorldClock)
    machine.world_clock.now += 1
    assert machine.run(50) in (StopReason.IDLE, StopReason.SLICE_OVER)
    readable = writable = False
    if modem.socket is not None:
        reading, writing, _ = select.select([modem.socket], [modem.socket], [], 0)
        readable, writable = bool(reading), bool(writing)
    modem.step(readable=readable, writable=writable)


def run_until(machine: UnicornMachine, modem: Modem, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"still {modem.state}: {modem.last_error}"
        turn(machine, modem)


def command(machine: UnicornMachine, value: int) -> None:
    machine.write_sram(machine.image.address_of("command"), value.to_bytes(4, "little"))
    machine.call("poke", 0xE000E014, 1999)  # SysTick wakes it up in a millisecond
    machine.call("poke", 0xE000E010, 3)


def test_dtr_dials_and_dcd_says_that_the_stream_is_open(
    machine: UnicornMachine, server: Server
) -> None:
    modem = Modem(machine, server.address)
    assert modem.state is ModemState.ON_HOOK
    assert not modem.step()
    run_until(machine, modem, lambda: modem.state is ModemState.CONNECTED)
    assert machine.gpio.carrier
    server.accept()


def test_bytes_pass_both_ways_through_ring_and_socket(
    machine: UnicornMachine, server: Server
) -> None:
    modem = Modem(machine, server.address)
    run_until(machine, modem, lambda: modem.state is ModemState.CONNECTED)
    stream = server.accept()
    for size in (1, 40, 63, 17):  # the test image's ring holds 64
        sent = bytes(range(100, 100 + size))
        stream.sendall(sent)
        echoed = bytearray()

        def complete(echoed: bytearray = echoed, size: int = size) -> bool:
            if select.select([stream], [], [], 0)[0]:
                echoed += stream.recv(4096)
            return len(echoed) >= size

        run_until(machine, modem, complete)
        assert bytes(echoed) == bytes(byte ^ 0xFF for byte in sent)


def test_the_modem_sends_at_line_speed_whatever_the_firmware_does(
    machine: UnicornMachine, server: Server
) -> None:
    modem = Modem(machine, server.address)
    run_until(machine, modem, lambda: modem.state is ModemState.CONNECTED)
    machine.call("poke", 0xE000E184, 0xFFFFFFFF)  # no interrupt wakes the firmware any more
    server.accept().sendall(bytes(20_000))
    received = machine.traffic.down
    end = time.monotonic() + PATIENCE_SECONDS
    while machine.bytes_under_way < BUFFER_BYTES:
        assert time.monotonic() < end
        modem.step(readable=True)
    assert machine.traffic.down == received, "no time has passed"
    assert not modem.wants_read
    machine.clock.pass_time(100_000_000)
    assert machine.bytes_under_way == BUFFER_BYTES - 1151, "115,108 baud: 1,151 bytes in 100 ms"
    assert modem.wants_read
    modem.step(readable=True)
    machine.clock.pass_time(100_000_000)
    modem.step(readable=True)
    assert machine.traffic.down == received + 2302


def test_what_the_broker_sent_before_it_hung_up_arrives_before_the_carrier_goes(
    machine: UnicornMachine, server: Server
) -> None:
    modem = Modem(machine, server.address)
    run_until(machine, modem, lambda: modem.state is ModemState.CONNECTED)
    stream = server.accept()
    stream.sendall(b"farewell")
    stream.close()
    end = time.monotonic() + 5
    while machine.bytes_under_way < 8:
        assert time.monotonic() < end
        modem.step(readable=True)
    modem.step(readable=True)
    assert machine.gpio.carrier
    run_until(machine, modem, lambda: modem.state is ModemState.LOST)
    assert machine.traffic.down == 8
    assert not machine.gpio.carrier


def test_dropping_dtr_hangs_up_and_sends_the_last_words(
    machine: UnicornMachine, server: Server
) -> None:
    modem = Modem(machine, server.address)
    run_until(machine, modem, lambda: modem.state is ModemState.CONNECTED)
    stream = server.accept()
    machine.receive(b"last")
    turn(machine, modem)
    command(machine, 1)
    run_until(machine, modem, lambda: modem.state is ModemState.ON_HOOK)
    assert not machine.gpio.carrier
    received = b""
    while part := stream.recv(100):
        received += part
    assert received == bytes(byte ^ 0xFF for byte in b"last")


def test_a_lost_stream_drops_dcd_and_is_not_dialled_again_by_itself(
    machine: UnicornMachine, server: Server
) -> None:
    modem = Modem(machine, server.address, redial_milliseconds=0)
    run_until(machine, modem, lambda: modem.state is ModemState.CONNECTED)
    server.accept().close()
    run_until(machine, modem, lambda: modem.state is ModemState.LOST)
    assert not machine.gpio.carrier
    for _ in range(5):
        turn(machine, modem)
    assert modem.dials == 1
    command(machine, 1)
    run_until(machine, modem, lambda: modem.state is ModemState.ON_HOOK)
    machine.power_on()
    run_until(machine, modem, lambda: modem.state is ModemState.CONNECTED)
    assert modem.dials == 2


def test_dtr_that_fell_and_rose_between_two_looks_hangs_up_and_dials_again(
    machine: UnicornMachine, server: Server
) -> None:
    modem = Modem(machine, server.address)
    run_until(machine, modem, lambda: modem.state is ModemState.CONNECTED)
    server.accept().close()
    run_until(machine, modem, lambda: modem.state is ModemState.LOST)
    dtr = 1 << machine.board.defines.get("TF_BOARD_DTR_PIN", 0)
    machine.call("poke", 0x40020418, dtr << 16)
    machine.call("poke", 0x40020418, dtr)
    assert machine.data_terminal_ready
    run_until(machine, modem, lambda: modem.state is ModemState.CONNECTED)
    assert modem.dials == 2


def test_a_dial_that_fails_is_repeated_until_the_broker_is_there(machine: UnicornMachine) -> None:
    address = ("127.0.0.1", free_port())
    modem = Modem(machine, address, redial_milliseconds=20)
    run_until(machine, modem, lambda: modem.dials >= 3)
    assert "refused" in modem.last_error
    listener = socket.create_server(address)
    accepted = threading.Thread(target=listener.accept)
    accepted.start()
    run_until(machine, modem, lambda: modem.state is ModemState.CONNECTED)
    accepted.join()
    listener.close()
    modem.close()
