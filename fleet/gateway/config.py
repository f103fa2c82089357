"""Configuration of a gateway: one TOML file, frozen once read.

fleet = "barn"
gateway = "north"
store = "north.sqlite"          # paths are relative to this file
socket = "north.sock"
devices = ["cow-1", "cow-2"]    # or device_prefix = "cow-", or share = "1/2"; else all devices
superlink = "10.0.0.1:9092"     # for `tinyfleet gateway run`, which starts a SuperNode beside it
superlink_ca = "ca.crt"         # whom it believes to be the SuperLink: TLS where given
superlink_key = "north.node"    # whom the SuperLink takes it for: made by ssh-keygen -t ecdsa

[broker]
host = "127.0.0.1"
port = 1883
user = "north"
password_file = "north.password"
folder = "broker"               # that tinyfleet broker config wrote, where this gateway keeps it

[metrics]                       # figures for Prometheus, without a token: docs/operate.md
port = 9464

[tracing]                       # spans of rounds, over OTLP/HTTP: docs/howto/traces.md
endpoint = "http://10.0.0.2:4318"
devices = 3                     # of so many of a round there are spans
"""

from __future__ import annotations

import tomllib
import zlib
from pathlib import Path
from typing import Annotated, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fleet.errors import ConfigurationError
from fleet.files import write_whole
from fleet.protocol.fields import Name
from fleet.tracing import TracingSettings

# sockaddr_un has 108 bytes on Linux, 104 on macOS, with the zero at the end.
MAX_SOCKET_PATH_BYTES = 103


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BrokerSettings(_Settings):
    """Where the site's broker is and how to log in."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 1883
    user: Name
    password_file: Path
    ca_file: Path | None = None  # certificate authority: TLS where given
    folder: Path | None = None  # the broker's own, where this gateway keeps its users

    def password(self) -> str:
        """The first line of the password file; ConfigurationError if it can't be read."""
        try:
            lines = self.password_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"password_file {self.password_file}: can't be read ({error}); "
                f"write the password of user {self.user} into it"
            ) from None
        if not lines or not lines[0]:
            raise ConfigurationError(
                f"password_file {self.password_file} is empty; "
                f"write the password of user {self.user} into it"
            )
        return lines[0]


class MetricsSettings(_Settings):
    """Where Prometheus finds the gateway's figures, over HTTP and without a token."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)]


class GatewayTracing(TracingSettings):
    """The gateway's: also of how many devices of a round there are spans."""

    devices: Annotated[int, Field(ge=0, le=1000)] = 3


class GatewaySettings(_Settings):
    """All that a gateway daemon is told."""

    fleet: Name
    gateway: Name
    store: Path
    socket: Path
    devices: tuple[Name, ...] = ()
    device_prefix: str = ""
    share: Annotated[str, Field(pattern=r"^([1-9][0-9]{0,2}/[1-9][0-9]{0,2})?$")] = ""
    """`2/3`: the second of three gateways, which share their broker's devices among them."""
    superlink: str = ""
    """HOST:PORT of the SuperLink that its SuperNode dials (`tinyfleet gateway run`)."""
    superlink_ca: Path | None = None
    superlink_key: Path | None = None
    broker: BrokerSettings
    metrics: MetricsSettings | None = None
    tracing: GatewayTracing | None = None

    @model_validator(mode="after")
    def _share_is_a_part(self) -> Self:
        if self.share:
            part, parts = map(int, self.share.split("/"))
            if part > parts:
                raise ValueError(f"share: {self.share} is more than all; use 1/{parts} …")
            if self.devices or self.device_prefix:
                raise ValueError("share: goes with neither devices nor device_prefix")
        return self

    def serves(self, device: str) -> bool:
        """Whether ``device`` belongs to this gateway."""
        if self.share:
            part, parts = map(int, self.share.split("/"))
            return zlib.crc32(device.encode()) % parts == part - 1
        if not self.devices and not self.device_prefix:
            return True
        if device in self.devices:
            return True
        return bool(self.device_prefix) and device.startswith(self.device_prefix)

    @classmethod
    def read(cls, path: Path) -> GatewaySettings:
        """The settings in TOML file ``path``; ConfigurationError names what is wrong."""
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{path}: can't be read ({error}); fleet/gateway/config.py shows an example"
            ) from None
        try:
            settings = cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigurationError(
                f"{path}: {where}: {first['msg']}; fleet/gateway/config.py shows an example"
            ) from None
        folder = path.absolute().parent
        broker = settings.broker.model_copy(
            update={
                "password_file": folder / settings.broker.password_file,
                "ca_file": folder / settings.broker.ca_file if settings.broker.ca_file else None,
                "folder": folder / settings.broker.folder if settings.broker.folder else None,
            }
        )
        settings = settings.model_copy(
            update={
                "store": folder / settings.store,
                "socket": folder / settings.socket,
                "superlink_ca": folder / settings.superlink_ca if settings.superlink_ca else None,
                "superlink_key": folder / settings.superlink_key
                if settings.superlink_key
                else None,
                "broker": broker,
            }
        )
        if len(bytes(settings.socket)) > MAX_SOCKET_PATH_BYTES:
            raise ConfigurationError(
                f"{path}: the path of socket {settings.socket} is longer than "
                f"{MAX_SOCKET_PATH_BYTES} bytes; choose a shorter one, for instance under /tmp"
            )
        return settings

    def write(self, path: Path) -> None:
        """Write the settings as a TOML file that ``read`` takes."""
        write_whole(path, tomli_w.dumps(self.model_dump(mode="json", exclude_none=True)))
