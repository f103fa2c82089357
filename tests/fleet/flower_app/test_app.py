"""The app folder is one that Flower takes, and holds no more than the thin ends."""

from __future__ import annotations

import io
import tomllib
import zipfile

from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate

from fleet.coordinator.control import APP_FOLDER


def test_flower_accepts_the_app_without_warnings() -> None:
    _, warnings = load_and_validate(APP_FOLDER / "pyproject.toml")
    assert not warnings


def test_the_bundle_holds_the_two_ends_and_stays_small() -> None:
    content = build_fab_from_disk(APP_FOLDER)
    names = set(zipfile.ZipFile(io.BytesIO(content)).namelist())
    assert {"server_app.py", "client_app.py", "pyproject.toml"} <= names
    assert len(content) < 20_000
    assert build_fab_from_disk(APP_FOLDER) == content


def test_every_setting_that_a_run_overrides_is_declared() -> None:
    config = tomllib.loads((APP_FOLDER / "pyproject.toml").read_text())
    declared = set(config["tool"]["flwr"]["app"]["config"])
    assert declared == {
        "mode",
        "settings",
        "store",
        "campaign",
        "sync-wait-seconds",
        "num-server-rounds",
    }
