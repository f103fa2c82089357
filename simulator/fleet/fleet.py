"""A fleet of emulated boards over a few worker processes.

    with Fleet(devices, broker=("127.0.0.1", 1883)) as fleet:
        fleet.stats()["device-03"].bytes_up

Each worker is one process with one event loop (``simulator.fleet.worker``): it runs its
machines in slices, moves their bytes, and lets idle ones sleep. The parent talks to it over a
socket pair; when the parent goes away, the worker sees the end of that stream and ends, too.
"""

from __future__ import annotations

import multiprocessing.connection
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from codegen.errors import CodegenError
from simulator.errors import FleetError
from simulator.machines.device_spec import DeviceSpec, Place
from simulator.machines.registry import machine_kind, prepare_bundle

_REPLY_SECONDS = 120.0


@dataclass(frozen=True)
class DeviceStats:
    """What is known of a device from outside its firmware."""

    state: str
    """running, idle, off, or fault"""
    fault: str | None
    """Message of the last fault, with address, access, PC and function: it stopped the device (then
    its state is fault), or the firmware started over because of it."""
    link: str
    """on hook, dialling, connected, pausing, lost"""
    link_error: str
    """Why the last stream ended or the last dial failed."""
    bytes_up: int
    bytes_down: int
    resets: int
    """Resets by the firmware and its watchdog."""
    dials: int
    flash_operations: int
    stack_high_water_bytes: int
    """Deepest stack use since power on."""
    busy_seconds: float
    """Host time spent on emulating it."""


@dataclass(frozen=True)
class WorkerStats:
    """A worker process."""

    process: int
    rss_bytes: int
    """Resident memory of the whole process."""
    pss_bytes: int
    """Resident memory with shared pages counted once over all workers; 0 where unknown."""
    devices: dict[str, DeviceStats] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is started with."""

    devices: tuple[DeviceSpec, ...]
    broker: Place | None
    slice_milliseconds: float
    prepared: dict[tuple[str, str], Path]
    """(machine, bundle) → what the machine's kind has made of the bundle, if anything."""


@dataclass(frozen=True)
class Command:
    """A request to a worker; each is answered with a result or an exception's text."""

    name: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Reply:
    """Answer of a worker."""

    result: Any = None
    error: str | None = None


class _Worker:
    def __init__(self, settings: WorkerSettings) -> None:
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "simulator.fleet.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._connection: multiprocessing.connection.Connection[Any, Any]
        self._connection = multiprocessing.connection.Connection(ours.detach())
        self._connection.send(settings)
        self.devices = [spec.device for spec in settings.devices]

    def wait_until_started(self) -> None:
        self._answer("start")

    def ask(self, name: str, *arguments: Any) -> Any:
        try:
            self._connection.send(Command(name, arguments))
        except OSError as error:
            raise FleetError(self._gone(name)) from error
        return self._answer(name)

    def _answer(self, name: str) -> Any:
        try:
            if not self._connection.poll(_REPLY_SECONDS):
                raise FleetError(
                    f"simulator worker {self.process.pid} didn't answer {name!r} within"
                    f" {_REPLY_SECONDS:.0f} s"
                )
            reply: Reply = self._connection.recv()
        except (EOFError, OSError) as error:
            raise FleetError(self._gone(name)) from error
        if reply.error is not None:
            raise FleetError(reply.error)
        return reply.result

    def _gone(self, name: str) -> str:
        return (
            f"simulator worker {self.process.pid} ended (exit code {self.process.poll()}) at"
            f" {name!r}; its messages are on stderr"
        )

    def close(self) -> None:
        self._connection.close()  # the worker ends when it sees this
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Fleet:
    """Machines that run until the context is left."""

    def __init__(
        self,
        devices: Sequence[DeviceSpec],
        broker: tuple[str, int] | None = None,
        *,
        workers: int = 2,
        slice_milliseconds: float = 20.0,
    ) -> None:
        """Nothing is started before the context is entered.

        Args:
            devices: dealt to the workers in turn.
            broker: host and port of the MQTT broker where devices dial in that name no place.
            workers: processes; as many as cores is best.
            slice_milliseconds: how long a machine runs before the next has its turn.

        Raises: FleetError when two devices have one name, there are none, one has nowhere to dial
            in, or no machine is named so.
        """
        names = [spec.device for spec in devices]
        if not names or len(set(names)) != len(names):
            raise FleetError("a fleet needs at least one device, and each needs its own name")
        for spec in devices:
            machine_kind(spec.machine)
            if spec.place is None and broker is None:
                raise FleetError(
                    f"device {spec.device} has nowhere to dial in; give it a place, or its fleet "
                    "a broker"
                )
        self._broker = Place(*broker) if broker is not None else None
        self._slice = slice_milliseconds
        self._parts = [list(devices[first::workers]) for first in range(min(workers, len(devices)))]
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._workers: list[_Worker] = []
        self._owner: dict[str, _Worker] = {}

    def __enter__(self) -> Fleet:
        """Start the workers and boot every machine.

        Raises: FleetError naming the device whose bundle or samples can't be used.
        """
        try:
            prepared = self._prepare()
            for part in self._parts:
                settings = WorkerSettings(tuple(part), self._broker, self._slice, prepared)
                worker = _Worker(settings)
                self._workers.append(worker)
                self._owner.update(dict.fromkeys(worker.devices, worker))
            for worker in self._workers:
                worker.wait_until_started()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all workers."""
        self.stop()

    def _prepare(self) -> dict[tuple[str, str], Path]:
        """Have each machine's kind make what it needs of each bundle."""
        self._folder = tempfile.TemporaryDirectory(prefix="tinyfleet-fleet-")
        devices = {
            (spec.machine, str(spec.bundle)): spec.device for part in self._parts for spec in part
        }
        prepared = {}
        for number, (machine, bundle) in enumerate(sorted(devices)):
            output = Path(self._folder.name) / str(number)
            try:
                prepare_bundle(machine, Path(bundle), output)
            except (OSError, CodegenError, FleetError) as error:
                device = devices[machine, bundle]
                raise FleetError(f"device {device}, bundle {bundle}: {error}") from error
            prepared[machine, bundle] = output
        return prepared

    def stop(self) -> None:
        """End all workers; nothing of the fleet is left. May be called again."""
        while self._workers:
            self._workers.pop().close()
        self._owner.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def stats(self) -> dict[str, DeviceStats]:
        """State and counters of every device."""
        return {
            device: stats
            for worker in self.worker_stats()
            for device, stats in worker.devices.items()
        }

    def worker_stats(self) -> list[WorkerStats]:
        """Memory of every worker process, with the devices in it."""
        return [worker.ask("stats") for worker in self._workers]

    def power_cycle(self, device: str, off_seconds: float = 0.1) -> None:
        """Cut power now and give it back later: SRAM is lost, flash is kept."""
        self._ask(device, "power_cycle", off_seconds)

    def power_off(self, device: str) -> None:
        """Cut power until ``power_cycle``."""
        self._ask(device, "power_cycle", float("inf"))

    def cut_power_at_flash_operation(
        self, device: str, operations: int, seed: int, off_seconds: float = 0.1
    ) -> None:
        """Cut power in the middle of the ``operations``-th flash operation from now."""
        self._ask(device, "cut_power_at_flash_operation", operations, seed, off_seconds)

    def read_flash(self, device: str, address: int, size: int) -> bytes:
        """Bytes of a device's flash, as a debug probe would read them."""
        result = self._ask(device, "read_flash", address, size)
        assert isinstance(result, bytes)
        return result

    def _ask(self, device: str, name: str, *arguments: Any) -> Any:
        try:
            worker = self._owner[device]
        except KeyError:
            known = ", ".join(sorted(self._owner)) or "none, the fleet isn't running"
            raise FleetError(f"no device {device!r} in this fleet; there are {known}") from None
        return worker.ask(name, device, *arguments)


def resident_bytes() -> tuple[int, int]:
    """Resident (RSS) and proportional (PSS) memory of this process; PSS is 0 where unknown."""
    sizes = {"Rss": 0, "Pss": 0}
    try:
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in sizes:
                sizes[name] = int(rest.split()[0]) * 1024
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        sizes["Rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return sizes["Rss"], sizes["Pss"]


def worker_count() -> int:
    """As many workers as cores that this process may use, two at most by default."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(2, cores or 1))
