"""An unmasker's folder: what `tinyfleet unmasker init` makes and the other commands use.

    DIR/unmasker.toml    fleet, least devices of a set, where it listens
    DIR/unmasker.key     its secret key, 0600
    DIR/unmasker.pub     its public key: for keyrings
    DIR/unmasker.sqlite  who is enrolled, which sets it has answered
    DIR/token            what the coordinator asks with, 0600; only its hash is used here

The key goes with the store: a copy of an older store would answer for devices twice
(docs/howto/keys.md).
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleet.clock import SystemClock
from fleet.errors import ConfigurationError
from fleet.files import write_whole
from fleet.protocol.fields import Name
from fleet.protocol.masking import MOST_DEVICES
from fleet.security import key_files
from fleet.security.listening import ListenSettings
from fleet.security.tokens import new_token, secret_hash
from fleet.unmasker.store import UnmaskerStore
from fleet.unmasker.unmasker import LEAST_DEVICES, LocalUnmasker

SETTINGS, STORE, TOKEN = "unmasker.toml", "unmasker.sqlite", "token"
PORT = 8091


class UnmaskerSettings(BaseModel):
    """What unmasker.toml has; paths are relative to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fleet: Name
    least_devices: Annotated[int, Field(ge=2, le=MOST_DEVICES)] = LEAST_DEVICES
    listen: ListenSettings = ListenSettings(port=PORT)

    @classmethod
    def read(cls, folder: Path) -> UnmaskerSettings:
        """Of an unmasker's folder; ConfigurationError names what is wrong."""
        path = folder / SETTINGS
        try:
            read = cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ConfigurationError(f"{path}: {field}: {first['msg']}") from None
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{folder} is no unmasker's ({error}); `tinyfleet unmasker init {folder}` makes one"
            ) from None
        paths = {name: folder / of for name, of in read.listen if isinstance(of, Path)}
        return read.model_copy(update={"listen": read.listen.model_copy(update=paths)})


def make(folder: Path, settings: UnmaskerSettings) -> bytes:
    """Make an unmasker with keys of its own, which nobody is enrolled at; returns its public key.

    Raises: KeysError where the folder has one.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    public = key_files.make_unmasker_key(folder)
    told = settings.model_dump(mode="json", exclude_none=True)
    write_whole(folder / SETTINGS, tomli_w.dumps(told))
    renew_token(folder)
    return public


def renew_token(folder: Path) -> None:
    """A new token for the coordinator; the one before is good no more, from the next request on."""
    token = new_token()
    store = UnmaskerStore(folder / STORE)
    try:
        write_whole(folder / TOKEN, token + "\n", mode=0o600)
        store.set_token(secret_hash(token), SystemClock().wall())
    finally:
        store.close()


def open_unmasker(folder: Path) -> LocalUnmasker:
    """The unmasker of a folder; KeysError, ConfigurationError, StoreError where it can't be."""
    settings = UnmaskerSettings.read(folder)
    private = key_files.read_key(folder / key_files.UNMASKER_KEY, key_files.UNMASKER_SECRET)
    store = UnmaskerStore(folder / STORE)
    return LocalUnmasker(private, settings.fleet, store, settings.least_devices)
