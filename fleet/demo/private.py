"""Keys of a demo's fleet, and an unmasker of its own: what makes its campaign private."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from fleet.coordinator.settings import CoordinatorSettings, SuperLinkSettings
from fleet.coordinator.superlink import ManagedProcess
from fleet.errors import UnmaskerError
from fleet.ports import free_port
from fleet.service.deployment_keys import UNMASKER, enrol_devices, make_keys, unmasker_problems
from simulator.machines.device_spec import DeviceSpec

START_SECONDS = 60.0


class PrivateFleet:
    """The keys of a fleet whose devices are provisioned here, and what a service knows of them.

    Attributes: `settings`, the file of the service's settings; `unmasker`, a process.
    """

    def __init__(self, work: Path, fleet: str, devices: Sequence[str], least_devices: int) -> None:
        """Make all keys in the folder ``work``; nothing runs yet."""
        self._work = work
        keys = make_keys(work, fleet, least_devices=least_devices)
        self._fleet_keys, self._device_keys = enrol_devices(work, fleet, devices)
        self.settings = work / "coordinator.toml"
        CoordinatorSettings(
            fleet=fleet, superlink=SuperLinkSettings(port=free_port()), **keys
        ).write(self.settings)
        self.unmasker = ManagedProcess(
            "unmasker",
            [sys.executable, "-m", "fleet.cli", "unmasker", "run", str(work / UNMASKER)],
            work / "logs" / "unmasker.log",
            os.environ,
        )

    def provisioned(self, devices: Iterable[DeviceSpec]) -> list[DeviceSpec]:
        """The devices with keys of their own, the authority's public one and a keyring."""
        return [
            replace(
                one,
                keys=self._device_keys[one.device].encode(),
                authority=self._fleet_keys.authority,
                keyring=self._fleet_keys.keyring.encode(),
            )
            for one in devices
        ]

    def wait_ready(self) -> None:
        """Wait until the unmasker answers. Raises `FlowerError` or `UnmaskerError` otherwise."""
        end = time.monotonic() + START_SECONDS
        while problems := unmasker_problems(self._work):
            self.unmasker.require_alive()
            if time.monotonic() > end:
                raise UnmaskerError("; ".join(problems))
            time.sleep(0.1)
