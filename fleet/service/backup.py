"""Backups: a tar archive with the store and configurations, made while the service runs.

    backup.json      what it is: format, version of the program, revision of the store, fleet, when
    store.sqlite     all rows as they were at one instant, whatever database they came from
    files/…          configurations, certificates, keys and passwords, as they lay in a folder
    SHA256SUMS       of all members above, as `sha256sum --check` reads it

The store's rows are copied within one transaction and into SQLite, so neither the machine that
makes a backup nor the one that restores it needs a database's own tools, and what came from SQLite
can be restored into PostgreSQL. Flower's state, gateways' stores and logs aren't in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fleet.coordinator.settings import CoordinatorSettings
from fleet.errors import BackupError, ConfigurationError, ConflictError, StoreError
from fleet.files import write_whole
from fleet.security.key_files import UNMASKER_KEY
from fleet.service.deployment import SETTINGS, Deployment
from fleet.service.folders import new_folder
from fleet.store import SqlStore, copy_store, restore_store, sqlite_url
from fleet.store.copying import Tell

FORMAT = 1
_ABOUT, _STORE, _SUMS, _FILES = "backup.json", "store.sqlite", "SHA256SUMS", "files/"
_PIECE = 1 << 20
_MOST_TEXT = 1 << 24
# What a deployment's folder holds besides configurations.
_NOT_KEPT = ("run/", "logs/", "coordinator/flower/")
_NOT_KEPT_ENDINGS = (
    ".sqlite",
    ".sqlite-wal",
    ".sqlite-shm",
    ".lock",
    ".sock",
    ".pid",
    ".log",
    ".new",
    # Its store isn't kept: a key without it would answer for sets that it has answered before.
    UNMASKER_KEY,
)
# Files of a deployment that say where its folder is.
_WITH_PATHS = ("mosquitto.conf", "own.json", ".toml")


@dataclass(frozen=True)
class About:
    """What a backup is; `made` is a Unix time, `folder` where its files lay.

    `settings` is the coordinator's configuration among its files; `is_deployment`: all of
    `tinyfleet init`'s folder, not only the coordinator's own.
    """

    format: int
    program: str
    revision: str
    fleet: str
    made: float
    folder: str
    settings: str
    is_deployment: bool


@dataclass(frozen=True)
class Done:
    """What was written: rows of the store, bytes of the archive, files, and named ones left out."""

    about: About
    rows: int
    bytes: int
    files: int
    left_out: Sequence[str] = ()


def back_up(
    settings_path: Path | None,
    out: IO[bytes],
    program: str,
    deployment: Path | None = None,
    tell: Tell = lambda what, done, of: None,
) -> Done:
    """Write a backup of the service with these settings, or of a whole deployment.

    `program` is the version of this program. Raises `FleetError` where the store can't be read,
    `BackupError` where a file is gone before it is read, or `out` can't be written.
    """
    settings_path = _plain(_settings_of(settings_path, deployment))
    settings = CoordinatorSettings.read(settings_path)
    folder = settings_path.parent if deployment is None else deployment.absolute()
    left_out: list[str] = []
    if deployment is not None:
        files = sorted(_files_of_deployment(folder))
    else:
        files, left_out = _files_of_settings(settings_path, settings)
    source = SqlStore(settings.store_url(), migrates=False)
    try:
        with tempfile.TemporaryDirectory(dir=_room_for(settings)) as work:
            copy = Path(work) / _STORE
            made = source.clock.wall()
            target = SqlStore(sqlite_url(copy), survives_power_cuts=False)
            try:
                rows = copy_store(source, target, tell)
            finally:
                target.close()
            about = About(
                format=FORMAT,
                program=program,
                revision=source.revision,
                fleet=settings.fleet,
                made=made,
                folder=str(folder),
                settings=settings_path.name if deployment is None else SETTINGS.as_posix(),
                is_deployment=deployment is not None,
            )
            size = _write(out, about, copy, [(one, folder / one) for one in files])
    finally:
        source.close()
    return Done(about, rows, size, len(files), left_out)


def _settings_of(settings_path: Path | None, deployment: Path | None) -> Path:
    if deployment is not None and settings_path is None:
        return deployment / SETTINGS
    if settings_path is not None and deployment is None:
        return settings_path
    raise ConfigurationError(
        "which store? Give a deployment's folder (--site) or a service's settings (--config)"
    )


def _plain(path: Path) -> Path:
    """Without .., which no name within an archive has; links stay what they are."""
    return Path(os.path.abspath(path))


def _room_for(settings: CoordinatorSettings) -> Path:
    """Where the copy lies meanwhile: in a container the temporary folder is memory."""
    settings.work.mkdir(parents=True, exist_ok=True)
    return settings.work


def _files_of_deployment(folder: Path) -> Iterator[str]:
    if Deployment.read(folder).runs_in_containers:
        raise ConfigurationError(
            f"{folder} runs in containers, and its store is there: docs/howto/back-up.md"
        )
    # Folders that go meanwhile are nothing to os.walk.
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            name = path.relative_to(folder).as_posix()
            inner = name.startswith(_NOT_KEPT) or "-flower/" in name
            if path.is_file() and not inner and not name.endswith(_NOT_KEPT_ENDINGS):
                yield name


def _files_of_settings(path: Path, settings: CoordinatorSettings) -> tuple[list[str], list[str]]:
    """The settings and what they name, where that lies beside them; and what lies elsewhere."""
    named = {path}
    parts = (settings.api, settings.superlink, settings.bootstrap, *settings.unmaskers)
    for part in (*parts, *([settings.signing] if settings.signing else [])):
        named |= {_plain(value) for _, value in part if isinstance(value, Path)}
    if settings.store.startswith("file:"):
        named.add(_plain(Path(settings.store.removeprefix("file:"))))
    found = {file for one in named for file in (_kept_of(one) if one.is_dir() else [one])}
    inside = [one for one in found if one.is_relative_to(path.parent) and one.is_file()]
    outside = [str(one) for one in found if not one.is_relative_to(path.parent)]
    return sorted(one.relative_to(path.parent).as_posix() for one in inside), sorted(outside)


def _kept_of(folder: Path) -> Iterator[Path]:
    return (one for one in folder.iterdir() if not one.name.endswith(_NOT_KEPT_ENDINGS))


class _Summing(io.RawIOBase):
    """Reads a file and sums it up, so that it is read once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sum = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sum.update(data)
        return data


def _write(out: IO[bytes], about: About, store: Path, files: Sequence[tuple[str, Path]]) -> int:
    """The archive, into a file or a pipe; gives its bytes."""
    for name, _ in files:
        _safe(_FILES + name)
    try:
        return _write_members(out, about, store, files)
    except OSError as error:
        raise BackupError(f"the backup isn't whole ({error}); back up again") from None


def _write_members(
    out: IO[bytes], about: About, store: Path, files: Sequence[tuple[str, Path]]
) -> int:
    sums: dict[str, str] = {}
    written = _Counting(out)
    with tarfile.open(fileobj=written, mode="w|", format=tarfile.PAX_FORMAT) as archive:

        def add(name: str, file: IO[bytes], size: int) -> None:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = size, 0o600, int(about.made)
            reading = _Summing(file)
            archive.addfile(member, reading)
            sums[name] = reading.sum.hexdigest()

        def add_text(name: str, text: str) -> None:
            data = text.encode()
            add(name, io.BytesIO(data), len(data))

        add_text(_ABOUT, json.dumps(asdict(about), indent=2) + "\n")
        for name, path in [*((_FILES + name, path) for name, path in files), (_STORE, store)]:
            with path.open("rb") as file:
                add(name, file, os.fstat(file.fileno()).st_size)
        add_text(_SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    return written.bytes


class _Counting(io.RawIOBase):
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.bytes = 0

    def write(self, data: Any) -> int:
        self._file.write(data)
        self.bytes += len(data)
        return len(data)


# Restoring


def restore(
    archive: IO[bytes],
    settings_path: Path | None,
    deployment: Path | None = None,
    tell: Tell = lambda what, done, of: None,
) -> Done:
    """Restore a backup into the database of these settings, which has to be empty.

    With a `deployment`, a folder that has to be empty or not to be there, or where there are no
    settings yet, the archive's files are written as well. Raises `BackupError` where the archive
    is damaged, isn't one, or is another's or a newer program's, and then nothing was written;
    `ConflictError` where something is there already. Where it fails after that, say of a full disk,
    no file stays that it brought, so that it can be tried again.
    """
    settings_path = _settings_of(settings_path, deployment)
    brings_files = deployment is not None or not settings_path.exists()
    folder = (deployment or settings_path.parent).absolute()
    if brings_files:
        folder.parent.mkdir(parents=True, exist_ok=True)
        room = folder.parent
    else:
        room = _room_for(CoordinatorSettings.read(settings_path))
    with tempfile.TemporaryDirectory(dir=room) as work:
        about, files = _unpack(archive, Path(work), tell)
        if not brings_files:
            files = {}
        with contextlib.ExitStack() as stack:
            source = _open_copy(Path(work) / _STORE, about)
            stack.callback(source.close)
            if brings_files:
                _require_fitting(about, settings_path, deployment)
                stack.enter_context(_brought(folder, files, about))
                settings_path = folder / about.settings
            rows = _restore_store(source, about, settings_path, tell)
        size = (Path(work) / _STORE).stat().st_size
        return Done(about, rows, size, len(files))


def _restore_store(source: SqlStore, about: About, settings_path: Path, tell: Tell) -> int:
    settings = CoordinatorSettings.read(settings_path)
    if settings.fleet != about.fleet:
        raise BackupError(
            f"the backup is of fleet {about.fleet}, and {settings_path} is of fleet "
            f"{settings.fleet}"
        )
    target = SqlStore(settings.store_url())
    try:
        return restore_store(source, target, about.made, tell)
    finally:
        target.close()


def _open_copy(path: Path, about: About) -> SqlStore:
    """The store of a backup, brought up to date."""
    try:
        return SqlStore(sqlite_url(path), survives_power_cuts=False)
    except StoreError as error:
        raise BackupError(
            f"the store of the backup, of revision {about.revision}, can't be used ({error}): "
            f"restore it with tinyfleet {about.program} or a newer one"
        ) from None


def _unpack(archive: IO[bytes], work: Path, tell: Tell) -> tuple[About, dict[str, Path]]:
    """Check the whole archive; gives what it is, and its files by name, now in `work`."""
    sums: dict[str, str] = {}
    texts: dict[str, str] = {}
    files: dict[str, Path] = {}
    try:
        with tarfile.open(fileobj=archive, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isfile() else None
                if content is None or member.name in sums:
                    raise BackupError(f"the archive has {member.name!r}, which no backup has")
                if not sums and member.name != _ABOUT:
                    raise BackupError("the file is no backup: it doesn't begin with backup.json")
                if member.name in (_ABOUT, _SUMS):
                    data = content.read(_MOST_TEXT)
                    texts[member.name] = data.decode()
                    sums[member.name] = hashlib.sha256(data).hexdigest()
                    if member.name == _ABOUT:
                        about = _read_about(texts[_ABOUT])
                    continue
                path = work / (_STORE if member.name == _STORE else f"file-{len(files)}")
                if member.name != _STORE:
                    files[_safe(member.name)] = path
                sums[member.name] = _keep(content, path)
                tell("checking the archive", len(sums), len(sums) + 1)
    except (tarfile.TarError, EOFError, UnicodeDecodeError, OSError) as error:
        raise BackupError(f"the file is no backup, or is damaged ({error})") from None
    said = {name: digest for name, digest in sums.items() if name != _SUMS}
    lines = "".join(f"{digest}  {name}\n" for name, digest in said.items())
    if texts.get(_SUMS) != lines or _STORE not in sums:
        raise BackupError("the backup is damaged: its members aren't those that SHA256SUMS has")
    return about, files


def _read_about(text: str) -> About:
    try:
        raw = json.loads(text)
        if int(raw["format"]) > FORMAT:
            raise BackupError(
                f"the backup has format {raw['format']}, this version reads {FORMAT}: restore it "
                f"with tinyfleet {raw.get('program', 'of a newer version')}"
            )
        return About(**raw)
    except (ValueError, KeyError, TypeError) as error:
        raise BackupError(f"the file is no backup, or is damaged ({_ABOUT}: {error})") from None


def _safe(name: str) -> str:
    """A file's name within a folder; nothing of an archive is written anywhere else."""
    inner = name.removeprefix(_FILES)
    path = PurePosixPath(inner)
    if inner == name or path.is_absolute() or ".." in path.parts:
        raise BackupError(f"the archive has {name!r}, which no backup has")
    return inner


def _keep(content: IO[bytes], path: Path) -> str:
    found = hashlib.sha256()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while data := content.read(_PIECE):
            found.update(data)
            file.write(data)
    return found.hexdigest()


def _require_fitting(about: About, settings_path: Path, deployment: Path | None) -> None:
    if about.is_deployment != (deployment is not None):
        what, how = ("deployment", "--site") if about.is_deployment else ("service", "--config")
        raise BackupError(f"the backup is of a {what}: restore it with {how}")
    if deployment is None and settings_path.name != about.settings:
        raise BackupError(
            f"{settings_path}: there is none, and in the backup it is called {about.settings}"
        )


@contextlib.contextmanager
def _brought(folder: Path, files: Mapping[str, Path], about: About) -> Iterator[None]:
    """The archive's files where they belong, for good if the block ends well."""
    if about.is_deployment:
        with new_folder(folder):
            for name in ("run", "logs"):
                (folder / name).mkdir(mode=0o700)
            _bring(folder, files, about, [])
            yield
        return
    there = [name for name in files if (folder / name).exists()]
    if there:
        raise ConflictError(f"{folder} has {there[0]} already: nothing is written over")
    made: list[Path] = []
    try:
        _bring(folder, files, about, made)
        yield
    except BaseException:
        for path in reversed(made):
            if not path.is_dir():
                path.unlink(missing_ok=True)
            elif not any(path.iterdir()):
                path.rmdir()
        raise


def _bring(folder: Path, files: Mapping[str, Path], about: About, made: list[Path]) -> None:
    """Write the files; those of a deployment that name its folder name the new one.

    What is made is told in `made` before it is.
    """
    old, new = f"{about.folder}/", f"{folder}/"
    for name, path in files.items():
        target = folder / name
        made += reversed([one for one in target.parents if not one.exists()])
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        data = path.read_bytes()
        if about.is_deployment and name.endswith(_WITH_PATHS):
            data = data.replace(old.encode(), new.encode())
        made.append(target)
        write_whole(target, data, mode=0o600)
