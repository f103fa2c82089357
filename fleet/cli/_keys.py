"""What `tinyfleet keys` does: an authority, a task key, keyrings. It needs no service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleet.cli._errors import CommandError
from fleet.cli._output import console, print_json, table
from fleet.protocol import fields
from fleet.protocol.keys import KEY_BYTES, Keyring, SignedKeyring, exchange_public
from fleet.security import key_files


def authority(folder: Path, *, as_json: bool) -> None:
    """Make an authority."""
    key = key_files.make_signing_key(folder, key_files.AUTHORITY_KEY, key_files.AUTHORITY_PUBLIC)
    _told(
        folder / key_files.AUTHORITY_PUBLIC,
        key.public,
        f"devices get it with their identity. {folder / key_files.AUTHORITY_KEY} signs keyrings "
        "and is needed for nothing else: keep it, and a copy of it, on a machine that is offline. "
        "Without it devices can't be told of other keys, but in their flash.",
        as_json=as_json,
    )


def task(folder: Path, *, as_json: bool) -> None:
    """Make a task key."""
    key = key_files.make_signing_key(folder, key_files.TASK_KEY, key_files.TASK_PUBLIC)
    _told(
        folder / key_files.TASK_PUBLIC,
        key.public,
        f"it goes into the keyring (`tinyfleet keys ring`). {folder / key_files.TASK_KEY} is for "
        "the coordinator, whose tasks devices take by it.",
        as_json=as_json,
    )


def ring(
    folder: Path,
    fleet: str,
    task_key: Path,
    unmaskers: Sequence[Path],
    generation: int | None,
    *,
    as_json: bool,
) -> None:
    """Sign a keyring, which takes the place of the one in the folder."""
    fields.name("keyring", "fleet", fleet)
    signer = key_files.read_signing_key(
        folder / key_files.AUTHORITY_KEY, key_files.AUTHORITY_SECRET
    )
    path = folder / key_files.KEYRING
    before = key_files.read_keyring(path).keyring.generation if path.exists() else 0
    if generation is not None and generation <= before:
        raise CommandError(
            f"--generation {generation}: {path} is of generation {before}, and devices that have "
            "it would leave a lower one alone"
        )
    signed = SignedKeyring.sign(
        signer,
        fleet,
        Keyring(
            before + 1 if generation is None else generation,
            key_files.read_key(task_key, key_files.TASK),
            tuple(key_files.read_key(one, key_files.UNMASKER) for one in unmaskers),
        ),
    )
    key_files.write_keyring(path, signed)
    if as_json:
        print_json({"keyring": str(path), **_facts(signed.keyring)})
        return
    console().print(
        f"{path} is of generation {signed.keyring.generation}; give it to the coordinator, which "
        "tells it to devices with their next task, and to whoever writes identities.",
        soft_wrap=True,
    )


def show(folder: Path, *, as_json: bool) -> None:
    """Which keys are there."""
    found: dict[str, Any] = {}
    for name, kind in key_files.KINDS.items():
        path = folder / name
        if not path.exists():
            continue
        key = key_files.read_key(path, kind)
        public = _public(key, kind)
        found[name] = {"kind": kind.title, "public": public.hex(), "secret": kind.is_secret}
    path = folder / key_files.KEYRING
    signed = key_files.read_keyring(path) if path.exists() else None
    if not found and signed is None:
        raise CommandError(f"{folder} has no keys; `tinyfleet keys authority {folder}` makes one")
    if as_json:
        print_json({"keys": found, "keyring": None if signed is None else _facts(signed.keyring)})
        return
    rows = [
        [name, "secret" if one["secret"] else "public", one["public"]]
        for name, one in found.items()
    ]
    console().print(table(f"Keys in {folder}", ["file", "", "public key"], rows))
    if signed is not None:
        ring = signed.keyring
        lines = [["task key", ring.task_key.hex()]]
        lines += [["unmasker", key.hex()] for key in ring.unmaskers]
        console().print(table(f"Keyring, generation {ring.generation}", ["", "key"], lines))


def _public(key: bytes, kind: key_files.KeyKind) -> bytes:
    """The public key of whatever a file has."""
    if not kind.is_secret:
        return key
    return exchange_public(key) if kind is key_files.UNMASKER_SECRET else key[KEY_BYTES:]


def _facts(ring: Keyring) -> dict[str, Any]:
    return {
        "generation": ring.generation,
        "task_key": ring.task_key.hex(),
        "unmaskers": [key.hex() for key in ring.unmaskers],
    }


def _told(path: Path, public: bytes, text: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"file": str(path), "public": public.hex()})
        return
    console().print(f"{path} is the public key: {text}", soft_wrap=True)
