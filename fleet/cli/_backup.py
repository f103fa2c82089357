"""`tinyfleet backup` and `tinyfleet restore`."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import IO

from fleet.cli._errors import CommandError
from fleet.cli._output import console, print_json
from fleet.cli._progress import stage_bars
from fleet.service import backup
from fleet.service.backup import Done

STREAM = Path("-")


def back_up(out: Path, config: Path | None, site: Path | None, *, as_json: bool) -> None:
    """Write a backup to a file of its own, or to standard output."""
    is_stream = out == STREAM
    with _writing(out) as file, stage_bars(hidden=as_json or is_stream) as tell:
        done = backup.back_up(config, file, metadata.version("tinyfleet"), site, tell)
    if is_stream:
        for one in done.left_out:
            print(f"not in the backup: {one}", file=sys.stderr)
        return
    if as_json:
        print_json({"file": str(out), **_facts(done)})
        return
    console().print(
        f"{out} has {done.rows:,} rows of the store and {done.files} files, {done.bytes:,} bytes. "
        "It holds keys and passwords.",
        soft_wrap=True,
    )
    for one in done.left_out:
        console().print(f"Not in it, since it lies elsewhere: {one}", soft_wrap=True)


def restore(archive: Path, config: Path | None, site: Path | None, *, as_json: bool) -> None:
    """Restore a backup from a file, or from standard input."""
    with (
        contextlib.nullcontext(sys.stdin.buffer)
        if archive == STREAM
        else _reading(archive) as file,
        stage_bars(hidden=as_json) as tell,
    ):
        done = backup.restore(file, config, site, tell)
    if as_json:
        print_json(_facts(done))
        return
    made = datetime.datetime.fromtimestamp(done.about.made, datetime.UTC)
    console().print(
        f"Restored: {done.rows:,} rows and {done.files} files, as fleet {done.about.fleet} was at "
        f"{made:%Y-%m-%d %H:%M:%S} UTC. What was revoked, retired or given a new password since "
        "then has to be again: docs/howto/back-up.md",
        soft_wrap=True,
    )


def _facts(done: Done) -> dict[str, object]:
    return {
        "fleet": done.about.fleet,
        "made": done.about.made,
        "program": done.about.program,
        "revision": done.about.revision,
        "rows": done.rows,
        "files": done.files,
        "bytes": done.bytes,
        "left_out": list(done.left_out),
    }


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise CommandError(f"{path}: can't be read ({error})") from None
    with file:
        yield file


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[IO[bytes]]:
    """A file that is there whole or not at all, and for its owner only."""
    if out == STREAM:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if out.exists():
        raise CommandError(f"{out} is there already; a backup gets a file of its own")
    try:
        # Never one that is there, whoever made it.
        descriptor, name = tempfile.mkstemp(".new", f"{out.name}.", out.parent)
    except OSError as error:
        raise CommandError(f"{out}: can't be written ({error})") from None
    new = Path(name)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        new.replace(out)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
