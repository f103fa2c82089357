"""Many devices in virtual time, dealt to processes; what comes out doesn't depend on how many.

This is conservative parallel simulation with a common window (Chandy and Misra; Nicol): nothing
that is sent in a window may arrive before its end, since every line takes at least that long. So
all devices can go through a window on their own, beside each other and beside whatever happens at
brokers and gateways meanwhile, and what they say is put in order afterwards.
"""

from __future__ import annotations

import gc
import heapq
import multiprocessing
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from simulator.errors import FleetError
from simulator.machines.host import HostMachine
from simulator.machines.registry import flash_content
from simulator.virtual.device import NEVER, Arrival, Clockwork, Said, VirtualDevice, Watch
from simulator.virtual.offline import Score
from simulator.virtual.population import Population
from simulator.world.energy import FlashWear

Arrivals = Mapping[int, Sequence[Arrival]]
"""By the device's number; in order of time."""
Result = TypeVar("Result")
Job = Callable[[Population, int], Result]
"""Something to be computed about a device; has to be picklable."""


MAXIMA = ("most_flash_erases", "most_flash_wear")
"""Of `Figures`: what isn't added up."""


@dataclass(frozen=True)
class Figures:
    """What devices have done since the beginning, added up."""

    devices: int = 0
    train_steps: int = 0
    forward_passes: int = 0
    busy_seconds: float = 0.0
    flash_words: int = 0
    flash_erases: int = 0
    most_flash_erases: int = 0
    """Of one device."""
    most_flash_wear: float = 0.0
    """Erases of the sector that is worn most, as a share of what it stands; of one device."""
    bytes_up: int = 0
    """Over serial lines, MQTT and all."""
    bytes_down: int = 0
    milliwatt_hours: float = 0.0
    resets: int = 0

    @classmethod
    def of_all(cls, parts: Sequence[Figures]) -> Figures:
        """Added up, in their order."""
        whole = {one.name: sum(getattr(part, one.name) for part in parts) for one in fields(cls)}
        for name in MAXIMA:
            whole[name] = max((getattr(part, name) for part in parts), default=0)
        return cls(**whole)


@dataclass(frozen=True)
class WindowResult:
    """What became of a window."""

    said: list[Said]
    """In order of arrival; what arrives at the same time in order of devices."""
    next_due: int


class DeviceHost:
    """The devices of one process."""

    def __init__(self, population: Population, numbers: Sequence[int]) -> None:
        """Build and power on; raises SimulatorError naming the device that can't be built."""
        self._population = population
        self._devices: dict[int, VirtualDevice] = {}
        self._due: list[tuple[int, int]] = []
        self._queued: dict[int, int] = {}
        """When each is in the queue for; entries of other times are of before."""
        for number in numbers:
            self._devices[number] = _build(population, number)
            self._queue(number)

    @property
    def next_due(self) -> int:
        """When the first of them has something to do; never later than that."""
        return self._due[0][0] if self._due else NEVER

    def advance(self, until: int, arrivals: Arrivals) -> WindowResult:
        """All of them until that time."""
        for number, coming in arrivals.items():
            for one in coming:
                self._devices[number].arrives(one)
            self._queue(number)
        said: list[Said] = []
        while self._due and self._due[0][0] < until:
            due, number = heapq.heappop(self._due)
            if due == self._queued[number]:
                self._devices[number].advance(until, said)
                self._queue(number)
        said.sort(key=_order)
        return WindowResult(said, self.next_due)

    @property
    def devices(self) -> Mapping[int, VirtualDevice]:
        """By number."""
        return self._devices

    def close(self) -> None:
        """Give all of them up."""
        self._devices.clear()
        self._due.clear()

    def _queue(self, number: int) -> None:
        due = self._devices[number].next_due
        if due != self._queued.get(number):
            self._queued[number] = due
            heapq.heappush(self._due, (due, number))

    def figures(self, now: int) -> dict[int, Figures]:
        """Of every device, by number, at that time."""
        world = self._population.world
        return {
            number: _figures(device, world.flash_wear(number), now)
            for number, device in self._devices.items()
        }

    def each(self, job: Job[Result], numbers: Sequence[int]) -> dict[int, Result]:
        """What a job gives for those of the devices that are here."""
        mine = [number for number in numbers if number in self._devices]
        return {number: job(self._population, number) for number in mine}

    def infer(self, numbers: Sequence[int]) -> dict[int, Score]:
        """How the applications of those that are here do on what their devices are scored on."""
        found = {}
        for number in numbers:
            if number in self._devices:
                held = self._population.held_out_of_device(number)
                right = self._devices[number].machine.infer(held.codes) == held.labels
                found[number] = Score(len(held.labels), int(right.sum()))
        return found


def _order(one: Said) -> tuple[int, int]:
    return one.at, one.device


def _build(population: Population, number: int) -> VirtualDevice:
    spec = population.spec(number)
    facts = population.world.device(number)
    watch = Watch()
    machine = HostMachine(
        spec.bundle,
        population.firmware[facts.board].library,
        clock=watch,
        seed=spec.seed,
        flash_content=flash_content(spec),
    )
    return VirtualDevice(
        number,
        machine,
        watch,
        population.costs(number),
        population.power(number),
        partial(population.line, number, "up"),
        Clockwork(population.world.clock_rate(number)),
        population.events(number),
    )


def _figures(device: VirtualDevice, wear: FlashWear, now: int) -> Figures:
    device.account(now)
    done, traffic = device.machine.done, device.machine.traffic
    return Figures(
        devices=1,
        train_steps=done.train_steps,
        forward_passes=done.forward_passes,
        busy_seconds=device.busy_nanoseconds / 1e9,
        flash_words=done.flash_words,
        flash_erases=done.flash_erases,
        most_flash_erases=done.flash_erases,
        most_flash_wear=wear.worst_share(device.machine.sector_erases),
        bytes_up=traffic.up,
        bytes_down=traffic.down,
        milliwatt_hours=device.power.milliwatt_hours,
        resets=device.resets,
    )


class DevicePool(ABC):
    """Where devices run, in one process or in several."""

    @property
    @abstractmethod
    def next_due(self) -> int:
        """When the first device has something to do."""

    @abstractmethod
    def begin(self, until: int, arrivals: Arrivals) -> None:
        """Let all devices go on to that time; `finish` is to follow."""

    @abstractmethod
    def finish(self) -> list[Said]:
        """What they have said; waits for them."""

    @abstractmethod
    def figures(self, now: int) -> dict[int, Figures]:
        """Of every device, by number and in that order."""

    @abstractmethod
    def each(self, job: Job[Result], numbers: Sequence[int]) -> dict[int, Result]:
        """What a job gives for devices, by number and in that order."""

    @abstractmethod
    def infer(self, numbers: Sequence[int]) -> dict[int, Score]:
        """How devices' applications do on what they are scored on, by number and in that order."""

    @abstractmethod
    def close(self) -> None:
        """End it; nothing is left."""

    def totals(self, now: int) -> Figures:
        """Of all devices, which are added up in one order, whoever has them."""
        return Figures.of_all(list(self.figures(now).values()))


class LocalPool(DevicePool):
    """In this process."""

    def __init__(self, population: Population) -> None:
        """All of its devices."""
        self._host = DeviceHost(population, population.numbers)
        self._said: list[Said] = []

    @property
    def devices(self) -> Mapping[int, VirtualDevice]:
        """By number."""
        return self._host.devices

    @property
    def next_due(self) -> int:
        """See `DevicePool`."""
        return self._host.next_due

    def begin(self, until: int, arrivals: Arrivals) -> None:
        """See `DevicePool`."""
        self._said = self._host.advance(until, arrivals).said

    def finish(self) -> list[Said]:
        """See `DevicePool`."""
        return self._said

    def figures(self, now: int) -> dict[int, Figures]:
        """See `DevicePool`."""
        return self._host.figures(now)

    def each(self, job: Job[Result], numbers: Sequence[int]) -> dict[int, Result]:
        """See `DevicePool`."""
        return self._host.each(job, sorted(numbers))

    def infer(self, numbers: Sequence[int]) -> dict[int, Score]:
        """See `DevicePool`."""
        return self._host.infer(sorted(numbers))

    def close(self) -> None:
        """See `DevicePool`. Devices' memory goes now, not when somebody looks for garbage."""
        self._host.close()


class DistributedPool(DevicePool):
    """In workers, to which devices are dealt in turn; a subclass knows how they are reached."""

    def __init__(self, workers: int) -> None:
        """Made by the subclass; `_greet` is to follow."""
        self._workers = workers
        self._next = [NEVER] * workers
        self._asked: list[int] = []

    @abstractmethod
    def _ask(self, worker: int, name: str, *arguments: Any) -> None:
        """Call a method of a worker's `DeviceHost`."""

    @abstractmethod
    def _answer(self, worker: int) -> Any:
        """What came of the first call that hasn't been answered; raises what it raised."""

    @property
    def next_due(self) -> int:
        """See `DevicePool`."""
        return min(self._next)

    def begin(self, until: int, arrivals: Arrivals) -> None:
        """See `DevicePool`."""
        dealt: list[dict[int, Sequence[Arrival]]] = [{} for _ in range(self._workers)]
        for number, coming in arrivals.items():
            dealt[number % self._workers][number] = coming
        self._asked = [
            worker for worker, own in enumerate(dealt) if own or self._next[worker] < until
        ]
        for worker in self._asked:
            self._ask(worker, "advance", until, dealt[worker])

    def finish(self) -> list[Said]:
        """See `DevicePool`."""
        parts = []
        for worker in self._asked:
            result: WindowResult = self._answer(worker)
            self._next[worker] = result.next_due
            parts.append(result.said)
        return list(heapq.merge(*parts, key=_order))

    def figures(self, now: int) -> dict[int, Figures]:
        """See `DevicePool`."""
        return self._of_all("figures", now)

    def each(self, job: Job[Result], numbers: Sequence[int]) -> dict[int, Result]:
        """See `DevicePool`."""
        return self._of_all("each", job, numbers)

    def infer(self, numbers: Sequence[int]) -> dict[int, Score]:
        """See `DevicePool`."""
        return self._of_all("infer", numbers)

    def _of_all(self, name: str, *arguments: Any) -> dict[int, Any]:
        for worker in range(self._workers):
            self._ask(worker, name, *arguments)
        found = [self._answer(worker) for worker in range(self._workers)]
        return dict(sorted(item for part in found for item in part.items()))


class ProcessPool(DistributedPool):
    """In processes of this machine."""

    def __init__(self, population: Population, workers: int) -> None:
        """All of its devices. Raises: SimulatorError naming the device that can't be built."""
        super().__init__(workers)
        context = multiprocessing.get_context("spawn")
        self._processes: list[tuple[Any, Connection]] = []
        try:
            for worker in range(workers):
                ours, theirs = context.Pipe()
                numbers = population.numbers[worker::workers]
                process = context.Process(
                    target=_serve, args=(theirs, population, numbers), daemon=True
                )
                process.start()
                theirs.close()
                self._processes.append((process, ours))
            self._next = [self._answer(worker) for worker in range(workers)]
        except BaseException:
            self.close()
            raise

    def _ask(self, worker: int, name: str, *arguments: Any) -> None:
        try:
            self._processes[worker][1].send((name, *arguments))
        except OSError:
            raise _died() from None

    def _answer(self, worker: int) -> Any:
        try:
            answer = self._processes[worker][1].recv()
        except (EOFError, OSError):
            raise _died() from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """See `DevicePool`."""
        for process, connection in self._processes:
            connection.close()
            process.join(10)
            if process.is_alive():
                process.kill()
        self._processes.clear()


def _died() -> FleetError:
    return FleetError(
        "a worker of the virtual fleet has died; is there memory enough for its devices?"
    )


def keep_from_collector() -> None:
    """Let Python's garbage collector leave alone what this process has now, until `gc.unfreeze`.

    Else it looks through all devices again and again, for a sixth of a round's time.
    """
    gc.collect()
    gc.freeze()


def _serve(connection: Connection, population: Population, numbers: Sequence[int]) -> None:
    """A worker: until the other end is closed, which Ctrl-C is left to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        host = DeviceHost(population, numbers)
        keep_from_collector()
        connection.send(host.next_due)
        while True:
            name, *arguments = connection.recv()
            connection.send(getattr(host, name)(*arguments))
    except (EOFError, OSError):
        return
    except Exception as error:
        connection.send(error)
