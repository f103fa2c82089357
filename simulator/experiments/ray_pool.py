"""Devices as actors of a Ray cluster (https://docs.ray.io), which may be many machines."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulator.errors import ExperimentError, FleetError
from simulator.virtual.pool import DeviceHost, DistributedPool, keep_from_collector
from simulator.virtual.population import Population

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ModuleNotFoundError:
    raise ExperimentError(
        "workers: ray isn't installed; pip install 'tinyfleet[ray]', or give a number of processes"
    ) from None


class RayPool(DistributedPool):
    """In actors, one a processor. What comes out is that of any other pool.

    A machine of the cluster needs tinyfleet in the same version, and finds the run's folder and the
    experiment's under the same paths, as on a shared file system.
    """

    def __init__(
        self, population: Population, actors: int | None = None, address: str | None = None
    ) -> None:
        """All of its devices.

        Args:
            population: the devices.
            actors: how many; as many as the cluster has processors where left out.
            address: of a cluster that runs; without one a local cluster is started, once a process.

        Raises: ExperimentError where there is no such cluster, SimulatorError naming the device
        that can't be built.
        """
        _connect(actors, address)
        processors = int(ray.cluster_resources().get("CPU", 1))
        super().__init__(actors or max(1, processors))
        worker = ray.remote(max_concurrency=1, num_cpus=min(1.0, processors / self._workers))(
            _Worker
        )
        common = ray.put(population)
        self._actors = [
            worker.remote(common, population.numbers[number :: self._workers])
            for number in range(self._workers)
        ]
        self._asking: list[deque[Any]] = [deque() for _ in range(self._workers)]
        try:
            for number in range(self._workers):
                self._ask(number, "begin")
            self._next = [self._answer(number) for number in range(self._workers)]
        except BaseException:
            self.close()
            raise

    def _ask(self, worker: int, name: str, *arguments: Any) -> None:
        self._asking[worker].append(self._actors[worker].call.remote(name, *arguments))

    def _answer(self, worker: int) -> Any:
        try:
            return ray.get(self._asking[worker].popleft())
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise FleetError(f"an actor on the Ray cluster has died: {error}") from None

    def close(self) -> None:
        """See `DevicePool`. The cluster stays, for the next pool; it ends with the process."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors.clear()


def _connect(actors: int | None, address: str | None) -> None:
    if ray.is_initialized():
        return
    try:
        ray.init(
            address or "local",
            num_cpus=None if address else actors,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise ExperimentError(
            f"workers: no Ray cluster at {address or 'local'} ({error})"
        ) from None


class _Worker:
    """One actor."""

    def __init__(self, population: Population, numbers: Sequence[int]) -> None:
        self._population = population
        self._numbers = numbers

    def call(self, name: str, *arguments: Any) -> Any:
        """A method of its `DeviceHost`."""
        if name == "begin":
            return self._begin()
        return getattr(self._host, name)(*arguments)

    def _begin(self) -> int:
        for firmware in self._population.firmware.values():
            if not Path(firmware.library).exists():
                raise FleetError(
                    f"a machine of the Ray cluster doesn't have {firmware.library}; let --out be "
                    "on a file system that all of them share"
                )
        self._host = DeviceHost(self._population, self._numbers)
        keep_from_collector()
        return self._host.next_due
