"""A deployment of one machine in containers: the folder that deploy/compose.yaml goes by.

    DIR/compose.env          for `docker compose --env-file`: this folder, as whom things run, and
                             the project, by whose name volumes are this fleet's
    DIR/site.json            where the service is
    DIR/admin.token          0600, as all secrets
    DIR/ca/                  the fleet's certificate authority, which no container sees
    DIR/secrets/             keys and passwords, each for the containers that need it
    DIR/coordinator/         coordinator.toml, certificates, public keys of gateways
    DIR/gateway-N/           gateway.toml, ca.crt
    DIR/broker/              Mosquitto's configuration and users, which gateway 1 keeps
    DIR/keys/, DIR/unmasker/ with `is_private`: the keys' authority, which no container sees, and
                             the unmasker's own

What is written while it runs lies in volumes.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.coordinator.settings import (
    ApiSettings,
    BootstrapSettings,
    CoordinatorSettings,
    RetentionSettings,
    SigningSettings,
    SuperLinkSettings,
    UnmaskerSettings,
)
from fleet.files import write_whole
from fleet.gateway.broker import BrokerConfig, Tls, new_passwords, write_broker_config
from fleet.gateway.config import BrokerSettings, GatewaySettings, MetricsSettings
from fleet.security import key_files
from fleet.security.certificates import Authority
from fleet.security.listening import ListenSettings
from fleet.service.deployment import Deployment, SitePorts, require_none
from fleet.service.deployment_keys import KEYS, UNMASKER, make_keys
from fleet.service.folders import new_folder
from fleet.store import new_token
from fleet.unmasker.folder import TOKEN

GATEWAYS = 2
ENV_FILE = "compose.env"
USER = 10001
"""That of the images; another runs them where another made the folder."""

# Names and ports within the containers, as compose.yaml has them.
_API_PORT, _LINK_PORT, _PLAIN_PORT, _TLS_PORT, _METRICS_PORT = 8443, 9092, 1883, 8883, 9464
_UNMASKER_PORT = 8091
_SECRETS, _STATE, _BROKER = Path("/run/secrets"), Path("/var/lib/tinyfleet"), Path("/broker")


def init(
    folder: Path, fleet: str, site: str, hosts: Sequence[str], *, is_private: bool = False
) -> Deployment:
    """Make the folder, which is absent or empty. Nothing is started.

    `hosts` are names and addresses under which others than this machine reach it; `is_private`:
    with keys, by which devices know its tasks, and an unmasker. Raises
    `ConfigurationError` where there is a deployment already, `ConflictError` where anything else
    is: what is in the folder becomes the containers' user's.
    """
    require_none(folder)
    folder = folder.absolute()
    with new_folder(folder):
        return _fill(folder, fleet, site, hosts, is_private=is_private)


def _fill(
    folder: Path, fleet: str, site: str, hosts: Sequence[str], *, is_private: bool
) -> Deployment:
    for name in ("secrets", "coordinator", "coordinator/gateway-keys"):
        (folder / name).mkdir(exist_ok=True, mode=0o700)
    authority = Authority.create(folder / "ca", fleet)
    here = ("localhost", "127.0.0.1", *hosts)
    names = {number: f"{site}-gw{number}" for number in range(1, GATEWAYS + 1)}
    passwords = new_passwords(names.values())
    _write_broker(folder, authority, fleet, passwords, here)
    for number, name in names.items():
        _write_gateway(folder, authority, fleet, number, name, passwords[name])
    protection = _write_unmasker(folder, authority, fleet) if is_private else {}
    of_gateways = dict.fromkeys(names.values(), site)
    _write_coordinator(folder, authority, fleet, of_gateways, here, protection)
    _write_secret(folder, "database.password", password := secrets.token_urlsafe(24))
    _write_secret(
        folder, "store.url", f"postgresql+psycopg://tinyfleet:{password}@database/tinyfleet"
    )
    write_whole(folder / "admin.token", new_token() + "\n", mode=0o600)
    user = os.geteuid() or USER
    write_whole(
        folder / ENV_FILE,
        f"# For deploy/compose.yaml, whose head says what else can be set here.\n"
        # Compose wants small letters.
        f"COMPOSE_PROJECT_NAME=tinyfleet-{fleet.lower()}\n"
        f"TINYFLEET_FOLDER={folder}\nTINYFLEET_USER={user}:0\n"
        + ("COMPOSE_PROFILES=private\n" if is_private else ""),
    )
    made = Deployment(
        fleet,
        f"https://127.0.0.1:{_API_PORT}",
        {site: SitePorts(_PLAIN_PORT, _TLS_PORT)},
        dict.fromkeys(names.values(), site),
        runs_in_containers=True,
    )
    made.write(folder)
    if os.geteuid() == 0:
        for path in [folder, *folder.rglob("*")]:
            if not any(path.is_relative_to(folder / name) for name in ("ca", KEYS)):
                os.chown(path, USER, 0, follow_symlinks=False)
    return made


def _write_secret(folder: Path, name: str, text: str) -> None:
    write_whole(folder / "secrets" / name, text + "\n", mode=0o600)


def _write_broker(
    folder: Path, authority: Authority, fleet: str, passwords: dict[str, str], here: Sequence[str]
) -> None:
    certificate = authority.issue("broker", ("broker", *here))
    broker = folder / "broker"
    broker.mkdir(exist_ok=True, mode=0o700)
    write_whole(broker / "broker.crt", certificate.certificate.read_bytes())
    write_whole(broker / "broker.key", certificate.key.read_bytes(), mode=0o600)
    config = BrokerConfig(
        fleet,
        passwords,
        # Of the broker's own addresses: gateways ask there whether it has read its users again.
        host="broker",
        port=_PLAIN_PORT,
        tls=Tls(_BROKER / "broker.crt", _BROKER / "broker.key", _TLS_PORT),
    )
    write_broker_config(broker, config, seen_as=_BROKER)


def _write_gateway(
    folder: Path, authority: Authority, fleet: str, number: int, name: str, password: str
) -> None:
    label = f"gateway-{number}"
    (folder / label).mkdir(exist_ok=True, mode=0o700)
    write_whole(folder / label / "ca.crt", authority.certificate.read_bytes())
    _write_secret(folder, f"{label}.password", password)
    key = ec.generate_private_key(ec.SECP384R1())
    write_whole(
        folder / "secrets" / f"{label}.key",
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        ),
        mode=0o600,
    )
    write_whole(
        folder / "coordinator" / "gateway-keys" / f"{name}.pub",
        key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        ),
    )
    GatewaySettings(
        fleet=fleet,
        gateway=name,
        store=_STATE / "gateway.sqlite",
        socket=_STATE / "gateway.sock",
        share=f"{number}/{GATEWAYS}",
        superlink=f"coordinator:{_LINK_PORT}",
        superlink_ca=Path("ca.crt"),
        superlink_key=_SECRETS / f"{label}.key",
        broker=BrokerSettings(
            host="broker",
            port=_PLAIN_PORT,
            user=name,
            password_file=_SECRETS / f"{label}.password",
            # One of them keeps the broker's users.
            folder=_BROKER if number == 1 else None,
        ),
        metrics=MetricsSettings(host="0.0.0.0", port=_METRICS_PORT),
    ).write(folder / label / "gateway.toml")


def _write_unmasker(folder: Path, authority: Authority, fleet: str) -> dict[str, Any]:
    """Keys and an unmasker; what the coordinator's settings say of them."""
    certificate, key = Path("unmasker.crt"), Path("unmasker-tls.key")
    listen = ListenSettings(host="0.0.0.0", port=_UNMASKER_PORT, certificate=certificate, key=key)
    make_keys(folder, fleet, listen=listen)
    unmasker, issued = folder / UNMASKER, authority.issue("unmasker", ("unmasker",))
    write_whole(unmasker / certificate, issued.certificate.read_bytes())
    write_whole(unmasker / key, issued.key.read_bytes(), mode=0o600)
    target = folder / "coordinator"
    for source, name in (
        (folder / KEYS / key_files.TASK_KEY, key_files.TASK_KEY),
        (folder / KEYS / key_files.KEYRING, key_files.KEYRING),
        (unmasker / key_files.UNMASKER_PUBLIC, key_files.UNMASKER_PUBLIC),
        (unmasker / TOKEN, "unmasker.token"),
    ):
        source.replace(target / name)
    shutil.copyfile(target / key_files.KEYRING, folder / KEYS / key_files.KEYRING)
    shutil.copyfile(folder / KEYS / key_files.AUTHORITY_PUBLIC, target / key_files.AUTHORITY_PUBLIC)
    return {
        "signing": SigningSettings(
            key=Path(key_files.TASK_KEY),
            keyring=Path(key_files.KEYRING),
            authority=Path(key_files.AUTHORITY_PUBLIC),
        ),
        "unmaskers": (
            UnmaskerSettings(
                url=f"https://unmasker:{_UNMASKER_PORT}",
                token_file=Path("unmasker.token"),
                key=Path(key_files.UNMASKER_PUBLIC),
                ca=Path("ca.crt"),
            ),
        ),
    }


def _write_coordinator(
    folder: Path,
    authority: Authority,
    fleet: str,
    gateways: dict[str, str],
    here: Sequence[str],
    protection: dict[str, Any],
) -> None:
    certificate = authority.issue("coordinator", ("coordinator", *here))
    target = folder / "coordinator"
    write_whole(target / "ca.crt", authority.certificate.read_bytes())
    write_whole(target / "coordinator.crt", certificate.certificate.read_bytes())
    _write_secret(folder, "coordinator.key", certificate.key.read_text(encoding="ascii").strip())
    shown, key = Path("coordinator.crt"), _SECRETS / "coordinator.key"
    CoordinatorSettings(
        fleet=fleet,
        store=f"file:{_SECRETS / 'store.url'}",
        work=_STATE / "flower",
        api=ApiSettings(host="0.0.0.0", port=_API_PORT, certificate=shown, key=key),
        superlink=SuperLinkSettings(
            host="0.0.0.0",
            port=_LINK_PORT,
            certificate=shown,
            key=key,
            ca=Path("ca.crt"),
            gateway_keys=Path("gateway-keys"),
        ),
        retention=RetentionSettings(events_days=90, weights_days=90),
        bootstrap=BootstrapSettings(token_file=_SECRETS / "admin.token", gateways=gateways),
        **protection,
    ).write(target / "coordinator.toml")
