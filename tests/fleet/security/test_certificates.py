"""A fleet's own certificates, as other programs see them."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.clock import VirtualClock
from fleet.errors import CertificateError
from fleet.gateway.broker import find_mosquitto
from fleet.gateway.config import BrokerSettings
from fleet.gateway.mqtt5_link import Mqtt5Link
from fleet.ports import free_port
from fleet.security import Authority
from tests.patience import PATIENCE_SECONDS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", "barn")


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> str:
    """Why a connection can't be made; empty where it can."""
    left, right = socket.socketpair()
    failures: list[str] = []

    def serve() -> None:
        try:
            with server.wrap_socket(left, server_side=True) as stream:
                stream.recv(1)
        except OSError as error:
            failures.append(f"server: {error}")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(right, server_hostname=host) as stream:
            stream.send(b"x")
    except OSError as error:
        failures.insert(0, str(error))
        right.close()
    thread.join(PATIENCE_SECONDS)
    return "; ".join(failures)


def server_of(authority: Authority, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.folder / f"{name}.crt", authority.folder / f"{name}.key")
    return context


def client_of(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.certificate)


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("broker.local", ""),
        ("127.0.0.1", ""),
        ("::1", ""),
        ("other.local", "Hostname mismatch"),
        ("10.0.0.1", "mismatch"),
    ],
)
def test_a_server_is_who_its_certificate_says_and_nobody_else(
    authority: Authority, host: str, why: str
) -> None:
    authority.issue("broker", ["broker.local", "127.0.0.1", "::1"])
    said = handshake(server_of(authority, "broker"), client_of(authority), host)
    assert why in said if why else not said


def test_another_fleets_server_and_a_client_as_server_are_not_believed(
    authority: Authority, tmp_path: Path
) -> None:
    other = Authority.create(tmp_path / "other", "stable")
    other.issue("broker", ["broker.local"])
    assert "local issuer" in handshake(
        server_of(other, "broker"), client_of(authority), "broker.local"
    )
    authority.issue("gateway")
    assert handshake(server_of(authority, "gateway"), client_of(authority), "gateway")


def test_openssl_finds_nothing_wrong(authority: Authority) -> None:
    issued = authority.issue("broker", ["broker.local"])
    for purpose in ("sslserver", "sslclient"):
        done = subprocess.run(
            ["openssl", "verify", "-x509_strict", "-purpose", purpose,
             "-CAfile", authority.certificate, issued.certificate],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_keys_are_for_their_owner_only_also_where_a_file_was_there(authority: Authority) -> None:
    (authority.folder / "gw.key").write_text("old")
    (authority.folder / "gw.key").chmod(0o644)
    issued = authority.issue("gw")
    for key in (issued.key, authority.folder / "ca.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_what_was_issued_is_listed_and_replaced_by_name(authority: Authority) -> None:
    first = authority.issue("gw")
    authority.issue("broker", ["localhost"])
    second = authority.issue("gw")
    assert [one.name for one in authority.issued()] == ["broker", "gw"]
    assert authority.issued()[1] == second != first


def test_no_certificate_outlives_the_authority(tmp_path: Path) -> None:
    clock = VirtualClock()
    authority = Authority.create(tmp_path, "barn", clock)
    now = datetime.datetime.fromtimestamp(clock.wall(), datetime.UTC)
    assert authority.issue("gw").expires == now + datetime.timedelta(days=397)
    clock.step_wall(9.9 * 365 * 86400)
    assert Authority(tmp_path, clock).issue("gw").expires == authority.expires


def test_an_authority_is_never_made_anew_over_another(authority: Authority) -> None:
    before = authority.certificate.read_bytes()
    with pytest.raises(CertificateError, match="has a certificate authority already"):
        Authority.create(authority.folder, "barn")
    assert authority.certificate.read_bytes() == before


def test_a_folder_that_is_no_authority_says_how_to_make_one(
    authority: Authority, tmp_path: Path
) -> None:
    with pytest.raises(CertificateError, match="tinyfleet ca init"):
        Authority(tmp_path / "nothing")
    (authority.folder / "ca.crt").write_text("nonsense")
    with pytest.raises(CertificateError, match="tinyfleet ca init"):
        Authority(authority.folder)
    other = Authority.create(tmp_path / "other", "barn")
    (authority.folder / "ca.crt").write_bytes(other.certificate.read_bytes())
    with pytest.raises(CertificateError, match="isn't the key"):
        Authority(authority.folder)


@pytest.mark.parametrize("host", ["", "a b", "-a.local", "a..b", "x" * 64, "ä.local", "*.local"])
def test_a_host_that_is_none_is_refused(authority: Authority, host: str) -> None:
    with pytest.raises(CertificateError, match="neither a host's name nor an address"):
        authority.issue("broker", [host])
    assert authority.issued() == ()


class Listening:
    """A gateway that only notes whether it was let in."""

    def __init__(self) -> None:
        self.connected = threading.Event()
        self.failed: list[object] = []

    def on_connected(self) -> None:
        self.connected.set()

    def on_message(self, *message: object) -> None: ...

    def on_failed(self, error: object) -> None:
        self.failed.append(error)


@pytest.fixture
def broker_port(authority: Authority, tmp_path: Path) -> Iterator[int]:
    authority.issue("broker", ["127.0.0.1"])
    port, config = free_port(), tmp_path / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n"
        f"certfile {authority.folder}/broker.crt\nkeyfile {authority.folder}/broker.key\n"
    )
    with subprocess.Popen([find_mosquitto(), "-c", str(config)]) as process:
        yield port
        process.terminate()


@pytest.mark.parametrize("believed", [True, False])
def test_a_gateway_talks_to_a_broker_that_it_can_believe_only(
    authority: Authority, broker_port: int, believed: bool, tmp_path: Path
) -> None:
    ca = authority if believed else Authority.create(tmp_path / "other", "barn")
    password = tmp_path / "password"
    password.write_text("moo\n")
    settings = BrokerSettings(
        port=broker_port, user="gw", password_file=password, ca_file=ca.certificate
    )
    listening = Listening()
    link = Mqtt5Link(settings, listening)  # type: ignore[arg-type]
    link.start()
    try:
        if believed:
            assert listening.connected.wait(PATIENCE_SECONDS)
        else:
            assert asyncio.run(refused(broker_port, ca.certificate))
            assert not listening.connected.is_set()
    finally:
        link.stop()
    assert not listening.failed


async def refused(port: int, ca: Path) -> bool:
    """Whether a client that believes ``ca`` turns away from the server at ``port``."""
    for _ in range(100):
        try:
            await asyncio.open_connection(
                "127.0.0.1", port, ssl=ssl.create_default_context(cafile=ca)
            )
        except ssl.SSLCertVerificationError:
            return True
        except OSError:
            await asyncio.sleep(0.1)
    return False
