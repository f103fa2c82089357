"""What whoever provisions devices has: whom they are to believe, and what they have enrolled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fleet.errors import KeysError
from fleet.protocol.keys import DeviceKeys, SignedKeyring
from fleet.security import key_files


@dataclass(frozen=True)
class FleetKeys:
    """The authority's public key, and the keyring that it signed for a fleet."""

    authority: bytes
    keyring: SignedKeyring

    @classmethod
    def read(cls, folder: Path, fleet: str) -> FleetKeys:
        """Of a folder with `authority.pub` and `keyring`; KeysError where they don't fit."""
        authority = key_files.read_key(folder / key_files.AUTHORITY_PUBLIC, key_files.AUTHORITY)
        keyring = key_files.read_keyring(folder / key_files.KEYRING)
        if not keyring.is_of(authority, fleet):
            raise KeysError(
                f"{folder / key_files.KEYRING} isn't signed for fleet {fleet} by the authority of "
                f"{folder / key_files.AUTHORITY_PUBLIC}: sign it again with `tinyfleet keys ring`"
            )
        return cls(authority, keyring)


def new_devices(folder: Path, fleet: str, names: Iterable[str]) -> dict[str, DeviceKeys]:
    """New keys of devices, by name, whose enrolments are in the folder's `enrolments.csv` then."""
    made = {name: DeviceKeys.generate() for name in names}
    enrolments = [keys.enrol(fleet, name) for name, keys in made.items()]
    key_files.add_enrolments(folder / key_files.ENROLMENTS, enrolments)
    return made
