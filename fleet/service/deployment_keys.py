"""Keys of a deployment on one machine: an authority, a task key, an unmasker of its own.

    DIR/keys/        authority.key, task.key, keyring, enrolments.csv
    DIR/unmasker/    an unmasker, which `up` starts beside the service

With all of it on one machine masks are separation of duty alone (docs/design/privacy.md); keys and
unmasker can be moved elsewhere (docs/howto/keys.md).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleet.coordinator.settings import SigningSettings, UnmaskerSettings
from fleet.errors import KeysError
from fleet.ports import free_port
from fleet.protocol.keys import DeviceKeys, Keyring, SignedKeyring
from fleet.security import key_files
from fleet.security.listening import ListenSettings
from fleet.security.provisioning import FleetKeys, new_devices
from fleet.service.health import problems
from fleet.unmasker import UnmaskerStore
from fleet.unmasker import folder as unmaskers
from fleet.unmasker.unmasker import LEAST_DEVICES

KEYS, UNMASKER = "keys", "unmasker"


def make_keys(
    folder: Path,
    fleet: str,
    *,
    seen_as: Path | None = None,
    least_devices: int = LEAST_DEVICES,
    listen: ListenSettings | None = None,
) -> dict[str, Any]:
    """Keys and an unmasker in a folder; what `CoordinatorSettings` say of them.

    Args:
        folder: of a deployment.
        fleet: its name.
        seen_as: what the folder is called in the settings; None: as it is called here.
        least_devices: of a set, as the unmasker has it.
        listen: where that is reached; None: at any port of this machine.
    """
    keys, unmasker = folder / KEYS, folder / UNMASKER
    keys.mkdir(mode=0o700)
    listen = listen or ListenSettings(port=free_port())
    public = unmaskers.make(
        unmasker,
        unmaskers.UnmaskerSettings(fleet=fleet, least_devices=least_devices, listen=listen),
    )
    authority = key_files.make_signing_key(
        keys, key_files.AUTHORITY_KEY, key_files.AUTHORITY_PUBLIC
    )
    task = key_files.make_signing_key(keys, key_files.TASK_KEY, key_files.TASK_PUBLIC)
    ring = SignedKeyring.sign(authority, fleet, Keyring(1, task.public, (public,)))
    key_files.write_keyring(keys / key_files.KEYRING, ring)
    here = folder if seen_as is None else seen_as
    return {
        "signing": SigningSettings(
            key=here / KEYS / key_files.TASK_KEY,
            keyring=here / KEYS / key_files.KEYRING,
            authority=here / KEYS / key_files.AUTHORITY_PUBLIC,
        ),
        "unmaskers": (
            UnmaskerSettings(
                url=listen.url,
                token_file=here / UNMASKER / unmaskers.TOKEN,
                key=here / UNMASKER / key_files.UNMASKER_PUBLIC,
            ),
        ),
    }


def keys_of(folder: Path) -> Path | None:
    """Where a deployment has its keys; None where it has none."""
    keys = folder / KEYS
    return keys if (keys / key_files.AUTHORITY_PUBLIC).exists() else None


def has_unmasker(folder: Path) -> bool:
    """Whether a deployment runs an unmasker."""
    return (folder / UNMASKER / unmaskers.SETTINGS).exists()


def unmasker_problems(folder: Path) -> list[str]:
    """What keeps a deployment's unmasker from its work."""
    found = problems(folder / UNMASKER / unmaskers.SETTINGS)
    return [f"unmasker: {problem}" for problem in found]


def enrol_devices(
    folder: Path, fleet: str, names: Sequence[str]
) -> tuple[FleetKeys, dict[str, DeviceKeys]]:
    """New keys of a deployment's devices, enrolled at its unmasker, and whom they are to believe.

    Raises: KeysError where the deployment has no keys.
    """
    keys = keys_of(folder)
    if keys is None:
        raise KeysError(f"{folder} has no keys; `tinyfleet init --private` makes one that has")
    fleet_keys, made = FleetKeys.read(keys, fleet), new_devices(keys, fleet, names)
    if has_unmasker(folder):
        store = UnmaskerStore(folder / UNMASKER / unmaskers.STORE)
        try:
            enrolments = [one.enrol(fleet, name) for name, one in made.items()]
            store.enrol(enrolments, fleet, time.time(), replace=True)
        finally:
            store.close()
    return fleet_keys, made
