"""What other machines may ask of a SuperLink."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import pytest

from fleet.coordinator.control import Control
from fleet.coordinator.guarded_superlink import Guard
from fleet.coordinator.settings import LinkTls
from fleet.coordinator.superlink import SuperLink
from fleet.errors import ConfigurationError, FlowerError
from fleet.security import Authority

CONTROL = "/v1/control/start-run"
FLEET = "/v1/fleet/pull-messages"


def asked(client: str, server: str, path: str) -> bool:
    """Whether a request gets through."""
    through: list[str] = []
    answers: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        through.append(scope["path"])

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    async def send(message: Any) -> None:
        answers.append(message)

    scope = {"type": "http", "path": path, "client": (client, 5), "server": (server, 9092)}
    asyncio.run(Guard(app)(scope, receive, send))
    assert through or answers[0]["status"] == 404
    return bool(through)


@pytest.mark.parametrize(
    ("client", "server"),
    [
        ("10.0.0.9", "10.0.0.5"),
        ("::ffff:10.0.0.9", "::ffff:10.0.0.5"),
        ("fd00::9", "fd00::5"),
        ("", "10.0.0.5"),
        ("somebody", "somebody"),
    ],
)
def test_others_get_at_what_supernodes_need_and_at_nothing_else(client: str, server: str) -> None:
    assert asked(client, server, FLEET)
    assert asked(client, server, "/health")
    for path in (
        *(CONTROL, "/v1/runtime/pull-messages", "/docs", "/", "//v1/fleet/x", "/v1/fleet"),
        *("/V1/fleet/x", "/health/../v1/control/start-run", ""),
    ):
        assert not asked(client, server, path), path


@pytest.mark.parametrize(
    ("client", "server"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
        ("10.0.0.5", "10.0.0.5"),
        ("fd00::5", "fd00::5"),
    ],
)
def test_this_machine_gets_at_everything(client: str, server: str) -> None:
    assert asked(client, server, CONTROL)
    assert asked(client, server, FLEET)


def own_address() -> str:
    """An address of this machine that isn't loopback; nothing is sent to find it."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("192.0.2.1", 9))
        found = str(one.getsockname()[0])
        if not found.startswith("127."):
            return found
    pytest.skip("this machine has no address but loopback")


@pytest.mark.slow
def test_with_tls_a_superlink_of_this_machine_is_driven_and_one_from_elsewhere_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    authority = Authority.create(tmp_path / "ca", "barn")
    issued = authority.issue("superlink", ("127.0.0.1",))
    tls = LinkTls(issued.certificate, issued.key, authority.certificate)
    stranger = Authority.create(tmp_path / "other", "barn")
    with SuperLink(tmp_path / "flower", host="0.0.0.0", tls=tls) as link:
        with Control(link.address, link.ca) as control:
            assert control.nodes() == ()
        with (
            Control(link.address, stranger.certificate) as control,
            pytest.raises(FlowerError, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            control.nodes()
        with Control(link.address) as control, pytest.raises(FlowerError):
            control.nodes()  # in the clear there is nobody
        trust = ssl.create_default_context(cafile=authority.certificate)
        elsewhere = HTTPSConnection(
            "127.0.0.1", link.port, context=trust, source_address=(own_address(), 0), timeout=60
        )
        for path, status in (("/health", 200), ("/v1/control/list-nodes", 404), ("/docs", 404)):
            for said in ({}, {"X-Forwarded-For": "127.0.0.1"}):
                elsewhere.request("POST" if "control" in path else "GET", path, headers=said)
                answer = elsewhere.getresponse()
                answer.read()
                assert answer.status == status, path
        elsewhere.close()


@pytest.mark.slow
def test_a_certificate_that_is_not_good_for_this_machine_is_told_with_what_to_do(
    tmp_path: Path,
) -> None:
    authority = Authority.create(tmp_path / "ca", "barn")
    issued = authority.issue("superlink", ("superlink.barn.local",))
    tls = LinkTls(issued.certificate, issued.key, authority.certificate)
    with (
        pytest.raises(FlowerError, match=r"isn't believed at 127.*--host 127\.0\.0\.1"),
        SuperLink(tmp_path / "flower", host="0.0.0.0", tls=tls),
    ):
        pass


def test_a_file_that_is_no_authority_is_told_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("nothing")
    tls = LinkTls(tmp_path / "s.crt", tmp_path / "s.key", tmp_path / "ca.crt")
    with pytest.raises(ConfigurationError, match=r"the ca\.crt that `tinyfleet ca init` made"):
        SuperLink(tmp_path / "flower", tls=tls)
    with pytest.raises(ConfigurationError, match="can't be used"):
        Control("127.0.0.1:1", tmp_path / "missing.crt")
