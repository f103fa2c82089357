"""Bringing a broker to read its files again: the right process, and until it has."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.clock import VirtualClock
from fleet.errors import BrokerError
from fleet.gateway.broker import (
    PASSWORD_FILE,
    PID_FILE,
    Broker,
    BrokerConfig,
    find_mosquitto,
    password_lines,
    write_broker_config,
)
from fleet.gateway.broker_reload import Login, reload_broker
from fleet.ports import free_port
from tests.patience import wait_until


class Site:
    """A broker's folder; ``sign`` gives a user whom only a broker lets in that reads it now."""

    def __init__(self, folder: Path, devices: int = 0) -> None:
        self.folder = folder
        self.devices = {f"cow-{number}": "moo" for number in range(devices)}
        self.config = BrokerConfig("barn", {}, self.devices, port=free_port())
        self.path = write_broker_config(folder, self.config)
        self.pid_file = folder / PID_FILE
        self.signs = 0

    def sign(self) -> Login:
        self.signs += 1
        password = f"sign {self.signs}"
        (self.folder / PASSWORD_FILE).write_text(
            password_lines({**self.devices, "a.sign": password})
        )
        return Login(self.config.host, self.config.port, "a.sign", password)

    def popen(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([find_mosquitto(), "-c", str(self.path)], stderr=subprocess.DEVNULL)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def broker(tmp_path: Path, site: Site) -> Iterator[Broker]:
    with Broker(tmp_path, site.config) as running:
        yield running


def test_without_a_broker_nobody_is_told(site: Site) -> None:
    assert not reload_broker(site.pid_file, site.sign())
    with subprocess.Popen(["sleep", "1000"]) as other:
        # Left behind by a broker that was killed; the number is another's now.
        for text in (f"{other.pid}", "", "0", "-1", "x", "٣", f"{2**31}"):
            site.pid_file.write_text(text)
            assert not reload_broker(site.pid_file, site.sign()), text
        assert other.poll() is None
        other.kill()


def test_a_broker_that_has_ended_and_that_nobody_has_looked_after_is_none(site: Site) -> None:
    with site.popen() as running:
        wait_until(lambda: reload_broker(site.pid_file, site.sign()))
        running.kill()
        os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
        assert not reload_broker(site.pid_file, site.sign())


def test_when_it_returns_the_broker_has_read_its_files(site: Site, broker: Broker) -> None:
    for _ in range(5):
        before, after = site.sign(), site.sign()
        assert reload_broker(site.pid_file, after)
        assert after.is_let_in(60)
        assert not before.is_let_in(60)


def test_a_broker_that_is_just_starting_is_not_ended_and_has_read_them_too(tmp_path: Path) -> None:
    # SIGHUP between its pid file and its signal handlers would end it; reading passwords lies
    # in between.
    site = Site(tmp_path, devices=2000)
    sign = site.sign()
    for _ in range(5):
        site.pid_file.unlink(missing_ok=True)
        with site.popen() as running:
            while not reload_broker(site.pid_file, sign):
                assert running.poll() is None
            assert sign.is_let_in(60)
            running.terminate()
            assert running.wait() == 0, "SIGHUP didn't end it"


def test_a_broker_of_another_user_is_named(
    site: Site, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("fleet.gateway.broker_reload.os.kill", refused)
    with pytest.raises(BrokerError, match=f"process {broker.pid}.*as one user"):
        reload_broker(site.pid_file, site.sign())


def test_a_broker_to_which_no_pid_file_leads_is_not_taken_for_none(
    site: Site, broker: Broker
) -> None:
    site.pid_file.unlink()
    with pytest.raises(BrokerError, match=f":{site.config.port} hasn't read.*doesn't lead to it"):
        reload_broker(site.pid_file, site.sign(), VirtualClock())


def test_a_broker_that_does_not_read_its_files_is_named(
    site: Site, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.gateway.broker_reload.os.kill", lambda *_: None)
    with pytest.raises(BrokerError, match=f"process {broker.pid}.*its log says why"):
        reload_broker(site.pid_file, site.sign(), VirtualClock())


@pytest.mark.parametrize("answer", [b"", b"\x20", b"\x20\x02\x00", b"HTTP/1.1 400"])
def test_a_login_at_what_is_no_broker_is_no_answer(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()

        def serve() -> None:
            with server.accept()[0] as connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert Login(host, port, "a", "b").is_let_in(60) is None
        thread.join()
