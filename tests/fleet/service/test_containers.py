"""The folder of a deployment in containers, what a new store begins with, and health checks."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fleet.cli import app
from fleet.cli._errors import CommandError
from fleet.coordinator.gateway_keys import check_key, read_keys
from fleet.coordinator.key_holders import KeyHolders
from fleet.coordinator.settings import BootstrapSettings, CoordinatorSettings
from fleet.errors import ConfigurationError, ConflictError, FleetError
from fleet.gateway.config import GatewaySettings
from fleet.gateway.server import SocketServer
from fleet.security import key_files
from fleet.security.tokens import secret_hash
from fleet.service import containers, deployment
from fleet.service.bootstrap import bootstrap
from fleet.service.deployment import Deployment
from fleet.service.health import problems
from fleet.store import Audit, Gateways, SqlStore, Tokens, new_token
from fleet.unmasker.folder import UnmaskerSettings, open_unmasker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("boxes") / "plant"
    containers.init(made, "plant", "home", ["plant.local"])
    return made


def test_a_folder_has_all_that_the_stack_is_told_and_each_secret_in_a_file_of_its_own(
    folder: Path,
) -> None:
    settings = CoordinatorSettings.read(folder / "coordinator" / "coordinator.toml")
    assert settings.store == "file:/run/secrets/store.url"
    assert settings.bootstrap.gateways == {"home-gw1": "home", "home-gw2": "home"}
    keys = read_keys(folder / "coordinator" / "gateway-keys")
    assert keys.keys() == settings.bootstrap.gateways.keys()
    for number in (1, 2):
        check_key(folder / "secrets" / f"gateway-{number}.key")
        gateway = GatewaySettings.read(folder / f"gateway-{number}" / "gateway.toml")
        assert gateway.share == f"{number}/2"
        assert (gateway.broker.folder is None) is (number == 2)
    password = (folder / "secrets" / "database.password").read_text().strip()
    assert f":{password}@database/" in (folder / "secrets" / "store.url").read_text()
    assert f"TINYFLEET_FOLDER={folder}\n" in (folder / "compose.env").read_text()


def test_a_secret_is_for_its_owner_and_in_no_other_file(folder: Path) -> None:
    files = [one for one in folder.rglob("*") if one.is_file()]
    secrets = {one for one in files if one.parent.name == "secrets" or one.suffix == ".key"}
    secrets |= {folder / "admin.token"}
    hidden = {one.read_text().strip() for one in secrets}
    for path in files:
        if path in secrets:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        else:
            assert not [one for one in hidden if one in path.read_text()], path


def test_with_an_unmasker_it_has_keys_that_fit_and_each_container_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "plant"
    containers.init(folder, "plant", "home", [], is_private=True)
    assert "COMPOSE_PROFILES=private\n" in (folder / "compose.env").read_text()
    settings = CoordinatorSettings.read(folder / "coordinator" / "coordinator.toml")
    holders = KeyHolders.of(settings)
    assert holders.keys is not None
    assert settings.signing is not None
    assert settings.signing.authority == folder / "coordinator" / "authority.pub"
    authority = key_files.read_key(folder / "keys" / "authority.pub", key_files.AUTHORITY)
    assert holders.keys.keyring.is_of(authority, "plant")
    unmasker = open_unmasker(folder / "unmasker")
    assert list(holders.unmaskers) == [unmasker.facts().key]
    token = (folder / "coordinator" / "unmasker.token").read_text().strip()
    assert unmasker.store.token_hash() == secret_hash(token)
    listen = UnmaskerSettings.read(folder / "unmasker").listen
    assert listen.certificate is not None
    assert settings.unmaskers[0].url == f"https://unmasker:{listen.port}"
    assert not {"authority.key", "task.key", "token"} & {
        one.name for one in (folder / "unmasker").iterdir()
    }
    for path in folder.rglob("*"):
        if path.suffix in (".key", ".token"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    (problem,) = problems(folder / "unmasker" / "unmasker.toml")
    assert "doesn't answer" in problem


def test_the_containers_user_is_who_made_the_folder_or_that_of_the_images(folder: Path) -> None:
    user = os.geteuid() or containers.USER
    assert f"TINYFLEET_USER={user}:0\n" in (folder / "compose.env").read_text()
    assert (folder / "secrets" / "store.url").stat().st_uid == user
    assert (folder / "ca" / "ca.key").stat().st_uid == os.geteuid()


def test_a_folder_that_has_anything_of_others_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Path] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda path, *_, **__: given.append(path))
    other = tmp_path / "other"
    other.write_text("somebody's")
    (tmp_path / "boxes").mkdir()
    (tmp_path / "boxes" / "link").symlink_to(other)
    with pytest.raises(ConflictError, match="has link already"):
        containers.init(tmp_path / "boxes", "plant", "home", [])
    assert given == []
    assert [one.name for one in (tmp_path / "boxes").iterdir()] == ["link"]


def test_nothing_that_a_link_leads_to_is_given_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.write_text("somebody's")
    given: dict[str, bool] = {}

    def chown(path: Path, user: int, group: int, *, follow_symlinks: bool = True) -> None:
        assert (user, group) == (containers.USER, 0)
        given[path.name] = follow_symlinks

    write = Deployment.write

    def write_and_link(made: Deployment, folder: Path) -> None:
        write(made, folder)
        (folder / "link").symlink_to(other)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", chown)
    monkeypatch.setattr(Deployment, "write", write_and_link)
    containers.init(tmp_path / "boxes", "plant", "home", [])
    assert not any(given.values())
    assert {"boxes", "link", "store.url"} <= given.keys()
    assert not {"ca", "ca.key"} & given.keys()


def test_a_folder_that_could_not_be_made_can_be_tried_again(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="fleet"):
        containers.init(tmp_path / "boxes", "no fleet's name", "home", [])
    assert list(tmp_path.iterdir()) == []
    containers.init(tmp_path / "boxes", "plant", "home", [])


def test_it_is_made_once_and_isnt_started_without_containers(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="has a deployment already"):
        containers.init(folder, "plant", "home", [])
    with pytest.raises(ConfigurationError, match="runs in containers"):
        deployment.up(folder)
    run = CliRunner()
    several = ["init", str(folder.with_name("x")), "--containers", "--sites", "a,b"]
    assert run.invoke(app, several).exit_code != 0
    assert not folder.with_name("x").exists()


@pytest.mark.parametrize("more", [["--containers"], []])
def test_what_is_to_be_done_next_is_told_as_a_shell_reads_it(
    short_path: Path, more: list[str]
) -> None:
    folder = short_path / "our barn"
    said = CliRunner().invoke(app, ["init", str(folder), "--fleet", "barn", *more]).stdout
    words = shlex.split(said.partition("Start it all with: ")[2])
    assert words[0] == ("docker" if more else "tinyfleet")
    (there,) = [one for one in words if one.startswith(str(short_path))]
    assert Path(there) in (folder, folder / "compose.env")
    assert Path(there).exists()


def test_what_others_reach_it_under_is_of_a_deployment_in_containers(tmp_path: Path) -> None:
    command = ["init", str(tmp_path / "site"), "--host", "barn.local"]
    with pytest.raises(CommandError, match="--host goes with --containers"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


# ---- what a store begins with ------------------------------------------------------------


@pytest.fixture
def store() -> Iterator[SqlStore]:
    made = SqlStore()
    yield made
    made.close()


def test_a_new_store_gets_gateways_and_a_token_and_one_that_has_them_stays(
    store: SqlStore, tmp_path: Path
) -> None:
    token = new_token()
    (tmp_path / "token").write_text(f"{token}\n")
    wanted = BootstrapSettings(token_file=tmp_path / "token", gateways={"gw": "barn"})
    bootstrap(store, wanted)
    assert Tokens(store).check(token).role == "admin"
    assert Gateways(store).sites() == {"gw": "barn"}
    objects = [one.object for one in Audit(store).page()]
    # What was taken away since isn't brought back.
    Tokens(store).revoke(Tokens(store).list()[0].token)
    Gateways(store).retire("gw")
    bootstrap(store, wanted)
    assert [one.revoked for one in Tokens(store).list()] == [True]
    assert Gateways(store).retired() == {"gw"}
    assert [one.object for one in Audit(store).page()] == objects
    assert token not in str(Audit(store).page())


def test_a_token_that_is_none_is_refused_and_nothing_is_added(
    store: SqlStore, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("let me in")
    with pytest.raises(ConfigurationError, match="a token is tf_ID_SECRET"):
        bootstrap(store, BootstrapSettings(token_file=tmp_path / "token", gateways={"g": "s"}))
    with pytest.raises(ConfigurationError, match="can't be read"):
        bootstrap(store, BootstrapSettings(token_file=tmp_path / "none"))
    assert Gateways(store).sites() == {}


# ---- health ------------------------------------------------------------------------------


def test_a_gateway_is_asked_over_its_socket_and_a_service_over_its_api(short_path: Path) -> None:
    gateway = short_path / "gateway.toml"
    gateway.write_text(
        'fleet = "plant"\ngateway = "gw"\nstore = "s"\nsocket = "g.sock"\n'
        '[broker]\nuser = "gw"\npassword_file = "p"\n'
    )
    (found,) = problems(gateway)
    assert "no answer" in found
    server = SocketServer(short_path / "g.sock", lambda operation, request: {"ended": 1})
    server.start()
    try:
        assert problems(gateway) == []
        gateway.write_text(gateway.read_text().replace("[broker]", 'superlink = "x:1"\n[broker]'))
        assert problems(gateway) == ["the SuperNode of gateway gw doesn't run"]
    finally:
        server.stop()
    service = short_path / "coordinator.toml"
    service.write_text('fleet = "plant"\n[api]\nport = 9\n')
    (found,) = problems(service)
    assert "doesn't answer at 127.0.0.1:9" in found
    run = CliRunner().invoke(app, ["health", str(service)])
    assert (run.exit_code, found in run.stdout) == (1, True)
