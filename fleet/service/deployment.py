"""A deployment on one machine: a folder that `init` makes, `up` starts and `down` stops.

    DIR/site.json            where the service is, and how its parts are called
    DIR/admin.token          0600
    DIR/ca/                  the fleet's certificate authority
    DIR/brokers/SITE/        Mosquitto's configuration, users and log
    DIR/gateways/NAME.toml   a gateway and what it keeps
    DIR/coordinator/         coordinator.toml, the store, Flower's state
    DIR/keys/, DIR/unmasker/ where it signs tasks and masks deltas (`deployment_keys`)
    DIR/run/, DIR/logs/      process ids and logs

For several machines the same parts are started by systemd or in containers (docs/operate.md).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fleet.coordinator.settings import (
    ApiSettings,
    CoordinatorSettings,
    RetentionSettings,
    SuperLinkSettings,
)
from fleet.coordinator.superlink import ManagedProcess, SuperLink, superlink_of, supernode_of
from fleet.errors import ConfigurationError, ServiceError
from fleet.files import write_whole
from fleet.gateway.broker import (
    BrokerConfig,
    Tls,
    find_mosquitto,
    new_passwords,
    write_broker_config,
)
from fleet.gateway.config import BrokerSettings, GatewaySettings
from fleet.ports import free_port
from fleet.security.certificates import Authority
from fleet.service.accounts import first_admin
from fleet.service.client import Client
from fleet.service.deployment_keys import UNMASKER, has_unmasker, make_keys, unmasker_problems
from fleet.store import Gateways, SqlStore

SITE_FILE = "site.json"
SETTINGS = Path("coordinator", "coordinator.toml")
"""Of its service, within the folder."""
UP_SECONDS = 120.0
ADMIN_DAYS = 3650.0


@dataclass(frozen=True)
class SitePorts:
    """A site's broker: where devices on this machine dial, and where modems do over TLS."""

    plain: int
    tls: int


@dataclass(frozen=True)
class Deployment:
    """What site.json has."""

    fleet: str
    url: str
    sites: Mapping[str, SitePorts]
    gateways: Mapping[str, str]
    """Gateway → site."""
    runs_in_containers: bool = False
    """Whether it is for Compose to start and to stop (`fleet.service.containers`)."""

    @classmethod
    def read(cls, folder: Path) -> Deployment:
        """Of a folder that `init` has made; ConfigurationError for others."""
        path = folder / SITE_FILE
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            sites = {name: SitePorts(**ports) for name, ports in raw["sites"].items()}
            in_containers = bool(raw.get("runs_in_containers", False))
            return cls(raw["fleet"], raw["url"], sites, dict(raw["gateways"]), in_containers)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{folder} is no deployment ({error}); `tinyfleet init {folder}` makes one"
            ) from None

    def write(self, folder: Path) -> None:
        """Into a folder."""
        write_whole(folder / SITE_FILE, json.dumps(asdict(self), indent=2) + "\n")


def token_of(folder: Path) -> str:
    """The administrator's token of a deployment."""
    path = folder / "admin.token"
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"{path}: can't be read ({error}); give --token") from None


def authority_of(folder: Path) -> Path:
    """Whom to believe that it is the deployment's service, where that speaks TLS."""
    return folder / "ca" / "ca.crt"


def connect(folder: Path) -> Client:
    """A client of the deployment's service, as its administrator."""
    return Client(Deployment.read(folder).url, token_of(folder))


def require_none(folder: Path) -> None:
    """Raises `ConfigurationError` where a folder has a deployment already."""
    if (folder / SITE_FILE).exists():
        raise ConfigurationError(
            f"{folder} has a deployment already; `tinyfleet up {folder}` starts it"
        )


def init(
    folder: Path,
    fleet: str,
    sites: Sequence[str],
    gateways_per_site: int,
    *,
    is_private: bool = False,
) -> Deployment:
    """Make a deployment. Nothing is started; ConfigurationError where there is one already.

    ``is_private``: with keys, by which devices know its tasks, and an unmasker.
    """
    require_none(folder)
    if len(set(sites)) != len(sites):
        raise ConfigurationError("two sites have one name")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("gateways", "coordinator", "run", "logs"):
        (folder / name).mkdir(exist_ok=True, mode=0o700)
    authority = Authority.create(folder / "ca", fleet)
    superlink_port, api_port = free_port(), free_port()
    coordinator = CoordinatorSettings(
        fleet=fleet,
        api=ApiSettings(port=api_port),
        superlink=SuperLinkSettings(port=superlink_port),
        # What nothing is known to need after that; what devices reported is kept.
        retention=RetentionSettings(events_days=90, weights_days=90),
        **(make_keys(folder, fleet, seen_as=Path("..")) if is_private else {}),
    )
    settings_path = folder / SETTINGS
    coordinator.write(settings_path)
    store = SqlStore(CoordinatorSettings.read(settings_path).store_url())
    ports: dict[str, SitePorts] = {}
    gateways: dict[str, str] = {}
    try:
        known = Gateways(store)
        for site in sites:
            names = (
                [f"{site}-gw"]
                if gateways_per_site == 1
                else [f"{site}-gw{number}" for number in range(1, gateways_per_site + 1)]
            )
            ports[site] = SitePorts(free_port(), free_port())
            certificate = authority.issue(f"broker-{site}", ("localhost", "127.0.0.1"))
            passwords = new_passwords(names)
            write_broker_config(
                folder / "brokers" / site,
                BrokerConfig(
                    fleet,
                    passwords,
                    port=ports[site].plain,
                    tls=Tls(
                        certificate.certificate.absolute(),
                        certificate.key.absolute(),
                        ports[site].tls,
                        "127.0.0.1",
                    ),
                ),
            )
            for number, name in enumerate(names):
                gateways[name] = site
                known.add(name, site)
                _write_gateway(
                    folder,
                    fleet,
                    name,
                    passwords[name],
                    ports[site].plain,
                    superlink_port,
                    share=f"{number + 1}/{len(names)}" if len(names) > 1 else "",
                    # One of them keeps the broker's users.
                    broker_folder=folder / "brokers" / site if number == 0 else None,
                )
        _, secret = first_admin(store, "admin", ADMIN_DAYS * 86_400, "deployment.init")
    finally:
        store.close()
    write_whole(folder / "admin.token", secret + "\n", mode=0o600)
    made = Deployment(fleet, f"http://127.0.0.1:{api_port}", ports, gateways)
    made.write(folder)
    return made


def _write_gateway(
    folder: Path,
    fleet: str,
    name: str,
    password: str,
    broker_port: int,
    superlink_port: int,
    *,
    share: str,
    broker_folder: Path | None,
) -> None:
    secret = folder / "gateways" / f"{name}.password"
    write_whole(secret, password + "\n", mode=0o600)
    GatewaySettings(
        fleet=fleet,
        gateway=name,
        store=Path(f"{name}.sqlite"),
        socket=Path(f"{name}.sock"),
        share=share,
        superlink=f"127.0.0.1:{superlink_port}",
        broker=BrokerSettings(
            port=broker_port,
            user=name,
            password_file=Path(secret.name),
            folder=broker_folder.absolute() if broker_folder else None,
        ),
    ).write(folder / "gateways" / f"{name}.toml")


def processes(folder: Path) -> dict[str, ManagedProcess]:
    """The parts of a deployment in the order in which they are started, by name."""
    folder = folder.absolute()
    deployment = Deployment.read(folder)
    if deployment.runs_in_containers:
        raise ConfigurationError(
            f"{folder} runs in containers: docs/deploy.md says how they are started and stopped"
        )
    command = [sys.executable, "-m", "fleet.cli"]
    found: dict[str, ManagedProcess] = {}

    def add(name: str, line: Sequence[str], stop_seconds: float = 20.0) -> None:
        found[name] = ManagedProcess(
            name,
            line,
            folder / "logs" / f"{name}.log",
            os.environ,
            folder / "run" / f"{name}.json",
            stop_seconds,
        )

    for site in deployment.sites:
        config = folder / "brokers" / site / "mosquitto.conf"
        add(f"broker-{site}", [find_mosquitto(), "-c", str(config)])
    if has_unmasker(folder):
        add("unmasker", [*command, "unmasker", "run", str(folder / UNMASKER)])
    service = folder / SETTINGS
    # It has Flower's processes to stop.
    add("service", [*command, "serve", "--config", str(service)], 60.0)
    for gateway in deployment.gateways:
        config = folder / "gateways" / f"{gateway}.toml"
        add(f"gateway-{gateway}", [*command, "gateway", "run", "--config", str(config)])
    return found


def up(folder: Path, tell: Callable[[str, int, int], None] = lambda what, done, of: None) -> None:
    """Start what doesn't run, and return when the service is ready and has heard of all gateways.

    Raises `FlowerError` with the end of a log where something doesn't start, `ServiceError` where
    it isn't ready in time.
    """
    parts = processes(folder)
    for done, (name, process) in enumerate(parts.items()):
        tell(f"starting {name}", done, len(parts))
        process.start()
    client = connect(folder)
    gateways = Deployment.read(folder).gateways
    end = time.monotonic() + UP_SECONDS
    while True:
        missing: list[str] = []
        try:
            ready = client.ready()
            heard = {name for name, age in ready.gateways.items() if age is not None and age < 60}
            # One that was retired since the deployment was made isn't waited for.
            wanted = gateways.keys() - {one.gateway for one in client.gateways() if one.retired}
            missing = [*ready.problems, *sorted(wanted - heard)]
            if has_unmasker(folder):
                missing += unmasker_problems(folder)
            tell("waiting for gateways", len(wanted & heard), len(wanted))
        except ServiceError as error:
            missing = [str(error)]
        if not missing:
            return
        for process in parts.values():
            process.require_alive()
        if time.monotonic() > end:
            raise ServiceError(
                f"not ready after {UP_SECONDS:.0f} s, still missing: {'; '.join(missing)}; "
                f"logs are in {folder / 'logs'}"
            )
        time.sleep(0.3)


def down(folder: Path, tell: Callable[[str, int, int], None] = lambda what, done, of: None) -> int:
    """Stop what runs, the last first; returns how many processes that were."""
    parts = processes(folder)
    stopped = 0
    for done, (name, process) in enumerate(reversed(parts.items())):
        tell(f"stopping {name}", done, len(parts))
        if process.adopt():
            stopped += 1
        process.stop()
    for left in _left_behind(folder):
        left.stop()
    return stopped


def _left_behind(folder: Path) -> list[ManagedProcess]:
    """Flower's processes that whoever started them was killed too early to stop."""
    deployment = Deployment.read(folder)
    settings = CoordinatorSettings.read(folder.absolute() / SETTINGS)
    superlink = superlink_of(settings)
    nodes = [
        supernode_of(GatewaySettings.read(folder.absolute() / "gateways" / f"{name}.toml"))
        for name in deployment.gateways
    ]
    links = [superlink.superexec, superlink.link] if isinstance(superlink, SuperLink) else []
    return [one for one in (*nodes, *links) if one.adopt()]


def status(folder: Path) -> dict[str, bool]:
    """Which parts run."""
    return {name: process.adopt() for name, process in processes(folder).items()}
