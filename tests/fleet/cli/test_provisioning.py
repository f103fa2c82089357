"""From `devices image --keys` to an unmasker that knows the device."""

from __future__ import annotations

from pathlib import Path

import pytest

from codegen.firmware.bundle import Bundle
from codegen.firmware.flash_record import AUTHORITY_KIND, KEYRING_KIND, KEYS_KIND, newest_records
from fleet.cli._image import enrolment_in
from fleet.protocol.keys import DeviceKeys, Keyring, SignedKeyring
from fleet.security import key_files
from fleet.security.listening import ListenSettings
from fleet.store import Audit
from fleet.unmasker.folder import UnmaskerSettings, make, open_unmasker
from tests.fleet.cli.test_image import bundle
from tests.fleet.cli.test_service_commands import Command, facts, site, tinyfleet
from tests.fleet.service.conftest import Site

__all__ = ["bundle", "site", "tinyfleet"]


@pytest.fixture
def keys(site: Site, tmp_path: Path) -> Path:
    """A folder with whom devices are to believe, and an unmasker beside it."""
    fleet = site.client().whoami().fleet
    folder = tmp_path / "keys"
    unmasker = make(tmp_path / "unmasker", UnmaskerSettings(fleet=fleet, listen=ListenSettings()))
    authority = key_files.make_signing_key(
        folder, key_files.AUTHORITY_KEY, key_files.AUTHORITY_PUBLIC
    )
    task = key_files.make_signing_key(folder, key_files.TASK_KEY, key_files.TASK_PUBLIC)
    ring = SignedKeyring.sign(authority, fleet, Keyring(1, task.public, (unmasker,)))
    key_files.write_keyring(folder / key_files.KEYRING, ring)
    return folder


def test_an_image_with_keys_is_enrolled_at_an_unmasker(
    tinyfleet: Command, bundle: Bundle, keys: Path, tmp_path: Path
) -> None:
    image = ("devices", "image", "d0", "--bundle", bundle.path, "--keys", keys)
    told = facts(tinyfleet(*image, "--out", tmp_path / "d0.bin", "--json"))
    region = bundle.manifest.flash.identity
    assert (told["address"], told["bytes"]) == (region.address, region.bytes)
    records = newest_records((tmp_path / "d0.bin").read_bytes())
    authority = key_files.read_key(keys / "authority.pub", key_files.AUTHORITY)
    assert records[AUTHORITY_KIND] == authority
    assert records[KEYRING_KIND] == key_files.read_keyring(keys / "keyring").encode()
    (enrolled,) = key_files.read_enrolments(keys / "enrolments.csv")
    device = DeviceKeys.decode(records[KEYS_KIND])
    assert enrolled == device.enrol(enrolled.fleet, "d0")
    assert (tmp_path / "d0.bin").stat().st_mode & 0o777 == 0o600
    assert device.exchange.hex() not in (keys / "enrolments.csv").read_text()
    enrol = ("unmasker", "enrol", tmp_path / "unmasker", keys / "enrolments.csv")
    assert facts(tinyfleet(*enrol, "--json")) == {"enrolled": ["d0"], "devices": 1}
    # Another image has other keys, which an unmasker doesn't take for the device's by itself.
    facts(tinyfleet(*image, "--out", tmp_path / "again.bin", "--json"))
    code, _, said = tinyfleet(*enrol)
    assert code == 1
    assert "d0 has other keys here; --replace" in said
    assert facts(tinyfleet(*enrol, "--replace", "--json"))["enrolled"] == ["d0"]
    again = enrolment_in((tmp_path / "again.bin").read_bytes())
    store = open_unmasker(tmp_path / "unmasker").store
    assert store.keys(["d0"]) == {"d0": again.exchange_key}


def test_a_device_that_makes_its_keys_is_enrolled_from_a_dump(
    tinyfleet: Command, bundle: Bundle, keys: Path, tmp_path: Path
) -> None:
    out = tmp_path / "d1.bin"
    image = ("devices", "image", "d1", "--bundle", bundle.path, "--out", out)
    code, said, _ = tinyfleet(*image, "--keys", keys, "--device-makes-keys")
    assert code == 0
    assert "makes its keys at its first start" in said
    assert KEYS_KIND not in newest_records(out.read_bytes())
    assert not (keys / "enrolments.csv").exists()
    code, _, said = tinyfleet("devices", "enrolment", out, "--keys", keys)
    assert code == 1
    assert "d1.bin: d1 has no keys of its own" in said
    facts(tinyfleet(*image, "--keys", keys, "--json"))  # stands for one that has made some
    told = facts(tinyfleet("devices", "enrolment", out, "--keys", tmp_path / "other", "--json"))
    assert told["device"] == "d1"
    (enrolled,) = key_files.read_enrolments(Path(told["file"]))
    assert enrolled.is_right
    code, _, said = tinyfleet(*image, "--device-makes-keys")
    assert code == 1
    assert "goes with --keys" in said


def test_a_keyring_that_isnt_the_fleets_makes_no_image_and_costs_no_password(
    tinyfleet: Command, site: Site, bundle: Bundle, keys: Path, tmp_path: Path
) -> None:
    ring = key_files.read_keyring(keys / "keyring").keyring
    authority = key_files.read_signing_key(keys / "authority.key", key_files.AUTHORITY_SECRET)
    key_files.write_keyring(keys / "keyring", SignedKeyring.sign(authority, "stable", ring))
    before = Audit(site.store).page()
    code, _, said = tinyfleet(
        *("devices", "image", "d0", "--bundle", bundle.path, "--out", tmp_path / "d0.hex"),
        *("--keys", keys),
    )
    assert code == 1
    assert "isn't signed for fleet" in said
    assert not (tmp_path / "d0.hex").exists()
    assert Audit(site.store).page() == before
