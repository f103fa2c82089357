"""Mosquitto for a site: its configuration, and a broker as a child process.

Every client logs in with its own name and password; an access list confines a device to its
own topics and a gateway to those of its fleet. Nothing is persistent: whoever published something
publishes it again when the broker has lost it.

Who else may log in than those named here is the coordinator's to say and kept by a gateway
(:mod:`fleet.gateway.access`), which goes by the file `own.json` that is written here.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from fleet.clock import Clock, SystemClock
from fleet.errors import BrokerError, ConfigurationError, ProtocolError
from fleet.files import write_whole
from fleet.protocol import Delta, fields

START_SECONDS = 60.0
STOP_SECONDS = 5.0
PASSWORD_ITERATIONS = 101  # Mosquitto's own default
# A gateway that subscribes gets announce, status and task of all devices queued at once.
MAX_QUEUED_MESSAGES = 100_000
MAX_INFLIGHT_MESSAGES = 100
# A delta with the longest chunk, its topic and properties.
MAX_PACKET_BYTES = Delta.MAX_BYTES + 512

# Debian and Homebrew put the broker where a user's PATH doesn't look.
_USUAL_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")

# What `password_hash` makes: iterations, 12 bytes of salt, 64 bytes of digest. Mosquitto 2.0 takes
# salts of no other length, and it does nothing else while it counts iterations.
HASH_PATTERN = re.compile(
    r"\$7\$[1-9][0-9]{0,3}\$[A-Za-z0-9+/]{16}\$[A-Za-z0-9+/]{85}[AQgw]==", re.ASCII
)

# The files of a broker's folder.
CONFIG_FILE = "mosquitto.conf"
PASSWORD_FILE = "passwords"
ACCESS_FILE = "access"
PID_FILE = "mosquitto.pid"
OWN_FILE = "own.json"

_CONFIG = """\
# Made by fleet.gateway.broker. One broker per site.
{listeners}
# Of all listeners.
allow_anonymous false
password_file {folder}/passwords
acl_file {folder}/access
# By this the gateway finds the process, to let it read these two again.
pid_file {folder}/mosquitto.pid

# Nothing here needs to outlive the broker: gateways look after each connection at what it has and
# put back tasks and weights, devices announce themselves and send a delta until they have a
# receipt for it. So nothing is written to disk.
persistence false

# Memory for a gateway that subscribes to all its devices, and for clients that are slow. How many
# messages are under way at once is a client's own receive maximum.
max_queued_messages {max_queued}
max_inflight_messages {max_inflight}
max_packet_size {max_packet}
set_tcp_nodelay true

log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages true
"""

# Nobody can take over a session by using another client's identifier. Mosquitto wants that said of
# each listener.
_LISTENER = """\
listener {port} {host}
use_username_as_clientid true
"""

_TLS_LISTENER = """\
# For devices' modems and for gateways elsewhere.
listener {port} {host}
use_username_as_clientid true
certfile {certificate}
keyfile {key}
"""

_ACCESS_PATTERNS = """\
# Made by fleet.gateway.broker. %u is the user name, which is the name of the device.
pattern write fleet/{fleet}/dev/%u/announce
pattern write fleet/{fleet}/dev/%u/status
pattern read fleet/{fleet}/to/%u/+
pattern read fleet/{fleet}/blob/+/+/+
"""

_ACCESS_DELTAS = "pattern write fleet/{fleet}/gw/{gateway}/%u/delta\n"

_ACCESS_GATEWAY = """
user {gateway}
topic read fleet/{fleet}/dev/+/announce
topic read fleet/{fleet}/dev/+/status
topic readwrite fleet/{fleet}/to/+/task
topic write fleet/{fleet}/to/+/receipt
topic readwrite fleet/{fleet}/gw/{gateway}/+/delta
topic readwrite fleet/{fleet}/blob/+/+/+
topic read $SYS/broker/#
"""


@dataclass(frozen=True)
class Tls:
    """Where the broker listens with TLS, as whom: files that `tinyfleet ca issue` makes."""

    certificate: Path
    key: Path
    port: int = 8883
    host: str = "0.0.0.0"

    def __post_init__(self) -> None:
        """Refuse what a line of mosquitto.conf can't hold."""
        for path in (self.certificate, self.key):
            if not str(path).isprintable():
                raise ConfigurationError(f"{str(path)!r}: can't stand in a line; rename it")


@dataclass(frozen=True)
class BrokerConfig:
    """Who may log in at a site's broker, and where it listens.

    `host` and `port` are those without TLS: loopback, where nothing else is asked for.
    """

    fleet: str
    gateways: Mapping[str, str]  # name → password
    devices: Mapping[str, str] = field(default_factory=dict)
    port: int = 1883
    host: str = "127.0.0.1"
    tls: Tls | None = None

    def __post_init__(self) -> None:
        """Refuse names that can't stand in topics and passwords that a file can't hold."""
        try:
            fields.name("broker", "fleet", self.fleet)
            for name in (*self.gateways, *self.devices):
                fields.name("broker", "user", name)
        except ProtocolError as error:
            raise ConfigurationError(str(error)) from None
        both = self.gateways.keys() & self.devices.keys()
        if both:
            raise ConfigurationError(
                f"{', '.join(sorted(both))}: a gateway and a device have one name; rename one"
            )

    def config_text(self, folder: Path | str) -> str:
        """mosquitto.conf for files in ``folder``."""
        listeners = _LISTENER.format(port=self.port, host=self.host)
        if self.tls:
            listeners += _TLS_LISTENER.format(
                port=self.tls.port,
                host=self.tls.host,
                certificate=self.tls.certificate.absolute(),
                key=self.tls.key.absolute(),
            )
        return _CONFIG.format(
            listeners=listeners,
            folder=folder,
            max_queued=MAX_QUEUED_MESSAGES,
            max_inflight=MAX_INFLIGHT_MESSAGES,
            max_packet=MAX_PACKET_BYTES,
        )

    def access_text(self) -> str:
        """The access list of those named here."""
        return access_list(self.fleet, self.gateways)


@dataclass(frozen=True)
class Own:
    """What a broker's folder holds whatever the coordinator says: the file `own.json`.

    Its gateways' passwords are hashes.
    """

    fleet: str
    gateways: Mapping[str, str]
    host: str
    port: int
    """Where the broker listens without TLS."""
    config: str
    """The whole of mosquitto.conf."""

    def encode(self) -> str:
        """The file's text."""
        return json.dumps(vars(self), indent=1) + "\n"

    @classmethod
    def decode(cls, text: str) -> Own:
        """From the file's text; ValueError says what it lacks."""
        raw = json.loads(text)
        match raw:
            case {
                "fleet": str(fleet),
                "gateways": dict(gateways),
                "host": str(host),
                "port": int(port),
                "config": str(config),
            }:
                if all(HASH_PATTERN.fullmatch(str(line)) for line in gateways.values()):
                    return cls(fleet, gateways, host, port, config)
        raise ValueError("fleet, gateways with hashes, host, port and config are wanted")


def access_list(fleet: str, gateways: Iterable[str]) -> str:
    """The access list; devices send deltas to the site's ``gateways`` and nobody else."""
    names = sorted(gateways)
    deltas = (_ACCESS_DELTAS.format(fleet=fleet, gateway=name) for name in names)
    sections = (_ACCESS_GATEWAY.format(fleet=fleet, gateway=name) for name in names)
    return "".join([_ACCESS_PATTERNS.format(fleet=fleet), *deltas, *sections])


def write_broker_config(folder: Path, config: BrokerConfig, seen_as: Path | None = None) -> Path:
    """Write mosquitto.conf, access and passwords (hashed) into ``folder``; returns the first.

    In a container the broker sees it as another folder, ``seen_as``, and runs as nobody's root.

    Works again on the same folder when devices were added; a running broker re-reads
    passwords and access list on SIGHUP. `own.json` has what a gateway goes by that keeps the
    folder for the coordinator: the gateways, and not the devices, which then are the coordinator's.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    text = config.config_text(seen_as or folder)
    if seen_as is None and os.geteuid() == 0:
        # As root Mosquitto would change to a user that can't read this folder.
        text += "user root\n"
    passwords = {**config.gateways, **config.devices}
    hashes = {name: password_hash(password) for name, password in passwords.items()}
    gateways = {name: hashes[name] for name in config.gateways}
    own = Own(config.fleet, gateways, config.host, config.port, text)
    # Each of them whole: a broker that reads half a password file lets half of its devices in.
    write_whole(folder / OWN_FILE, own.encode(), mode=0o600)
    write_whole(folder / PASSWORD_FILE, hash_lines(hashes), mode=0o600)
    write_whole(folder / ACCESS_FILE, config.access_text(), mode=0o600)
    path = folder / CONFIG_FILE
    write_whole(path, text)
    return path


def password_lines(passwords: Mapping[str, str]) -> str:
    """Mosquitto's password file for these names."""
    return hash_lines({name: password_hash(password) for name, password in passwords.items()})


def hash_lines(hashes: Mapping[str, str]) -> str:
    """The same of what `password_hash` gives."""
    return "".join(f"{name}:{hashes[name]}\n" for name in sorted(hashes))


def password_hash(password: str) -> str:
    """What stands for a password in Mosquitto's password file, as mosquitto_passwd writes it.

    PBKDF2-HMAC-SHA512, made here so that no password ever lies in a file in plain text.
    """
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, PASSWORD_ITERATIONS, 64)
    salt_text, digest_text = (base64.b64encode(part).decode() for part in (salt, digest))
    return f"$7${PASSWORD_ITERATIONS}${salt_text}${digest_text}"


def new_passwords(names: Iterable[str]) -> dict[str, str]:
    """A random password (128 bits) for every name."""
    return {name: secrets.token_urlsafe(16) for name in names}


def find_mosquitto() -> str:
    """Path of the broker's program; BrokerError says how to get it."""
    found = shutil.which("mosquitto")
    if found is None:
        found = shutil.which("mosquitto", path=os.pathsep.join(_USUAL_FOLDERS))
    if found is None:
        raise BrokerError(
            "mosquitto isn't installed; on Debian and Ubuntu: apt-get install mosquitto, "
            "on macOS: brew install mosquitto"
        )
    return found


class Broker:
    """A Mosquitto that lives as long as the ``with`` block, or between ``start`` and ``stop``.

    ``kill`` and ``start`` again is what the kill tests do: folder and port stay.
    """

    def __init__(self, folder: Path, config: BrokerConfig, clock: Clock | None = None) -> None:
        """Write the configuration into ``folder``; nothing runs yet."""
        self.config = config
        self._clock = clock or SystemClock()
        self.folder = folder.absolute()
        self._config_path = write_broker_config(folder, config)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """Where it listens."""
        return self.config.host

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.config.port

    @property
    def log_path(self) -> Path:
        """What it says."""
        return self.folder / "mosquitto.log"

    @property
    def pid(self) -> int | None:
        """Its process, where it runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it and wait until it answers; BrokerError with its last words otherwise."""
        if self._process is not None:
            raise BrokerError("the broker runs already; stop it first")
        program = find_mosquitto()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-c", str(self._config_path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = self._clock.monotonic() + START_SECONDS
        while self._clock.monotonic() < end:
            if self._process.poll() is not None:
                break
            with (
                contextlib.suppress(OSError),
                socket.create_connection((self.host, self.port), timeout=1.0),
            ):
                # Somebody else could answer on this port while ours is about to fail.
                self._clock.sleep(0.05)
                if self._process.poll() is None:
                    return
            self._clock.sleep(0.02)
        self.kill()
        words = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        raise BrokerError(
            f"the broker didn't start on {self.host}:{self.port}; {self.log_path} ends with: "
            + " | ".join(words)
        )

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it like a power cut would."""
        self._end(signal.SIGKILL)

    def reload(self) -> None:
        """Let it read passwords and access list again."""
        if self._process:
            self._process.send_signal(signal.SIGHUP)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        self.stop()
