"""A worker whose time the test turns."""

from __future__ import annotations

import multiprocessing
import socket
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codegen.firmware.bundle import Bundle
from fleet.ports import free_port
from simulator.fleet.fleet import Command, DeviceStats, WorkerSettings
from simulator.fleet.worker import serve
from simulator.machines.device_spec import DeviceSpec, Place
from simulator.machines.registry import machine_kind
from tests.patience import PATIENCE_SECONDS, wait_until
from tests.simulator.conftest import WorldClock


class Worker:
    """One that serves one device of host code."""

    def __init__(self, bundle: Bundle, prepared: Path, broker: tuple[str, int]) -> None:
        self.world = WorldClock()
        self._somewhere = bundle.manifest.flash.identity.address
        self._ours: Connection[Any, Any]
        self._ours, theirs = multiprocessing.Pipe()
        self._thread = threading.Thread(target=serve, args=(theirs, self.world), daemon=True)
        self._thread.start()
        none = np.zeros((0, 8, 8, 1), np.int8), np.zeros(0, np.int64)
        spec = DeviceSpec("cow", bundle.path, "moo", *none, machine="host")
        prepared_by = {("host", str(bundle.path)): prepared}
        self._ours.send(WorkerSettings((spec,), Place(*broker), 20.0, prepared_by))
        self._reply()

    def ask(self, name: str, *arguments: Any) -> Any:
        self._ours.send(Command(name, arguments))
        return self._reply()

    def _reply(self) -> Any:
        assert self._ours.poll(PATIENCE_SECONDS)
        reply = self._ours.recv()
        assert reply.error is None
        return reply.result

    def stats(self) -> DeviceStats:
        found: DeviceStats = self.ask("stats").devices["cow"]
        return found

    def let_pass(self, seconds: float) -> None:
        self.world.now += 1000.0 * seconds
        # It looks at its clock after a command, and so before the next.
        for _ in range(2):
            self.ask("read_flash", "cow", self._somewhere, 1)

    def close(self) -> None:
        self._ours.close()
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()


MakeWorker = Callable[[tuple[str, int]], Worker]


@pytest.fixture
def make_worker(digits: Bundle, tmp_path: Path) -> Iterator[MakeWorker]:
    machine_kind("host").prepare(digits.path, tmp_path / "device.so")
    workers: list[Worker] = []

    def make(broker: tuple[str, int]) -> Worker:
        workers.append(Worker(digits, tmp_path / "device.so", broker))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


def test_power_comes_back_when_the_workers_clock_says_so(make_worker: MakeWorker) -> None:
    worker = make_worker(("127.0.0.1", free_port()))
    worker.ask("power_cycle", "cow", 3600.0)
    worker.let_pass(3599.0)
    assert worker.stats().state == "off"
    worker.let_pass(2.0)
    assert worker.stats().state != "off"


def test_a_modem_dials_again_by_the_workers_clock(make_worker: MakeWorker) -> None:
    worker = make_worker(("127.0.0.1", free_port()))
    wait_until(lambda: worker.stats().link == "pausing", worker.stats)
    worker.let_pass(0.4)
    assert worker.stats().dials == 1
    worker.let_pass(0.2)
    wait_until(lambda: worker.stats().dials == 2, worker.stats)


def test_a_device_gives_up_a_silent_broker_by_the_workers_clock(make_worker: MakeWorker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        worker = make_worker(silent.getsockname())
        wait_until(lambda: worker.stats().link == "connected", worker.stats)
        for _ in range(150):
            worker.let_pass(0.1)
        assert (worker.stats().link, worker.stats().dials) == ("connected", 1)
        assert worker.stats().bytes_up > 0
        for _ in range(100):
            worker.let_pass(0.1)
        assert worker.stats().dials == 2
