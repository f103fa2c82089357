"""Configuration of a coordinator's service: one TOML file, frozen once read.

fleet = "barn"
store = "sqlite:///coordinator.sqlite"   # relative to this file; or postgresql+psycopg://…, or
                                         # file:PATH, a file that has it, or env:NAME
work = "flower"                          # folder of the SuperLink's state and of logs

[api]
host = "127.0.0.1"
port = 8080

[superlink]
port = 9092                              # its own; or address = "HOST:PORT" of somebody else's
host = "0.0.0.0"                         # this and all below: for gateways on other machines
certificate = "superlink.crt"            # its hosts are that of the gateways, and 127.0.0.1
key = "superlink.key"
ca = "ca.crt"
gateway_keys = "gateway-keys"            # folder of GATEWAY.pub, whose SuperNodes are let in

[retention]                              # for ever where nothing is said
reports_days = 730
events_days = 90
weights_days = 90

[bootstrap]                              # of a store that has nobody yet
token_file = "admin.token"               # the first administrator's
gateways = { north-gw = "north" }        # gateway = "site"

[signing]                                # of tasks, and of masked campaigns: `tinyfleet keys`
key = "task.key"
keyring = "keyring"
authority = "authority.pub"              # whose keyring it has to be; unchecked where left out

[[unmaskers]]                            # each that the keyring names
url = "https://10.0.0.3:8443"
token_file = "unmasker.token"
key = "unmasker.pub"
ca = "unmasker-ca.crt"
operated_by = "the vets' association"    # where it isn't whoever runs this service

[tracing]                                # spans of rounds, over OTLP/HTTP: docs/howto/traces.md
endpoint = "http://10.0.0.2:4318"
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import urlsplit

import sqlalchemy as sa
import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fleet.coordinator.pace import HELLO_SECONDS, FlowerPace
from fleet.errors import ConfigurationError
from fleet.files import write_whole
from fleet.protocol.fields import Name
from fleet.protocol.keys import MAX_UNMASKERS
from fleet.security.listening import LOOPBACK, ListenSettings, Port
from fleet.tracing import TracingSettings


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ApiSettings(ListenSettings):
    """Where the API listens."""

    requests_per_minute: Annotated[int, Field(ge=1)] = 1200
    """Of one token; more are answered with 429."""


@dataclass(frozen=True)
class LinkTls:
    """What a SuperLink shows, and what those that dial it believe."""

    certificate: Path
    key: Path
    ca: Path


class SuperLinkSettings(_Settings):
    """A SuperLink of its own (`port`), or somebody else's (`address`, and `ca` where it has TLS).

    Its own listens on loopback. With certificate, key and ca it has TLS, and with `gateway_keys` it
    lets those SuperNodes in only whose public keys lie there. Beyond loopback it has both.
    """

    port: Port | None = None
    address: str = ""
    host: str = "127.0.0.1"
    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    gateway_keys: Path | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.port is None) == (not self.address):
            raise ValueError("either a port for one of its own, or the address of another")
        own = (self.certificate, self.key, self.gateway_keys)
        if self.address and (self.host not in LOOPBACK or any(own)):
            raise ValueError("of another only its address and ca are said here")
        return self

    @model_validator(mode="after")
    def _is_guarded_beyond_loopback(self) -> Self:
        if self.address:
            return self
        if len({one is None for one in (self.certificate, self.key, self.ca)}) > 1:
            raise ValueError("certificate, key and ca go together: `tinyfleet ca` makes all three")
        if self.host not in LOOPBACK and (self.certificate is None or self.gateway_keys is None):
            raise ValueError(
                f"host {self.host} is more than this machine: weights would cross the network in "
                "the clear, and anybody could be a gateway. Give certificate, key, ca and "
                "gateway_keys, or listen on 127.0.0.1"
            )
        return self

    @property
    def tls(self) -> LinkTls | None:
        """Of one of its own; None where it has none."""
        if self.certificate is None or self.key is None or self.ca is None:
            return None
        return LinkTls(self.certificate, self.key, self.ca)


class PaceSettings(_Settings):
    """How long messages wait at gateways, and how often those that have nothing to do are asked."""

    sync_wait_seconds: Annotated[float, Field(gt=0, le=600)] = FlowerPace.sync_wait
    expecting_wait_seconds: Annotated[float, Field(gt=0, le=600)] = FlowerPace.expecting_wait
    hello_seconds: Annotated[float, Field(gt=0, le=3600)] = HELLO_SECONDS


Days = Annotated[float, Field(ge=1, le=36_500)]


class RetentionSettings(_Settings):
    """For how many days what piles up is kept; for ever where nothing is said.

    The audit log, campaigns with their rounds, and versions of models are always kept.
    """

    reports_days: Days | None = None
    """What devices reported, from their round's end on; of campaigns that have ended."""
    events_days: Days | None = None
    """What streams and webhooks tell of. A receiver that is away for longer misses some."""
    weights_days: Days | None = None
    """What training rounds made on the way, from the campaign's last round on."""


class BootstrapSettings(_Settings):
    """What a service adds to a store that lacks it, where nobody can be asked to: in containers.

    The token only where no token was ever issued, each gateway where none of its name is known.
    """

    token_file: Path | None = None
    """Holds the text of the first administrator's token, which somebody has made
    (`fleet.store.new_token`)."""
    gateways: dict[Name, Name] = {}
    """Gateway → site."""


class SigningSettings(_Settings):
    """The key that tasks are signed with, and the keyring that tells devices to believe it."""

    key: Path
    keyring: Path
    authority: Path | None = None
    """The public key that devices have been given, by which the keyring has to be signed. Where
    left out nobody notices another's keyring before devices decline its tasks."""


class UnmaskerSettings(_Settings):
    """An unmasker that the keyring names."""

    url: Annotated[str, Field(pattern=r"^https?://[^/]+/?$")]
    token_file: Path
    """Has the token that it lets us in with, in its first line."""
    key: Path
    """Its public key, as it has told it; it is known by that."""
    ca: Path | None = None
    """Of the authority that vouches for it, where the system's don't."""
    operated_by: Annotated[str, Field(max_length=80)] = ""
    """Who runs it, in words for people; empty: whoever runs this service."""

    @model_validator(mode="after")
    def _is_private(self) -> Self:
        host = urlsplit(self.url).hostname
        if self.url.startswith("http://") and host not in LOOPBACK:
            raise ValueError(
                f"url {self.url} is beyond this machine: the token would cross the network in the "
                "clear; use https"
            )
        return self


class CoordinatorSettings(_Settings):
    """All that a service is told."""

    fleet: Name
    store: str = "sqlite:///coordinator.sqlite"
    """`file:PATH` and `env:NAME` take the URL from elsewhere, so that its password isn't here."""
    work: Path = Path("flower")
    api: ApiSettings = ApiSettings()
    superlink: SuperLinkSettings = SuperLinkSettings(port=9092)
    pace: PaceSettings = PaceSettings()
    retention: RetentionSettings = RetentionSettings()
    bootstrap: BootstrapSettings = BootstrapSettings()
    signing: SigningSettings | None = None
    unmaskers: Annotated[tuple[UnmaskerSettings, ...], Field(max_length=MAX_UNMASKERS)] = ()
    tracing: TracingSettings | None = None

    def store_url(self) -> str:
        """The store's URL. ConfigurationError where what has it can't be read."""
        if self.store.startswith("file:"):
            return first_line(Path(self.store.removeprefix("file:")), "store")
        if not self.store.startswith("env:"):
            return self.store
        name = self.store.removeprefix("env:")
        if name not in os.environ:
            raise ConfigurationError(f"store {self.store}: the environment has no {name}")
        return os.environ[name]

    def folders(self) -> dict[str, Path]:
        """What grows on this machine's disks, by what it is for: the store where it is a file, and
        the SuperLink's state."""
        url = sa.make_url(self.store_url())
        store = {}
        if url.get_backend_name() == "sqlite" and url.database:
            store["store"] = Path(url.database).parent
        return {**store, "work": self.work}

    @classmethod
    def read(cls, path: Path) -> CoordinatorSettings:
        """The settings in TOML file ``path``; ConfigurationError names what is wrong."""
        where = "fleet/coordinator/settings.py shows an example"
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path}: can't be read ({error}); {where}") from None
        try:
            settings = cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ConfigurationError(f"{path}: {field}: {first['msg']}; {where}") from None
        folder = path.absolute().parent
        return settings.model_copy(
            update={
                "work": folder / settings.work,
                "api": _within(folder, settings.api),
                "superlink": _within(folder, settings.superlink),
                "bootstrap": _within(folder, settings.bootstrap),
                "signing": settings.signing and _within(folder, settings.signing),
                "unmaskers": tuple(_within(folder, one) for one in settings.unmaskers),
                "store": _at(folder, settings.store),
            }
        )

    def shown(self) -> dict[str, Any]:
        """What somebody may see of them: the store's address without its password."""
        told = self.model_dump(mode="json")
        if not self.store.startswith(("env:", "file:")):
            told["store"] = sa.make_url(self.store).render_as_string(hide_password=True)
        return told

    def write(self, path: Path) -> None:
        """Write the settings as a TOML file that ``read`` takes."""
        write_whole(path, tomli_w.dumps(self.model_dump(mode="json", exclude_none=True)))


_Part = TypeVar("_Part", bound=BaseModel)


def _within(folder: Path, part: _Part) -> _Part:
    """A part of the settings with its paths relative to a folder."""
    paths = {name: folder / value for name, value in part if isinstance(value, Path)}
    return part.model_copy(update=paths)


def first_line(path: Path, what: str) -> str:
    """What a file of a secret holds; ConfigurationError where that is nothing."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{what} {path}: can't be read ({error})") from None
    if not lines or not lines[0]:
        raise ConfigurationError(f"{what} {path}: is empty")
    return lines[0]


def _at(folder: Path, url: str) -> str:
    """An SQLite file's URL, or what has it, relative to a folder."""
    if url.startswith("file:"):
        return f"file:{folder / url.removeprefix('file:')}"
    if not url.startswith("sqlite:"):
        return url
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise ConfigurationError(f"store {url}: {error}") from None
    if not parsed.database or parsed.database == ":memory:":
        raise ConfigurationError(f"store {url}: a service keeps it in a file, sqlite:///FILE")
    return str(parsed.set(database=str(folder / parsed.database)))
