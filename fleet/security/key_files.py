"""Files of keys, keyrings and enrolments: what `tinyfleet keys` writes and services read.

A key's file is text: the first line says what it is, so that no key is taken for another, and the
second has it in hex. Files with secrets are readable by their owner only. Enrolments are a CSV
file, a device a line (masking.md, "Keys").
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fleet.errors import KeysError, ProtocolError
from fleet.files import write_whole
from fleet.protocol import fields
from fleet.protocol.keys import (
    KEY_BYTES,
    SECRET_KEY_BYTES,
    SIGNATURE_BYTES,
    Enrolment,
    SignedKeyring,
    SigningKey,
    exchange_public,
)

AUTHORITY_KEY, AUTHORITY_PUBLIC = "authority.key", "authority.pub"
TASK_KEY, TASK_PUBLIC = "task.key", "task.pub"
UNMASKER_KEY, UNMASKER_PUBLIC = "unmasker.key", "unmasker.pub"
KEYRING = "keyring"
ENROLMENTS = "enrolments.csv"

MOST_BYTES = 64 << 20
"""Of a file; more is none of ours, and isn't read."""
_COLUMNS = ("fleet", "device", "exchange_key", "signing_key", "signature")


@dataclass(frozen=True)
class KeyKind:
    """What a key's file is for."""

    title: str
    """The file's first line."""
    least: int
    most: int
    is_secret: bool
    remedy: str
    """The command that makes one."""


def _kind(title: str, size: int, *, is_secret: bool, made_by: str) -> KeyKind:
    return KeyKind(f"tinyfleet {title}", size, size, is_secret, f"`tinyfleet {made_by}` makes one")


AUTHORITY_SECRET = _kind(
    "authority key", SECRET_KEY_BYTES, is_secret=True, made_by="keys authority"
)
AUTHORITY = _kind("authority public key", KEY_BYTES, is_secret=False, made_by="keys authority")
TASK_SECRET = _kind("task key", SECRET_KEY_BYTES, is_secret=True, made_by="keys task")
TASK = _kind("task public key", KEY_BYTES, is_secret=False, made_by="keys task")
UNMASKER_SECRET = _kind("unmasker key", KEY_BYTES, is_secret=True, made_by="unmasker rotate")
UNMASKER = _kind("unmasker public key", KEY_BYTES, is_secret=False, made_by="unmasker init")
KINDS = {
    AUTHORITY_KEY: AUTHORITY_SECRET,
    AUTHORITY_PUBLIC: AUTHORITY,
    TASK_KEY: TASK_SECRET,
    TASK_PUBLIC: TASK,
    UNMASKER_KEY: UNMASKER_SECRET,
    UNMASKER_PUBLIC: UNMASKER,
}
"""Of the files that keys are in, by name."""
_KEYRING = KeyKind(
    "tinyfleet keyring", 0, fields.MAX_KEYRING_BYTES, False, "`tinyfleet keys ring` makes one"
)


def write_key(path: Path, kind: KeyKind, key: bytes) -> None:
    """Write a key; a secret one for its owner only. The folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, f"{kind.title}\n{key.hex()}\n", 0o600 if kind.is_secret else 0o644)


def write_new_key(path: Path, kind: KeyKind, key: bytes) -> None:
    """The same where there is no such file yet; KeysError where there is."""
    if path.exists():
        raise KeysError(
            f"{path} is there already, and what it stands for would be lost with it: "
            "move it away, or use another folder"
        )
    write_key(path, kind, key)


def read_key(path: Path, kind: KeyKind) -> bytes:
    """The key in a file of this kind. KeysError says what it is instead, and the remedy."""
    lines = _text(path, kind.remedy).split("\n")
    if lines[0] != kind.title:
        what = f"is a {lines[0]}" if lines[0].startswith("tinyfleet ") else "is no file of keys"
        raise KeysError(f"{path} {what[:80]}; a {kind.title} is wanted: {kind.remedy}")
    data = _unhex(lines[1]) if len(lines) == 3 and not lines[2] else None
    if data is None or not kind.least <= len(data) <= kind.most:
        raise KeysError(f"{path} is damaged: below its first line is no {kind.title} in hex")
    return data


def read_signing_key(path: Path, kind: KeyKind) -> SigningKey:
    """A pair of keys that signs: the authority's or the task key."""
    key = SigningKey(read_key(path, kind))
    if not key.is_pair:
        raise KeysError(f"{path} is damaged: its secret and its public key don't fit each other")
    return key


def make_signing_key(folder: Path, secret: str, public: str) -> SigningKey:
    """A new pair of keys that signs, in two files of a folder: KeysError where it has one.

    ``secret`` and ``public`` are the files' names, `AUTHORITY_KEY` and `AUTHORITY_PUBLIC` or
    `TASK_KEY` and `TASK_PUBLIC`.
    """
    key = SigningKey.generate()
    write_new_key(folder / secret, KINDS[secret], key.secret)
    write_key(folder / public, KINDS[public], key.public)
    return key


def make_unmasker_key(folder: Path, *, replace: bool = False) -> bytes:
    """A new pair of an unmasker's in a folder, of which the public key is returned.

    ``replace``: the one that is there is lost; else KeysError where there is one.
    """
    private = X25519PrivateKey.generate().private_bytes_raw()
    write = write_key if replace else write_new_key
    write(folder / UNMASKER_KEY, UNMASKER_SECRET, private)
    public = exchange_public(private)
    write_key(folder / UNMASKER_PUBLIC, UNMASKER, public)
    return public


def write_keyring(path: Path, keyring: SignedKeyring) -> None:
    """Write a signed keyring."""
    write_key(path, _KEYRING, keyring.encode())


def read_keyring(path: Path) -> SignedKeyring:
    """A signed keyring; whose it is isn't checked (`SignedKeyring.is_of`)."""
    data = read_key(path, _KEYRING)
    try:
        return SignedKeyring.decode(data)
    except KeysError as error:
        raise KeysError(f"{path} is damaged: {error}; {_KEYRING.remedy}") from None


def write_enrolments(path: Path, enrolments: Iterable[Enrolment]) -> None:
    """Write enrolments, in order of their devices' names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for one in sorted(enrolments, key=lambda one: (one.fleet, one.device)):
        keys = (one.exchange_key, one.signing_key, one.signature)
        writer.writerow((one.fleet, one.device, *(key.hex() for key in keys)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.getvalue())


def add_enrolments(path: Path, enrolments: Iterable[Enrolment]) -> None:
    """Add to the file, or make it; a device that was in it has its new keys there."""
    known = read_enrolments(path) if path.exists() else []
    merged = {(one.fleet, one.device): one for one in (*known, *enrolments)}
    write_enrolments(path, merged.values())


def read_enrolments(path: Path) -> list[Enrolment]:
    """Enrolments, each signed by its device. KeysError names the line of one that isn't."""
    text = _text(path, "`tinyfleet devices image --keys` and `devices enrolment` write one")
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: dict[tuple[str, str], Enrolment] = {}
    try:
        if tuple(next(rows, ())) != _COLUMNS:
            raise KeysError(f"isn't {','.join(_COLUMNS)}, as the first of such a file")
        for row in rows:
            one = _enrolment(row)
            if (one.fleet, one.device) in found:
                raise KeysError(f"device {one.device} is there twice")
            found[one.fleet, one.device] = one
    except (KeysError, ProtocolError, csv.Error) as error:
        raise KeysError(f"{path}, line {max(1, rows.line_num)}: {error}") from None
    return list(found.values())


def _enrolment(row: list[str]) -> Enrolment:
    if len(row) != len(_COLUMNS):
        raise KeysError(f"{len(row)} columns where {len(_COLUMNS)} are wanted")
    fields.name("enrolment", "fleet", row[0])
    fields.name("enrolment", "device", row[1])
    keys = []
    for name, text, size in zip(
        _COLUMNS[2:], row[2:], (KEY_BYTES, KEY_BYTES, SIGNATURE_BYTES), strict=True
    ):
        data = _unhex(text)
        if data is None or len(data) != size:
            raise KeysError(f"{name} isn't {size} bytes in hex")
        keys.append(data)
    one = Enrolment(row[0], row[1], *keys)
    if not one.is_right:
        raise KeysError(
            f"device {one.device} hasn't signed it: enrol the device again, or ask who changed it"
        )
    return one


def _text(path: Path, remedy: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise KeysError(f"{path} can't be read ({error}); {remedy}") from None
    if len(data) > MOST_BYTES:
        raise KeysError(f"{path} has more than {MOST_BYTES} bytes: it is no file of keys")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise KeysError(f"{path} isn't text: it is no file of keys; {remedy}") from None


def _unhex(text: str) -> bytes | None:
    """Bytes of lower-case hex without spaces; None for anything else."""
    try:
        data = bytes.fromhex(text)
    except ValueError:
        return None
    return data if data.hex() == text else None
