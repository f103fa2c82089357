"""Telling a broker to read its files again: the right process, when it listens to that."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fleet.errors import BrokerError
from fleet.gateway.broker import PID_FILE, BrokerConfig, find_mosquitto, write_broker_config
from fleet.gateway.broker_reload import reload_broker
from fleet.ports import free_port
from tests.patience import wait_until


def test_without_a_broker_nobody_is_told(tmp_path: Path) -> None:
    pid_file = tmp_path / PID_FILE
    assert not reload_broker(pid_file)
    with subprocess.Popen(["sleep", "1000"]) as other:
        # Left behind by a broker that was killed; the number is another's now.
        for text in (f"{other.pid}", "", "0", "-1", "x", "٣", f"{2**31}"):
            pid_file.write_text(text)
            assert not reload_broker(pid_file), text
        assert other.poll() is None
        other.kill()


def test_a_broker_that_has_ended_and_that_nobody_has_looked_after_is_none(tmp_path: Path) -> None:
    conf = write_broker_config(tmp_path, BrokerConfig("barn", {}, port=free_port()))
    pid_file = tmp_path / PID_FILE
    with subprocess.Popen([find_mosquitto(), "-c", str(conf)], stderr=subprocess.DEVNULL) as broker:
        wait_until(lambda: reload_broker(pid_file))
        broker.kill()
        os.waitid(os.P_PID, broker.pid, os.WEXITED | os.WNOWAIT)
        assert not reload_broker(pid_file)


def test_a_broker_that_is_just_starting_is_told_when_it_can_hear_it(tmp_path: Path) -> None:
    # SIGHUP between its pid file and its signal handlers would end it; reading passwords lies
    # in between.
    devices = {f"cow-{n}": "moo" for n in range(2000)}
    conf = write_broker_config(tmp_path, BrokerConfig("barn", {}, devices, port=free_port()))
    for _ in range(5):
        pid_file = tmp_path / PID_FILE
        pid_file.unlink(missing_ok=True)
        with subprocess.Popen(
            [find_mosquitto(), "-c", str(conf)], stderr=subprocess.DEVNULL
        ) as broker:
            while not reload_broker(pid_file):
                assert broker.poll() is None
            broker.terminate()
            assert broker.wait() == 0, "SIGHUP didn't end it"


def test_a_broker_of_another_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = write_broker_config(tmp_path, BrokerConfig("barn", {}, port=free_port()))
    pid_file = tmp_path / PID_FILE
    with subprocess.Popen([find_mosquitto(), "-c", str(conf)], stderr=subprocess.DEVNULL) as broker:
        wait_until(lambda: reload_broker(pid_file))

        def refused(*_: object) -> None:
            raise PermissionError

        monkeypatch.setattr("fleet.gateway.broker_reload.os.kill", refused)
        with pytest.raises(BrokerError, match=f"process {broker.pid}.*as one user"):
            reload_broker(pid_file)
        monkeypatch.undo()
        broker.terminate()
