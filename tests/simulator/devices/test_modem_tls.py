"""A modem that ends TLS for its board: at a real broker, and at a server of the test's own."""

from __future__ import annotations

import selectors
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet.gateway.broker import find_mosquitto
from fleet.ports import free_port
from fleet.security import Authority
from simulator.devices.modem import BUFFER_BYTES, Modem, ModemState
from tests.patience import PATIENCE_SECONDS, wait_until

CONNECT = bytes.fromhex("10 10 0004 4d515454 05 02 003c 00 0003 636f77".replace(" ", ""))
"""MQTT 5: clean start, keep alive 60 s, client cow."""
CONNACK = 0x20


class Board:
    """A serial line without a machine: what the modem brings is taken when the test says so."""

    def __init__(self) -> None:
        self.data_terminal_ready = True
        self.hang_ups = 0
        self.carrier = False
        self.line = b""
        self.transmitted = b""

    @property
    def bytes_under_way(self) -> int:
        return len(self.line)

    def set_data_carrier_detect(self, connected: bool) -> None:
        self.carrier = connected

    def take_transmitted(self) -> bytes:
        taken, self.transmitted = self.transmitted, b""
        return taken

    def receive(self, data: bytes) -> int:
        self.line += data
        return len(data)

    def take(self) -> bytes:
        taken, self.line = self.line, b""
        return taken


class Owner:
    """Turns a modem as a worker does: waits on its socket for what it wants."""

    def __init__(self, host: str, port: int, authority: Authority | None) -> None:
        self.board = Board()
        tls = ssl.create_default_context(cafile=authority.certificate) if authority else None
        self.modem = Modem(self.board, (host, port), tls=tls, redial_milliseconds=20)

    def until(self, condition: Callable[[], bool]) -> None:
        def turned() -> bool:
            readable, writable = self.wait()
            self.modem.step(readable=readable, writable=writable)
            return condition()

        self.modem.step()
        if not condition():
            wait_until(turned, lambda: f"{self.modem.state}: {self.modem.last_error}", 0.0)

    def wait(self) -> tuple[bool, bool]:
        modem = self.modem
        wanted = modem.wants_read * selectors.EVENT_READ + modem.wants_write * selectors.EVENT_WRITE
        if modem.socket is None or not wanted:
            time.sleep(0.001)
            return False, False
        with selectors.DefaultSelector() as selector:
            selector.register(modem.socket, wanted)
            events = selector.select(0.01)
        mask = events[0][1] if events else 0
        return bool(mask & selectors.EVENT_READ), bool(mask & selectors.EVENT_WRITE)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority.create(tmp_path / "ca", "barn")
    authority.issue("broker", ["localhost"])
    return authority


@pytest.fixture
def broker_port(authority: Authority, tmp_path: Path) -> Iterator[int]:
    port, config = free_port(), tmp_path / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n"
        f"certfile {authority.folder}/broker.crt\nkeyfile {authority.folder}/broker.key\n"
    )
    with subprocess.Popen([find_mosquitto(), "-c", str(config)]) as process:
        yield port
        process.terminate()


def test_a_broker_with_a_certificate_of_the_fleets_is_talked_to(
    authority: Authority, broker_port: int
) -> None:
    owner = Owner("localhost", broker_port, authority)
    owner.until(lambda: owner.board.carrier)
    owner.board.transmitted = CONNECT
    owner.until(lambda: bool(owner.board.line))
    assert owner.board.line[0] == CONNACK
    owner.modem.close()


@pytest.mark.parametrize(
    ("host", "believed", "why"),
    [("127.0.0.1", True, "IP address mismatch"), ("localhost", False, "CERTIFICATE_VERIFY_FAILED")],
)
def test_a_broker_that_cannot_prove_who_it_is_is_told_nothing(
    authority: Authority, broker_port: int, host: str, believed: bool, why: str, tmp_path: Path
) -> None:
    believes = authority if believed else Authority.create(tmp_path / "other", "stable")
    owner = Owner(host, broker_port, believes)
    owner.board.transmitted = CONNECT
    owner.until(lambda: why in owner.modem.last_error and owner.modem.dials > 2)
    assert not owner.board.carrier
    owner.modem.close()


def test_a_modem_without_tls_gets_nothing_from_a_broker_with_it(broker_port: int) -> None:
    owner = Owner("localhost", broker_port, None)
    owner.until(lambda: owner.board.carrier)
    owner.board.transmitted = CONNECT
    owner.until(lambda: owner.modem.state is ModemState.LOST)
    assert not owner.board.line


class Server:
    """A TLS server that the test tells what to do with the first stream."""

    def __init__(self, authority: Authority, serve: Callable[[ssl.SSLSocket], None]) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority.folder / "broker.crt", authority.folder / "broker.key")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

        def run() -> None:
            plain, _ = self._listener.accept()
            plain.settimeout(PATIENCE_SECONDS)
            with context.wrap_socket(plain, server_side=True) as stream:
                serve(stream)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        self._listener.close()


def test_bytes_of_large_records_pass_both_ways_and_no_more_than_fit_at_once(
    authority: Authority,
) -> None:
    down, up = bytes(range(251)) * 300, bytes(range(241)) * 20_000
    received = bytearray()

    def serve(stream: ssl.SSLSocket) -> None:
        stream.sendall(down)  # records of 16 KiB: four times what the modem has room for
        while len(received) < len(up):
            received.extend(stream.recv(1 << 16))
        stream.sendall(b"!")
        while stream.recv(100):
            pass

    server = Server(authority, serve)
    owner = Owner("localhost", server.port, authority)
    owner.until(lambda: owner.board.carrier)
    owner.board.transmitted = up
    taken = bytearray()

    def everything() -> bool:
        assert owner.board.bytes_under_way <= BUFFER_BYTES
        taken.extend(owner.board.take())
        return len(taken) > len(down)

    owner.until(everything)
    assert taken == down + b"!"
    assert received == up
    owner.board.data_terminal_ready = False
    owner.until(lambda: owner.modem.state is ModemState.ON_HOOK)
    server.close()


def test_what_is_left_of_a_record_comes_without_a_sign_of_the_socket(authority: Authority) -> None:
    gone_on = threading.Event()

    def serve(stream: ssl.SSLSocket) -> None:
        stream.sendall(bytes(BUFFER_BYTES + 100))
        gone_on.wait(PATIENCE_SECONDS)

    server = Server(authority, serve)
    owner = Owner("localhost", server.port, authority)
    owner.until(lambda: owner.board.bytes_under_way == BUFFER_BYTES)
    owner.board.line = owner.board.line[:1000]
    owner.modem.step()
    assert owner.board.bytes_under_way == 1100
    gone_on.set()
    server.close()
    owner.modem.close()


def test_a_server_that_ends_the_stream_is_a_stream_lost(authority: Authority) -> None:
    server = Server(authority, lambda stream: stream.sendall(b"farewell"))
    owner = Owner("localhost", server.port, authority)
    owner.until(lambda: owner.board.bytes_under_way == 8)
    assert owner.board.carrier
    owner.board.take()
    owner.until(lambda: owner.modem.state is ModemState.LOST)
    assert owner.modem.last_error == "stream lost: closed by the other side"
    server.close()


def test_last_words_before_dtr_fell_reach_the_server_and_none_go_out_in_the_clear(
    authority: Authority,
) -> None:
    heard = bytearray()

    def serve(stream: ssl.SSLSocket) -> None:
        while part := stream.recv(100):
            heard.extend(part)

    server = Server(authority, serve)
    owner = Owner("localhost", server.port, authority)
    owner.until(lambda: owner.board.carrier)
    owner.board.transmitted = b"last"
    owner.board.data_terminal_ready = False
    owner.until(lambda: owner.modem.state is ModemState.ON_HOOK)
    server.close()
    assert heard == b"last"

    with socket.create_server(("127.0.0.1", 0)) as listener:
        owner = Owner("localhost", listener.getsockname()[1], authority)
        owner.modem.step()
        stream, _ = listener.accept()
        owner.board.transmitted = b"secret"
        owner.board.data_terminal_ready = False
        owner.modem.step()
        stream.settimeout(PATIENCE_SECONDS)
        assert stream.recv(100) == b""
        stream.close()


def test_a_host_that_no_certificate_could_name_fails_the_dial(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        owner = Owner("a..b", listener.getsockname()[1], authority)
        owner.until(lambda: owner.modem.dials > 2)
    assert owner.modem.last_error.startswith("dialling ")
