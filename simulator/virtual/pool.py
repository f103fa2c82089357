"""Many devices in virtual time, dealt to processes; what comes out doesn't depend on how many.

This is conservative parallel simulation with a common window (Chandy and Misra; Nicol): nothing
that is sent in a window may arrive before its end, since every line takes at least that long. So
all devices can go through a window on their own, beside each other and beside whatever happens at
brokers and gateways meanwhile, and what they say is put in order afterwards.
"""

from __future__ import annotations

import heapq
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from simulator.errors import FleetError
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.host import HostMachine
from simulator.machines.registry import flash_content
from simulator.virtual.costs import WorkCosts
from simulator.virtual.device import NEVER, Arrival, Clockwork, Event, Said, VirtualDevice, Watch
from simulator.virtual.line import LineDirection, LineEnd

Arrivals = Mapping[int, Sequence[Arrival]]
"""By the device's number; in order of time."""


class Schedule(Protocol):
    """What befalls a device from outside: made anew in the process that has the device."""

    def __iter__(self) -> Any:
        """Its `Event`s in order of time."""


@dataclass(frozen=True, eq=False)
class VirtualDeviceSpec:
    """A device, its line, its clock and what befalls it."""

    device: DeviceSpec
    library: Path
    """The host library of its bundle."""
    costs: WorkCosts
    up: LineDirection
    seed: tuple[int, ...]
    """Of the chance on its line."""
    clock_parts_per_million: int = 0
    events: Schedule | Sequence[Event] = ()


MakeDevice = Callable[[int], VirtualDeviceSpec]
"""The device with a number, the same whoever asks; has to be picklable."""


@dataclass(frozen=True)
class DeviceFigures:
    """What a device has done so far."""

    train_steps: int
    forward_passes: int
    busy_seconds: float
    flash_words: int
    flash_erases: int
    bytes_up: int
    bytes_down: int
    resets: int


@dataclass(frozen=True)
class WindowResult:
    """What became of a window."""

    said: list[Said]
    """In order of arrival; what arrives at the same time in order of devices."""
    next_due: int


class DeviceHost:
    """The devices of one process."""

    def __init__(self, make: MakeDevice, numbers: Sequence[int]) -> None:
        """Build and power on; raises FleetError naming the device that can't be built."""
        self._devices: dict[int, VirtualDevice] = {}
        self._due: list[tuple[int, int]] = []
        self._queued: dict[int, int] = {}
        """When each is in the queue for; entries of other times are of before."""
        for number in numbers:
            self._devices[number] = _build(number, make(number))
            self._queue(number)

    @property
    def next_due(self) -> int:
        """When the first of them has something to do; never later than that."""
        return self._due[0][0] if self._due else NEVER

    def advance(self, until: int, arrivals: Arrivals) -> WindowResult:
        """All of them until that time."""
        for number, coming in arrivals.items():
            device = self._devices[number]
            for one in coming:
                device.arrives(one)
            self._queue(number)
        said: list[Said] = []
        while self._due and self._due[0][0] < until:
            due, number = heapq.heappop(self._due)
            if due == self._queued[number]:
                self._devices[number].advance(until, said)
                self._queue(number)
        said.sort(key=lambda one: (one.at, one.device))
        return WindowResult(said, self.next_due)

    def _queue(self, number: int) -> None:
        due = self._devices[number].next_due
        if due != self._queued.get(number):
            self._queued[number] = due
            heapq.heappush(self._due, (due, number))

    def figures(self) -> dict[int, DeviceFigures]:
        """Of every device, by number."""
        return {number: _figures(device) for number, device in self._devices.items()}


def _build(number: int, spec: VirtualDeviceSpec) -> VirtualDevice:
    device = spec.device
    watch = Watch()
    machine = HostMachine(
        device.bundle,
        spec.library,
        clock=watch,
        battery_percent=lambda: device.battery_percent,
        charging=device.charging,
        seed=device.seed,
        flash_content=flash_content(device),
    )
    return VirtualDevice(
        number,
        machine,
        watch,
        spec.costs.for_machine(),
        LineEnd(spec.up, spec.seed),
        Clockwork(spec.clock_parts_per_million),
        spec.events,
    )


def _figures(device: VirtualDevice) -> DeviceFigures:
    done, traffic = device.machine.done, device.machine.traffic
    return DeviceFigures(
        done.train_steps,
        done.forward_passes,
        device.busy_nanoseconds / 1e9,
        done.flash_words,
        done.flash_erases,
        traffic.up,
        traffic.down,
        device.resets,
    )


class DevicePool(Protocol):
    """Where devices run."""

    @property
    def next_due(self) -> int:
        """When the first device has something to do."""

    def begin(self, until: int, arrivals: Arrivals) -> None:
        """Let all devices go on to that time; more than one call before `finish` isn't allowed."""

    def finish(self) -> list[Said]:
        """What they have said; waits for them."""

    def figures(self) -> dict[int, DeviceFigures]:
        """Of every device, by number."""

    def close(self) -> None:
        """End it; nothing is left."""


class LocalPool:
    """In this process. Implements `DevicePool`."""

    def __init__(self, make: MakeDevice, count: int) -> None:
        """Devices 0 … ``count``-1."""
        self._host = DeviceHost(make, range(count))
        self._result = WindowResult([], NEVER)

    @property
    def next_due(self) -> int:
        """See `DevicePool`."""
        return self._host.next_due

    def begin(self, until: int, arrivals: Arrivals) -> None:
        """See `DevicePool`."""
        self._result = self._host.advance(until, arrivals)

    def finish(self) -> list[Said]:
        """See `DevicePool`."""
        return self._result.said

    def figures(self) -> dict[int, DeviceFigures]:
        """See `DevicePool`."""
        return self._host.figures()

    def close(self) -> None:
        """See `DevicePool`."""


class ProcessPool:
    """In processes of their own. Implements `DevicePool`."""

    def __init__(self, make: MakeDevice, count: int, workers: int) -> None:
        """Devices 0 … ``count``-1, each with one of so many workers.

        Raises: FleetError naming the device that can't be built.
        """
        context = multiprocessing.get_context("spawn")
        self._workers: list[tuple[Any, Connection]] = []
        self._next: list[int] = []
        try:
            for worker in range(workers):
                ours, theirs = context.Pipe()
                numbers = range(worker, count, workers)
                process = context.Process(target=_serve, args=(theirs, make, numbers), daemon=True)
                process.start()
                theirs.close()
                self._workers.append((process, ours))
            self._next = [self._reply(ours) for _, ours in self._workers]
        except BaseException:
            self.close()
            raise

    @property
    def next_due(self) -> int:
        """See `DevicePool`."""
        return min(self._next, default=NEVER)

    def begin(self, until: int, arrivals: Arrivals) -> None:
        """See `DevicePool`."""
        workers = len(self._workers)
        dealt: list[dict[int, Sequence[Arrival]]] = [{} for _ in range(workers)]
        for number, coming in arrivals.items():
            dealt[number % workers][number] = coming
        self._asked = [
            index for index in range(workers) if dealt[index] or self._next[index] < until
        ]
        for index in self._asked:
            self._workers[index][1].send(("advance", until, dealt[index]))

    def finish(self) -> list[Said]:
        """See `DevicePool`."""
        parts = []
        for index in self._asked:
            result: WindowResult = self._reply(self._workers[index][1])
            self._next[index] = result.next_due
            parts.append(result.said)
        return list(heapq.merge(*parts, key=lambda one: (one.at, one.device)))

    def figures(self) -> dict[int, DeviceFigures]:
        """See `DevicePool`."""
        for _, connection in self._workers:
            connection.send(("figures",))
        found = [self._reply(connection) for _, connection in self._workers]
        return dict(sorted(item for part in found for item in part.items()))

    def close(self) -> None:
        """See `DevicePool`."""
        for process, connection in self._workers:
            connection.close()
            process.join(10)
            if process.is_alive():
                process.kill()
        self._workers.clear()

    def _reply(self, connection: Connection) -> Any:
        try:
            reply = connection.recv()
        except (EOFError, OSError):
            raise FleetError(
                "a worker of the virtual fleet has died; is there enough memory for its devices?"
            ) from None
        if isinstance(reply, Exception):
            raise reply
        return reply


def _serve(connection: Connection, make: MakeDevice, numbers: Sequence[int]) -> None:
    """A worker: until the other end is closed."""
    try:
        host = DeviceHost(make, numbers)
        connection.send(host.next_due)
        while True:
            name, *arguments = connection.recv()
            connection.send(getattr(host, name)(*arguments))
    except (EOFError, OSError):
        return
    except Exception as error:
        connection.send(error)
