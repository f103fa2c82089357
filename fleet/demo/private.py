"""Keys of a demo's fleet, and an unmasker of its own: what makes its campaign private."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import httpx

from fleet.coordinator.settings import (
    CoordinatorSettings,
    SigningSettings,
    SuperLinkSettings,
    UnmaskerSettings,
)
from fleet.coordinator.superlink import ManagedProcess
from fleet.errors import UnmaskerError
from fleet.ports import free_port
from fleet.protocol.keys import DeviceKeys, Keyring, SignedKeyring, SigningKey
from fleet.security import key_files
from fleet.security.listening import ListenSettings
from fleet.unmasker import UnmaskerStore, folder
from simulator.machines.device_spec import DeviceSpec

START_SECONDS = 60.0


class PrivateFleet:
    """The keys of a fleet whose devices are provisioned here, and what a service knows of them.

    Attributes: `settings`, the file of the service's settings; `unmasker`, a process.
    """

    def __init__(self, work: Path, fleet: str, devices: Sequence[str], least_devices: int) -> None:
        """Make all keys in the folder ``work``; nothing runs yet."""
        self.authority = SigningKey.generate()
        task_key = SigningKey.generate()
        key_files.write_key(work / key_files.TASK_KEY, key_files.TASK_SECRET, task_key.secret)
        self._keys = {name: DeviceKeys.generate() for name in devices}
        self._folder = work / "unmasker"
        port = free_port()
        public = folder.make(
            self._folder,
            folder.UnmaskerSettings(
                fleet=fleet, least_devices=least_devices, listen=ListenSettings(port=port)
            ),
        )
        store = UnmaskerStore(self._folder / folder.STORE)
        store.enrol([of.enrol(fleet, name) for name, of in self._keys.items()], fleet, time.time())
        store.close()
        self._keyring = SignedKeyring.sign(
            self.authority, fleet, Keyring(1, task_key.public, (public,))
        )
        key_files.write_keyring(work / key_files.KEYRING, self._keyring)
        self._url = f"http://127.0.0.1:{port}"
        self.settings = work / "coordinator.toml"
        CoordinatorSettings(
            fleet=fleet,
            superlink=SuperLinkSettings(port=free_port()),
            signing=SigningSettings(
                key=work / key_files.TASK_KEY, keyring=work / key_files.KEYRING
            ),
            unmaskers=(
                UnmaskerSettings(
                    url=self._url,
                    token_file=self._folder / folder.TOKEN,
                    key=self._folder / key_files.UNMASKER_PUBLIC,
                ),
            ),
        ).write(self.settings)
        self.unmasker = ManagedProcess(
            "unmasker",
            [sys.executable, "-m", "fleet.cli", "unmasker", "run", str(self._folder)],
            work / "logs" / "unmasker.log",
            os.environ,
        )

    def provisioned(self, devices: Iterable[DeviceSpec]) -> list[DeviceSpec]:
        """The devices with keys of their own, the authority's public one and a keyring."""
        return [
            replace(
                one,
                keys=self._keys[one.device].encode(),
                authority=self.authority.public,
                keyring=self._keyring.encode(),
            )
            for one in devices
        ]

    def wait_ready(self) -> None:
        """Wait until the unmasker answers. Raises `FlowerError` or `UnmaskerError` otherwise."""
        end = time.monotonic() + START_SECONDS
        while True:
            self.unmasker.require_alive()
            try:
                if httpx.get(f"{self._url}/healthz", trust_env=False).is_success:
                    return
            except httpx.HTTPError:
                pass
            if time.monotonic() > end:
                raise UnmaskerError(f"the unmasker doesn't answer within {START_SECONDS:.0f} s")
            time.sleep(0.1)
