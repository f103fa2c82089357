"""Who may log in at the site's broker, as the coordinator says, kept in the broker's folder.

The book of a site has what the coordinator has sent. What the broker reads, passwords and access
list, is made of the book and of the gateways that the folder's own file names, and can be made
again at any time. The latter stand above the coordinator: nothing that it says locks them out.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from fleet.errors import BrokerError, ConfigurationError, GatewayError, StoreError
from fleet.files import write_whole
from fleet.gateway.broker import (
    ACCESS_FILE,
    CONFIG_FILE,
    HASH_PATTERN,
    OWN_FILE,
    PASSWORD_FILE,
    PID_FILE,
    Own,
    access_list,
    hash_lines,
    password_hash,
)
from fleet.gateway.broker_reload import Login, reload_broker
from fleet.protocol.fields import NAME_PATTERN

Role = Literal["device", "gateway"]
BOOK_VERSION = 1
_SHOWN_CHARACTERS = 40
# Whose login tells which files the broker has read; no name of a device or a gateway.
SIGN_USER = "access.sign"

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """A user of the broker."""

    role: Role
    hash: str
    """As :func:`fleet.gateway.broker.password_hash` makes it."""


def read_entries(raw: object) -> dict[str, Entry | None]:
    """The entries of a page, None for those to remove; GatewayError names the first wrong one."""
    if not isinstance(raw, dict):
        raise GatewayError("access: entries must be a map of names")
    return {_name(name): _entry(name, value) for name, value in raw.items()}


def _name(name: object) -> str:
    if not isinstance(name, str) or NAME_PATTERN.fullmatch(name) is None:
        raise GatewayError(
            f"access: {_shown(name)} is no name: 1 to 32 letters, digits, '_' or '-'"
        )
    return name


def _entry(name: str, raw: object) -> Entry | None:
    if raw is None:
        return None
    if not isinstance(raw, dict) or raw.keys() != {"role", "hash"}:
        raise GatewayError(f"access: {name}: role and hash are wanted, or null to remove it")
    role, line = raw["role"], raw["hash"]
    if role not in get_args(Role):
        raise GatewayError(
            f"access: {name}: role must be {' or '.join(get_args(Role))}, not {_shown(role)}"
        )
    if not isinstance(line, str) or HASH_PATTERN.fullmatch(line) is None:
        raise GatewayError(
            f"access: {name}: hash must be $7$iterations$salt$digest as mosquitto_passwd makes "
            f"it, not {_shown(line)}"
        )
    return Entry(role, line)


def _shown(value: object) -> str:
    """What it was, without the lines and megabytes that a hostile one has."""
    if isinstance(value, str):
        value = value[: _SHOWN_CHARACTERS + 1]
    elif not isinstance(value, int | float | None):
        return f"a {type(value).__name__}"
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


class AccessBook:
    """Users of one broker; for any thread, one after the other."""

    def __init__(self, folder: Path, path: Path) -> None:
        """Of the broker in ``folder``; the book is the file ``path``. Nothing is written yet.

        ConfigurationError where no broker's configuration was ever in the folder, StoreError
        where the book can't be read.
        """
        self.folder = folder
        self.path = path
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._cursor = 0
        self._copy: Own | None = None
        # Whether the broker has read the files as they were last written: it may have started
        # before us.
        self._is_read = False
        self._sign_line = ""
        self._read()
        self._own()

    @property
    def cursor(self) -> int:
        """Of the last page that has taken effect; 0 before the first."""
        return self._cursor

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What the coordinator has sent."""
        return dict(self._entries)

    def keep(self) -> None:
        """Make the files what the book says, all of them, and let the broker read them.

        ConfigurationError or BrokerError where that can't be.
        """
        with self._lock:
            self._write(self._entries, self._cursor)

    def apply(self, page: Mapping[str, Entry | None], cursor: int) -> int:
        """Take a page of changes, and return when the broker has read it; gives the cursor.

        The book has it only then: who gets no answer sends the page again, which changes nothing
        where it had been taken. GatewayError where it can't have its effect.
        """
        with self._lock:
            entries = {**self._entries, **{name: one for name, one in page.items() if one}}
            for name, one in page.items():
                if one is None:
                    entries.pop(name, None)
            try:
                self._write(entries, cursor)
            except (BrokerError, ConfigurationError, StoreError) as error:
                raise GatewayError(f"access: {error}") from None
            return self._cursor

    # ---- the folder ------------------------------------------------------------------

    def _write(self, entries: dict[str, Entry], cursor: int) -> None:
        own = self._own()
        hashes = {name: one.hash for name, one in entries.items()} | dict(own.gateways)
        gateways = {name for name, one in entries.items() if one.role == "gateway"}
        passwords = hash_lines(hashes)
        rights = access_list(own.fleet, gateways | own.gateways.keys())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / OWN_FILE).exists():
                write_whole(self.folder / OWN_FILE, own.encode(), mode=0o600)
            if not (self.folder / CONFIG_FILE).exists():
                write_whole(self.folder / CONFIG_FILE, own.config)
            if not self._has(PASSWORD_FILE, passwords + self._sign_line) or not self._has(
                ACCESS_FILE, rights
            ):
                self._is_read = False
            if not self._is_read:
                sign = secrets.token_urlsafe(16)
                self._sign_line = hash_lines({SIGN_USER: password_hash(sign)})
                # Who may log in comes first: a broker that starts in between lets nobody in who
                # was removed.
                write_whole(self.folder / PASSWORD_FILE, passwords + self._sign_line, mode=0o600)
                write_whole(self.folder / ACCESS_FILE, rights, mode=0o600)
        except OSError as error:
            raise ConfigurationError(
                f"folder {self.folder} of the broker can't be written ({error}); check its rights "
                f"and the free space"
            ) from None
        if not self._is_read:
            login = Login(own.host, own.port, SIGN_USER, sign)
            if not reload_broker(self.folder / PID_FILE, login):
                log.info("no broker runs on %s; it reads its files when it starts", self.folder)
            self._is_read = True
        # Last of all: a cursor says that its page has taken effect.
        self._save(entries, cursor, own)

    def _own(self) -> Own:
        """What the folder's own file says, or what it has said where the file is gone."""
        path = self.folder / OWN_FILE
        try:
            return Own.decode(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if self._copy is None:
                raise ConfigurationError(
                    f"folder {self.folder} has no {OWN_FILE}, so it is no broker's; make it one "
                    f"with: tinyfleet broker config"
                ) from None
            return self._copy
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{path}: can't be read ({error}); make it again with: tinyfleet broker config"
            ) from None

    def _has(self, name: str, text: str) -> bool:
        try:
            return (self.folder / name).read_text(encoding="utf-8") == text
        except (FileNotFoundError, UnicodeDecodeError):
            return False

    # ---- the book --------------------------------------------------------------------

    def _read(self) -> None:
        try:
            raw = json.loads(self.path.read_text(encoding="utf-8"))
            if raw["version"] != BOOK_VERSION:
                raise ValueError(f"version {raw['version']} isn't {BOOK_VERSION}")
            entries = read_entries(raw["entries"])
            self._entries = {name: one for name, one in entries.items() if one}
            self._cursor = int(raw["cursor"])
            self._copy = Own.decode(json.dumps(raw["own"]))
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, GatewayError) as error:
            raise StoreError(
                f"{self.path}: can't be used as the book of the broker's users ({error}); move it "
                f"away: the coordinator sends all of them again"
            ) from None

    def _save(self, entries: dict[str, Entry], cursor: int, own: Own) -> None:
        if self.path.exists() and (entries, cursor, own) == (
            self._entries,
            self._cursor,
            self._copy,
        ):
            return
        text = json.dumps(
            {
                "version": BOOK_VERSION,
                "cursor": cursor,
                "entries": {name: one._asdict() for name, one in sorted(entries.items())},
                "own": vars(own),
            },
            indent=1,
        )
        try:
            write_whole(self.path, text + "\n", mode=0o600)
        except OSError as error:
            raise StoreError(
                f"{self.path}: can't be written ({error}); check its rights and the free space"
            ) from None
        self._entries, self._cursor, self._copy = entries, cursor, own
