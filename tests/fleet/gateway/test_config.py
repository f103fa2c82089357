from __future__ import annotations

from pathlib import Path

import pytest

from fleet.errors import ConfigurationError
from fleet.gateway.config import BrokerSettings, GatewaySettings

TEXT = """
fleet = "barn"
gateway = "north"
store = "data/north.sqlite"
socket = "north.sock"
device_prefix = "cow-"
devices = ["pig"]
superlink_ca = "ca.crt"
superlink_key = "north.node"
[broker]
port = 1884
user = "north"
password_file = "north.password"
folder = "broker"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file_and_settings_come_back(tmp_path: Path) -> None:
    settings = GatewaySettings.read(written(tmp_path, TEXT))
    assert settings.store == tmp_path / "data" / "north.sqlite"
    assert settings.broker.password_file == tmp_path / "north.password"
    assert settings.broker.folder == tmp_path / "broker"
    assert settings.superlink_ca == tmp_path / "ca.crt"
    assert settings.superlink_key == tmp_path / "north.node"
    again = tmp_path / "again.toml"
    settings.write(again)
    assert GatewaySettings.read(again) == settings


@pytest.mark.parametrize(
    "folder", ["plain", "with space", 'a "quote"', "ü 🐄", "back\\slash", "\x7f"]
)
def test_settings_come_back_whatever_their_paths_are_called(tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    place.mkdir()
    settings = GatewaySettings.read(written(tmp_path, TEXT)).model_copy(
        update={"store": place / "store.sqlite"}
    )
    again = place / "gateway.toml"
    settings.write(again)
    assert GatewaySettings.read(again) == settings


def test_a_gateway_serves_listed_devices_those_with_its_prefix_or_all(tmp_path: Path) -> None:
    settings = GatewaySettings.read(written(tmp_path, TEXT))
    assert [settings.serves(name) for name in ("pig", "cow-1", "pig-2")] == [True, True, False]
    every = settings.model_copy(update={"devices": (), "device_prefix": ""})
    assert every.serves("anything")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('gateway = "north"', "", "gateway: Field required"),
        ('gateway = "north"', 'gateway = "a/b"', "gateway: "),
        ("port = 1884", "port = 0", "broker.port"),
        ("port = 1884", "prot = 1", "broker.prot"),
        ("[broker]", "[broker", "can't be read"),
        ('socket = "north.sock"', f'socket = "{"x" * 120}"', "choose a shorter one"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        GatewaySettings.read(written(tmp_path, TEXT.replace(old, new)))


def test_a_missing_or_empty_password_file_is_named(tmp_path: Path) -> None:
    settings = BrokerSettings(user="north", password_file=tmp_path / "no")
    with pytest.raises(ConfigurationError, match="can't be read"):
        settings.password()
    (tmp_path / "no").write_text("\n")
    with pytest.raises(ConfigurationError, match="is empty"):
        settings.password()
