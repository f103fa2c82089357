"""A broker that its gateway can't send a signal, as in a container of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.gateway.access import AccessBook, Entry
from fleet.gateway.broker import PID_FILE, BrokerConfig, password_hash, write_broker_config
from fleet.gateway.broker_reload import Login
from fleet.ports import free_port
from tests.patience import PATIENCE_SECONDS, wait_until

RUN = Path(__file__).parents[2] / "deploy" / "mosquitto" / "run"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[tuple[Path, int, subprocess.Popen[bytes]]]:
    folder, port = tmp_path / "broker", free_port()
    write_broker_config(folder, BrokerConfig("barn", {"gw": "secret"}, port=port))
    process = subprocess.Popen(
        ["sh", RUN, folder], stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_until(lambda: Login("127.0.0.1", port, "gw", "secret").is_let_in(1.0))
        # To another container it leads to nobody, or to somebody else.
        (folder / PID_FILE).unlink()
        yield folder, port, process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_users_come_and_go_without_a_signal_of_the_gateway(
    broker: tuple[Path, int, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    folder, port, _ = broker
    book = AccessBook(folder, tmp_path / "book.json")
    cow = Login("127.0.0.1", port, "cow", "moo")
    assert cow.is_let_in(1.0) is False
    # Each answer comes when the broker has read it, also right after the one before.
    for number in range(1, 4):
        is_meant = number % 2 == 1
        entry = Entry("device", password_hash("moo")) if is_meant else None
        assert book.apply({"cow": entry}, number) == number
        assert cow.is_let_in(1.0) is is_meant


def test_it_stops_when_it_is_told_to(
    broker: tuple[Path, int, subprocess.Popen[bytes]],
) -> None:
    _, _, process = broker
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_SECONDS) == 0
    wait_until(lambda: not _has_members(process.pid), "nobody looks after its folder any more")


def _has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
