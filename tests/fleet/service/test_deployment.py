"""What `init` makes: files, their rights, and no second time."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from fleet.coordinator.settings import CoordinatorSettings
from fleet.errors import ConfigurationError, ServiceError
from fleet.gateway.config import GatewaySettings
from fleet.service import deployment
from fleet.service.deployment import Deployment, init, token_of
from fleet.store import Audit, Gateways, SqlStore, Tokens
from tests.fleet.service.conftest import Site


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("deployments") / "site"
    init(made, "plant", ["north", "south"], 2)
    return made


def test_a_deployment_is_made_once(folder: Path) -> None:
    before = Deployment.read(folder), token_of(folder)
    with pytest.raises(ConfigurationError, match="has a deployment already; `tinyfleet up"):
        init(folder, "plant", ["north"], 1)
    assert (Deployment.read(folder), token_of(folder)) == before


def test_a_folder_that_is_none_says_how_one_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"is no deployment .*`tinyfleet init"):
        Deployment.read(tmp_path)
    with pytest.raises(ConfigurationError, match="two sites have one name"):
        init(tmp_path / "new", "plant", ["north", "north"], 1)
    assert not (tmp_path / "new").exists()


def test_nobody_else_can_read_a_secret(folder: Path) -> None:
    secrets = {token_of(folder)}
    secrets |= {one.read_text().strip() for one in folder.glob("gateways/*.password")}
    assert len(secrets) == 5
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        private = b"PRIVATE KEY" in content or any(one.encode() in content for one in secrets)
        closed = not stat.S_IMODE(path.stat().st_mode) & 0o077
        hidden = any(
            not stat.S_IMODE(up.stat().st_mode) & 0o077
            for up in path.parents
            if up.is_relative_to(folder)
        )
        assert not private or closed, path
        if path.name.startswith("store") or path.suffix in (".log", ".sqlite"):
            assert closed or hidden, path
    for name in ("gateways", "coordinator", "run", "logs"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o700


def test_gateways_of_a_site_share_its_devices_and_one_keeps_its_broker(folder: Path) -> None:
    made = Deployment.read(folder)
    assert dict(made.gateways) == {
        "north-gw1": "north",
        "north-gw2": "north",
        "south-gw1": "south",
        "south-gw2": "south",
    }
    settings = {
        name: GatewaySettings.read(folder / "gateways" / f"{name}.toml") for name in made.gateways
    }
    assert [one.share for one in settings.values()] == ["1/2", "2/2"] * 2
    assert [one.broker.folder for one in settings.values()] == [
        folder / "brokers" / "north",
        None,
        folder / "brokers" / "south",
        None,
    ]
    ports = {name: one.broker.port for name, one in settings.items()}
    assert ports["north-gw1"] == ports["north-gw2"] == made.sites["north"].plain
    assert len({port for one in made.sites.values() for port in (one.plain, one.tls)}) == 4


def test_the_store_knows_the_gateways_and_the_administrator(folder: Path) -> None:
    settings = CoordinatorSettings.read(folder / "coordinator" / "coordinator.toml")
    store = SqlStore(settings.store_url())
    assert {one.gateway: one.site for one in Gateways(store).list()} == dict(
        Deployment.read(folder).gateways
    )
    token = Tokens(store).check(token_of(folder))
    assert token.role == "admin"
    (entry,) = Audit(store).page()
    assert (entry.who, entry.action, entry.object) == (
        "admin",
        "deployment.init",
        f"token:{token.token}",
    )
    store.close()


def test_a_retired_gateway_is_not_waited_for(
    folder: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(Deployment.read(folder).gateways)
    for name in names:
        site.operations.gateways.add(name, "north")
        site.operations.gateways.seen(name)
    monkeypatch.setattr(deployment, "processes", lambda _: {})
    monkeypatch.setattr(deployment, "connect", lambda _: site.client())
    monkeypatch.setattr(deployment, "UP_SECONDS", 0.0)
    deployment.up(folder)
    site.client().retire_gateway(names[0])
    told: list[tuple[str, int, int]] = []
    deployment.up(folder, lambda *one: told.append(one))
    assert told == [("waiting for gateways", len(names) - 1, len(names) - 1)]
    site.operations.gateways.add(names[0], "north")  # it is back, and wasn't heard yet
    with pytest.raises(ServiceError, match=f"still missing: {names[0]}"):
        deployment.up(folder)
