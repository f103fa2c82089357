"""Keys of a deployment: they fit each other, are nobody else's, and aren't in its backups."""

from __future__ import annotations

import io
import stat
import tarfile
from pathlib import Path

import pytest

from fleet.coordinator.key_holders import KeyHolders
from fleet.coordinator.settings import CoordinatorSettings
from fleet.errors import KeysError
from fleet.security import key_files
from fleet.service.backup import back_up
from fleet.service.deployment import SETTINGS, init, processes
from fleet.service.deployment_keys import enrol_devices, keys_of
from fleet.unmasker import folder as unmaskers


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("private") / "site"
    init(made, "plant", ["north"], 1, is_private=True)
    return made


def test_the_coordinator_signs_with_a_key_that_devices_believe_and_knows_the_unmasker(
    site: Path,
) -> None:
    settings = CoordinatorSettings.read(site / SETTINGS)
    holders = KeyHolders.of(settings)
    assert holders.keys is not None
    assert settings.signing is not None
    assert settings.signing.authority is not None
    assert settings.signing.authority.samefile(site / "keys" / "authority.pub")
    authority = key_files.read_key(site / "keys" / "authority.pub", key_files.AUTHORITY)
    assert holders.keys.keyring.is_of(authority, "plant")
    unmasker = unmaskers.open_unmasker(site / "unmasker")
    assert list(holders.unmaskers) == [unmasker.facts().key]
    assert holders.keys.keyring.keyring.unmaskers == (unmasker.facts().key,)
    assert "unmasker" in processes(site)


def test_secrets_of_it_are_for_their_owner_only(site: Path) -> None:
    for name in ("keys/authority.key", "keys/task.key", "unmasker/unmasker.key", "unmasker/token"):
        assert stat.S_IMODE((site / name).stat().st_mode) == 0o600
    for name in ("keys", "unmasker"):
        assert stat.S_IMODE((site / name).stat().st_mode) == 0o700


def test_its_devices_are_enrolled_and_again_with_new_keys(site: Path) -> None:
    fleet_keys, first = enrol_devices(site, "plant", ["cow-1", "cow-2"])
    _, again = enrol_devices(site, "plant", ["cow-2"])
    store = unmaskers.open_unmasker(site / "unmasker").store
    assert store.keys(["cow-1", "cow-2"]) == {
        "cow-1": first["cow-1"].exchange_public,
        "cow-2": again["cow-2"].exchange_public,
    }
    assert first["cow-2"] != again["cow-2"]
    assert fleet_keys.keyring == key_files.read_keyring(site / "keys" / "keyring")
    enrolments = key_files.read_enrolments(site / "keys" / "enrolments.csv")
    assert enrolments == [
        first["cow-1"].enrol("plant", "cow-1"),
        again["cow-2"].enrol("plant", "cow-2"),
    ]


def test_a_backup_has_keys_but_no_unmaskers_which_without_its_store_would_answer_twice(
    site: Path,
) -> None:
    out = io.BytesIO()
    back_up(None, out, "0.1.0", site)
    out.seek(0)
    with tarfile.open(fileobj=out) as tar:
        names = {Path(one).relative_to("files").as_posix() for one in tar.getnames() if "/" in one}
    assert {
        "keys/authority.key",
        "keys/task.key",
        "keys/keyring",
        "unmasker/unmasker.toml",
    } <= names
    assert not {
        name
        for name in names
        if name.startswith(("unmasker/unmasker.key", "unmasker/unmasker.sqlite"))
    }


def test_a_deployment_without_keys_says_how_one_gets_them(tmp_path: Path) -> None:
    init(tmp_path / "site", "plant", ["north"], 1)
    assert keys_of(tmp_path / "site") is None
    assert "unmasker" not in processes(tmp_path / "site")
    with pytest.raises(KeysError, match="tinyfleet init --private"):
        enrol_devices(tmp_path / "site", "plant", ["cow-1"])
