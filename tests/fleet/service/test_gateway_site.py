"""What a site's gateway makes of its settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet.coordinator.superlink import supernode_of
from fleet.errors import ConfigurationError
from fleet.gateway.config import GatewaySettings
from fleet.security import Authority
from fleet.service.gateway_site import GatewaySite
from tests.fleet.coordinator.node_keys import write_key

TEXT = """
fleet = "barn"
gateway = "north"
store = "north.sqlite"
socket = "north.sock"
{}
[broker]
user = "north"
password_file = "north.password"
"""
LINK = 'superlink = "10.0.0.1:9092"\n'


def written(folder: Path, said: str) -> Path:
    path = folder / "north.toml"
    path.write_text(TEXT.format(said))
    return path


def options(folder: Path, said: str) -> list[str]:
    command = supernode_of(GatewaySettings.read(written(folder, said))).command
    return command[1 : command.index("--port")]


def test_a_supernode_dials_in_the_clear_where_no_authority_is_named(tmp_path: Path) -> None:
    assert options(tmp_path, LINK) == ["--insecure", "--superlink", "10.0.0.1:9092"]


def test_a_supernode_believes_the_authority_and_shows_the_key_that_are_named(
    tmp_path: Path,
) -> None:
    said = f'{LINK}superlink_ca = "ca.crt"\nsuperlink_key = "north.node"\n'
    assert options(tmp_path, said) == [
        *("--root-certificates", str(tmp_path / "ca.crt")),
        *("--auth-supernode-private-key", str(tmp_path / "north.node")),
        *("--superlink", "10.0.0.1:9092"),
    ]


def test_what_is_wrong_with_settings_is_said_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="superlink is missing"):
        GatewaySite(written(tmp_path, ""))
    with pytest.raises(ConfigurationError, match=r"ca\.crt: can't be used"):
        GatewaySite(written(tmp_path, f'{LINK}superlink_ca = "ca.crt"\n'))
    authority = Authority.create(tmp_path / "ca", "barn")
    ca = f'superlink_ca = "{authority.certificate}"\n'
    with pytest.raises(ConfigurationError, match=r"north\.node: can't be read"):
        GatewaySite(written(tmp_path, f'{LINK}{ca}superlink_key = "north.node"\n'))
    write_key(tmp_path / "north.node")
    with pytest.raises(ConfigurationError, match="password"):
        GatewaySite(written(tmp_path, f'{LINK}{ca}superlink_key = "north.node"\n'))
