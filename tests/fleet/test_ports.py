from __future__ import annotations

import socket
from pathlib import Path

import pytest

from fleet import ports


def test_ports_are_none_that_outgoing_connections_get() -> None:
    lowest, highest = ports._outgoing()
    found = [ports.free_port() for _ in range(200)]
    assert not any(lowest <= port <= highest for port in found)
    assert len(set(found)) > 150, "two services that ask at the same time get two"


def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        port = ports.free_port()
        taken.bind(("127.0.0.1", port))
        monkeypatch.setattr(ports, "_LOWEST", port)
        monkeypatch.setattr(ports, "_HIGHEST", port)
        assert ports.free_port() != port


@pytest.mark.parametrize("text", [None, "", "1024 65535", "32768\t60999\n"])
def test_there_is_a_port_whatever_the_kernel_says(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "range"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(ports, "_OUTGOING", file)
    with socket.socket() as service:
        service.bind(("127.0.0.1", ports.free_port()))
