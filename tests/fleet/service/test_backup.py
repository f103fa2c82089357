"""Backups of a deployment and of a service, and what is refused when they are restored."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import sqlite3
import stat
import tarfile
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fleet.cli import app
from fleet.coordinator.settings import CoordinatorSettings
from fleet.errors import BackupError, ConfigurationError, ConflictError, FleetError, StoreError
from fleet.gateway.broker import Own
from fleet.gateway.config import GatewaySettings
from fleet.service import containers
from fleet.service.backup import back_up, restore
from fleet.service.deployment import SETTINGS, init, token_of
from fleet.service.folders import new_folder
from fleet.store import Gateways, SqlStore, Tokens


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("backups") / "site"
    init(made, "plant", ["north"], 2)
    (made / "logs" / "service.log").write_text("what happened")
    (made / "gateways" / "north-gw1.sqlite").write_text("rounds that run")
    return made


@pytest.fixture(scope="module")
def archive(site: Path) -> bytes:
    out = io.BytesIO()
    done = back_up(None, out, "0.1.0", site)
    assert done.bytes == len(out.getvalue())
    assert done.rows > 3
    return out.getvalue()


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = {}
        for one in tar:
            content = tar.extractfile(one)
            assert content is not None
            assert one.mode == 0o600
            found[one.name] = content.read()
        return found


def packed(content: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o600
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def content_of(folder: Path) -> list[str]:
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*"))


def test_a_deployment_comes_back_elsewhere_with_its_keys_tokens_and_gateways(
    site: Path, archive: bytes, short_path: Path
) -> None:
    other = short_path / "deep" / "elsewhere"
    done = restore(io.BytesIO(archive), None, other)
    assert (done.about.fleet, done.about.program) == ("plant", "0.1.0")
    assert token_of(other) == token_of(site)
    store = SqlStore(CoordinatorSettings.read(other / SETTINGS).store_url())
    assert Tokens(store).check(token_of(other)).role == "admin"
    assert Gateways(store).sites() == {"north-gw1": "north", "north-gw2": "north"}
    store.close()
    for name in ("ca/ca.key", "gateways/north-gw2.password", "brokers/north/passwords"):
        assert (other / name).read_bytes() == (site / name).read_bytes()
    # Nothing leads back to the folder that it was.
    gateway = GatewaySettings.read(other / "gateways" / "north-gw1.toml")
    assert gateway.broker.folder == other / "brokers" / "north"
    own = Own.decode((other / "brokers/north/own.json").read_text())
    assert str(other) in own.config
    kept = [one for one in other.rglob("*") if one.is_file() and one.suffix != ".sqlite"]
    assert not [one for one in kept if f"{site}/".encode() in one.read_bytes()]
    assert all(stat.S_IMODE(one.stat().st_mode) == 0o600 for one in kept)
    # What runs and what is only of the moment isn't kept.
    assert not (other / "logs" / "service.log").exists()
    assert not (other / "gateways" / "north-gw1.sqlite").exists()


def test_a_backup_is_checked_by_what_every_machine_has(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "backup.tar").write_bytes(archive)
    shutil.unpack_archive(tmp_path / "backup.tar", tmp_path / "out", filter="data")
    lines = (tmp_path / "out" / "SHA256SUMS").read_text().splitlines()
    for line in lines:
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert {line.partition("  ")[2] for line in lines} == members(archive).keys() - {"SHA256SUMS"}


def test_one_bit_that_is_wrong_anywhere_is_found_and_nothing_is_written(
    archive: bytes, tmp_path: Path
) -> None:
    target = tmp_path / "site"
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        places = [one.offset_data + one.size // 2 for one in tar if one.size]
    for place in places:
        damaged = bytearray(archive)
        damaged[place] ^= 4
        with pytest.raises(BackupError):
            restore(io.BytesIO(bytes(damaged)), None, target)
    for size in (0, 100, 513, len(archive) // 2, places[-1]):
        with pytest.raises(BackupError):
            restore(io.BytesIO(archive[:size]), None, target)
    assert content_of(tmp_path) == []


def edited(archive: bytes, **changes: object) -> bytes:
    """With another backup.json, and sums that are right."""
    found = members(archive)
    found["backup.json"] = json.dumps({**json.loads(found["backup.json"]), **changes}).encode()
    lines = [
        f"{hashlib.sha256(data).hexdigest()}  {name}\n"
        for name, data in found.items()
        if name != "SHA256SUMS"
    ]
    found["SHA256SUMS"] = "".join(lines).encode()
    return packed(found)


def test_what_is_no_backup_of_ours_is_refused_by_name(archive: bytes, tmp_path: Path) -> None:
    target = tmp_path / "site"

    def refused(data: bytes, what: str, error: type[FleetError] = BackupError) -> None:
        with pytest.raises(error, match=what):
            restore(io.BytesIO(data), None, target)

    refused(b"x" * 5000, "is no backup, or is damaged")
    refused(packed({"etc/passwd": b"root"}), "doesn't begin with backup.json")
    refused(
        edited(archive, format=2, program="9.9"), "has format 2, .* restore it with tinyfleet 9.9"
    )
    refused(edited(archive, surprise=1), "backup.json")
    refused(edited(archive, is_deployment=False), "of a service: restore it with --config")
    found = members(archive)
    refused(packed({**found, "more": b""}), "'more', which no backup has")
    refused(packed({"backup.json": found["backup.json"], "files/../../x": b""}), "no backup has")
    refused(packed({"backup.json": found["backup.json"], "files//etc/x": b""}), "no backup has")
    without = {name: data for name, data in found.items() if name != "files/ca/ca.key"}
    refused(packed(without), "its members aren't those")
    assert content_of(tmp_path) == []


def test_a_store_of_a_newer_program_is_refused_with_its_version(
    archive: bytes, tmp_path: Path
) -> None:
    found = members(archive)
    path = tmp_path / "store.sqlite"
    path.write_bytes(found["store.sqlite"])
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    found["store.sqlite"] = path.read_bytes()
    path.unlink()
    newer = edited(packed(found), revision="9999", program="9.9")
    with pytest.raises(BackupError, match=r"of revision 9999, .* tinyfleet 9.9 or a newer one"):
        restore(io.BytesIO(newer), None, tmp_path / "site")
    assert content_of(tmp_path) == []


def test_nothing_is_written_over(site: Path, archive: bytes, tmp_path: Path) -> None:
    before = content_of(site)
    with pytest.raises(ConflictError, match="already: nothing is written over"):
        restore(io.BytesIO(archive), None, site)
    assert content_of(site) == before
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "note.txt").write_text("mine")
    with pytest.raises(ConflictError, match=r"note\.txt already"):
        restore(io.BytesIO(archive), None, tmp_path / "site")
    assert content_of(tmp_path) == ["site", "site/note.txt"]


FAILS = pytest.mark.parametrize("after_files", [3, None], ids=["a full disk", "no store"])


def fail(patch: pytest.MonkeyPatch, after_files: int | None) -> type[Exception]:
    """From now on the disk is full after so many files, or the store can't be written."""
    if after_files is None:

        def away(*_: object) -> int:
            raise StoreError("it went away")

        patch.setattr("fleet.service.backup.restore_store", away)
        return StoreError
    written = iter(range(after_files))
    sync = os.fsync

    def full(descriptor: int) -> None:
        if next(written, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    patch.setattr(os, "fsync", full)
    return OSError


@FAILS
@pytest.mark.parametrize("is_there", [False, True])
def test_a_restored_deployment_that_fails_leaves_nothing_behind_and_can_be_tried_again(
    site: Path, archive: bytes, tmp_path: Path, after_files: int | None, is_there: bool
) -> None:
    target = tmp_path / "site"
    if is_there:
        target.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        error = fail(patch, after_files)
        with pytest.raises(error):
            restore(io.BytesIO(archive), None, target)
    assert content_of(tmp_path) == (["site"] if is_there else [])
    restore(io.BytesIO(archive), None, target)
    assert token_of(target) == token_of(site)


@FAILS
def test_a_restored_service_that_fails_leaves_no_file_behind_and_can_be_tried_again(
    tmp_path: Path, after_files: int | None
) -> None:
    settings = service(tmp_path / "one")
    for number in range(4):
        (settings.parent / "keys" / f"{number}.pub").write_text("public")
    SqlStore(CoordinatorSettings.read(settings).store_url()).close()
    back_up(settings, out := io.BytesIO(), "0.1.0")
    target = tmp_path / "two" / settings.name
    (target.parent / "mine").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        error = fail(patch, after_files)
        with pytest.raises(error):
            restore(io.BytesIO(out.getvalue()), target)
    # An empty store is nothing that a restore would write over.
    left = [one for one in content_of(target.parent) if not one.startswith("coordinator.sqlite")]
    assert left == ["mine"]
    restore(io.BytesIO(out.getvalue()), target)
    assert (target.parent / "keys" / "3.pub").read_text() == "public"


def test_a_folder_that_another_process_fills_is_left_to_it(archive: bytes, tmp_path: Path) -> None:
    target = tmp_path / "site"

    with new_folder(target):
        (target / "theirs").write_text("x")
        with pytest.raises(ConflictError, match="is being made by another"):
            restore(io.BytesIO(archive), None, target)
    assert content_of(tmp_path) == ["site", "site/theirs"]


def service(folder: Path, fleet: str = "plant") -> Path:
    """Settings of a service that names files beside them and elsewhere."""
    (folder / "keys").mkdir(parents=True)
    (folder / "keys" / "gw.pub").write_text("public")
    elsewhere = folder.with_name(f"{folder.name}-secret")
    elsewhere.write_text("private")
    settings = folder / "coordinator.toml"
    settings.write_text(
        f'fleet = "{fleet}"\n[bootstrap]\ntoken_file = "{elsewhere}"\n'
        '[superlink]\nport = 9092\ngateway_keys = "keys"\n'
    )
    return settings


def test_a_service_is_backed_up_with_what_lies_beside_its_settings_and_says_what_does_not(
    tmp_path: Path,
) -> None:
    settings = service(tmp_path / "one")
    store = SqlStore(CoordinatorSettings.read(settings).store_url())
    Gateways(store).add("gw", "barn")
    store.close()
    out = io.BytesIO()
    done = back_up(settings, out, "0.1.0")
    assert done.left_out == [str(tmp_path / "one-secret")]
    files = {name for name in members(out.getvalue()) if name.startswith("files/")}
    assert files == {"files/coordinator.toml", "files/keys/gw.pub"}
    # Where there are settings they stay; where there are none they come with it.
    there = service(tmp_path / "two")
    for target in (there, tmp_path / "three" / "coordinator.toml"):
        restore(io.BytesIO(out.getvalue()), target)
        again = SqlStore(CoordinatorSettings.read(target).store_url())
        assert Gateways(again).sites() == {"gw": "barn"}
        again.close()
    assert (tmp_path / "three" / "keys" / "gw.pub").read_text() == "public"
    with pytest.raises(ConflictError, match="isn't empty"):
        restore(io.BytesIO(out.getvalue()), there)
    with pytest.raises(BackupError, match=r"of fleet plant, and .* of fleet other"):
        restore(io.BytesIO(out.getvalue()), service(tmp_path / "four", "other"))
    with pytest.raises(BackupError, match="of a service: restore it with --config"):
        restore(io.BytesIO(out.getvalue()), None, tmp_path / "five")


def test_what_settings_name_by_way_of_another_folder_is_taken_for_where_it_lies(
    tmp_path: Path,
) -> None:
    settings = service(tmp_path / "one")
    (tmp_path / "certs").mkdir()
    for path in (tmp_path / "certs" / "a.crt", settings.with_name("a.key")):
        path.write_text("private")
    with settings.open("a") as file:
        file.write('[api]\ncertificate = "../certs/a.crt"\nkey = "keys/../a.key"\n')
    SqlStore(CoordinatorSettings.read(settings).store_url()).close()
    out = io.BytesIO()
    done = back_up(settings.parent / "keys" / ".." / settings.name, out, "0.1.0")
    assert done.left_out == sorted(
        [str(tmp_path / "certs" / "a.crt"), str(tmp_path / "one-secret")]
    )
    files = {name for name in members(out.getvalue()) if name.startswith("files/")}
    assert files == {"files/coordinator.toml", "files/keys/gw.pub", "files/a.key"}
    restore(io.BytesIO(out.getvalue()), tmp_path / "two" / "coordinator.toml")
    assert (tmp_path / "two" / "a.key").read_text() == "private"


def test_a_file_that_goes_while_a_backup_is_made_is_named_and_one_being_written_is_none(
    tmp_path: Path,
) -> None:
    made = tmp_path / "site"
    init(made, "plant", ["north"], 1)
    (made / "brokers" / "north" / "access.new").write_text("half")
    out = io.BytesIO()
    back_up(None, out, "0.1.0", made)
    assert not [one for one in members(out.getvalue()) if one.endswith(".new")]
    token = made / "admin.token"

    def tell(what: str, done: int, of: int) -> None:
        token.unlink(missing_ok=True)

    # The files were listed before the store is copied, and are read after it.
    with pytest.raises(BackupError, match=rf"{token}.*back up again"):
        back_up(None, io.BytesIO(), "0.1.0", made, tell)
    settings = service(tmp_path / "one")
    (settings.parent / "keys" / "gw2.pub.new").write_text("half")
    SqlStore(CoordinatorSettings.read(settings).store_url()).close()
    back_up(settings, out := io.BytesIO(), "0.1.0")
    assert not [one for one in members(out.getvalue()) if one.endswith(".new")]


def test_a_backup_that_cannot_be_written_is_refused(site: Path) -> None:
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(BackupError, match="No space left"),
    ):
        back_up(None, full, "0.1.0", site)


def test_a_store_that_is_not_up_to_date_is_not_migrated_by_a_backup(tmp_path: Path) -> None:
    settings = service(tmp_path / "one")
    with pytest.raises(StoreError, match=r"of revision none, .* the version that its service has"):
        back_up(settings, io.BytesIO(), "0.1.0")
    made = containers.init(tmp_path / "boxes", "plant", "north", [])
    assert made.runs_in_containers
    with pytest.raises(ConfigurationError, match="runs in containers"):
        back_up(None, io.BytesIO(), "0.1.0", tmp_path / "boxes")


def test_a_backup_is_its_owners_whatever_lies_beside_it(site: Path, tmp_path: Path) -> None:
    out, stale, others = tmp_path / "b.tar", tmp_path / "b.tar.new", tmp_path / "others"
    others.write_text("theirs")
    for is_link in (False, True):
        if is_link:
            stale.symlink_to(others)
        else:
            stale.touch()
            stale.chmod(0o666)
        found = CliRunner().invoke(app, ["backup", str(out), "--site", str(site)])
        assert found.exit_code == 0, found.output
        assert stat.S_IMODE(out.stat().st_mode) == 0o600
        assert not out.is_symlink()
        assert others.read_text() == "theirs"
        assert content_of(tmp_path) == ["b.tar", "b.tar.new", "others"]
        out.unlink()
        stale.unlink()


def test_when_a_restored_backup_was_made_is_said_in_utc(
    site: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = CliRunner()
    out = short_path / "b.tar"
    made = json.loads(run.invoke(app, ["backup", str(out), "--site", str(site), "--json"]).stdout)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        found = run.invoke(app, ["restore", str(out), "--site", str(short_path / "new")])
    finally:
        monkeypatch.undo()
        time.tzset()
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(made["made"]))
    assert f"was at {when}. " in found.output


def test_the_commands_say_what_they_did_and_fail_with_a_code(site: Path, short_path: Path) -> None:
    run = CliRunner()
    out = short_path / "b.tar"
    found = run.invoke(app, ["backup", str(out), "--site", str(site), "--json"])
    assert found.exit_code == 0, found.output
    facts = json.loads(found.stdout)
    assert (facts["fleet"], facts["file"], facts["left_out"]) == ("plant", str(out), [])
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert run.invoke(app, ["backup", str(out), "--site", str(site)]).exit_code != 0
    again = run.invoke(app, ["restore", str(out), "--site", str(short_path / "new"), "--json"])
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["rows"] == facts["rows"]
    assert run.invoke(app, ["restore", str(out), "--site", str(short_path / "new")]).exit_code != 0
    assert run.invoke(app, ["restore", str(out)]).exit_code != 0
    assert run.invoke(app, ["backup", str(short_path / "c.tar")]).exit_code != 0
    settings = short_path / "new" / SETTINGS
    for command, path in (("backup", short_path / "c.tar"), ("restore", out)):
        both = [command, str(path), "--site", str(site), "--config", str(settings)]
        with pytest.raises(ConfigurationError, match=r"which store\? .*--site.* or .*--config"):
            run.invoke(app, both, catch_exceptions=False)
    assert content_of(short_path) == sorted(
        ["b.tar", "new", *(f"new/{one}" for one in content_of(short_path / "new"))]
    )
