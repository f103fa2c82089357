"""The unix socket under hostile and unlucky clients, and gateways that share a broker."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from fleet.errors import ConfigurationError, GatewayError
from fleet.gateway.client import GatewayClient
from fleet.gateway.config import GatewaySettings
from fleet.gateway.server import SocketServer
from tests.conftest import examples
from tests.fleet.gateway.site import FakeDevice, Site
from tests.patience import PATIENCE_SECONDS

MakeSite = Callable[[list[str]], Site]


def answer(operation: str, request: dict[str, Any]) -> dict[str, Any]:
    match operation:
        case "echo":
            return request
        case "refuse":
            raise GatewayError("no: try another way")
    raise RuntimeError("a defect")


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SocketServer]:
    made = SocketServer(tmp_path_factory.mktemp("s") / "s", answer)
    made.start()
    yield made
    made.stop()


def talk(server: SocketServer, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_SECONDS)
        connection.connect(str(server.path))
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        parts = []
        # A server that closes with bytes unread resets the connection.
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts)


def test_a_large_request_comes_back_whole(server: SocketServer) -> None:
    data = bytes(range(256)) * 8192
    assert GatewayClient(server.path).request("echo", {"data": data}) == {"data": data}


def test_many_clients_at_once_get_their_own_answers(server: SocketServer) -> None:
    wrong: list[int] = []

    def ask(number: int) -> None:
        if GatewayClient(server.path).request("echo", {"n": number}) != {"n": number}:
            wrong.append(number)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_refusal_reaches_the_client_as_an_error_with_its_text(server: SocketServer) -> None:
    with pytest.raises(GatewayError, match="no: try another way"):
        GatewayClient(server.path).request("refuse")


def test_a_defect_is_answered_and_the_server_lives_on(server: SocketServer) -> None:
    with pytest.raises(GatewayError, match="has a defect"):
        GatewayClient(server.path).request("break")
    assert GatewayClient(server.path).request("echo", {"n": 1}) == {"n": 1}


@given(st.binary(max_size=80))
@examples(60, HealthCheck.function_scoped_fixture)
def test_no_bytes_whatever_stop_the_server(server: SocketServer, data: bytes) -> None:
    talk(server, data)
    framed = talk(server, struct.pack(">I", len(data)) + data)
    reply = cbor2.loads(framed[4:])
    assert reply["ok"] is False
    assert GatewayClient(server.path).request("echo", {"n": 1}) == {"n": 1}


def test_a_frame_that_claims_to_be_huge_is_refused_unread(server: SocketServer) -> None:
    reply = cbor2.loads(talk(server, b"\xff\xff\xff\xff")[4:])
    assert "over the limit" in reply["error"]


def test_only_the_owner_may_use_the_socket(server: SocketServer) -> None:
    assert server.path.stat().st_mode & 0o077 == 0


def test_a_socket_that_is_in_use_is_not_taken_and_a_left_over_one_is(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(ConfigurationError, match="another gateway listens there"):
            SocketServer(path, answer)
    made = SocketServer(path, answer)  # nobody listens any more: left behind by a kill
    made.start()
    made.stop()
    path.write_text("something of the user's")
    with pytest.raises(ConfigurationError, match="isn't a socket"):
        SocketServer(path, answer)
    assert path.read_text() == "something of the user's"


def test_a_gateway_serves_only_the_devices_that_are_its_own(make_site: MakeSite) -> None:
    site = make_site(["cow-1", "pig-1"])
    site.stop_gateway()
    site.settings = GatewaySettings(**{**site.settings.model_dump(), "device_prefix": "cow-"})
    site.start_gateway()
    pig = FakeDevice("pig-1", site.config.port, site.passwords["pig-1"])
    site.devices["pig-1"] = pig
    site.until(lambda: pig.acknowledged(2), "the broker has what pig-1 says of itself")
    site.add("cow-1")  # whose word comes after that
    assert [device["device"] for device in site.client.hello()["devices"]] == ["cow-1"]
    assert site.start(names=["pig-1"]) == {"state": "closed", "devices": {"pig-1": "unknown"}}
