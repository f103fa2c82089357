"""A PostgreSQL server of a test's own, from the programs that Debian's package installs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fleet.ports import free_port
from tests.patience import PATIENCE_SECONDS

USER = "tinyfleet"


def programs() -> Path:
    """The folder with `initdb` and `pg_ctl`; skips the test where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    beside = shutil.which("initdb")
    if not found and beside is None:
        pytest.skip("there is no PostgreSQL server here: apt-get install postgresql")
    return (found[-1] if found else Path(str(beside))).parent


@contextmanager
def server() -> Iterator[str]:
    """A running server; gives the URL of its database without the database's name."""
    binaries = programs()
    # It refuses to run as root.
    account = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="tf-pg-"))
    data = folder / "data"
    port = free_port()

    def run(*command: str | Path) -> None:
        done = subprocess.run(
            command, capture_output=True, text=True, user=account, cwd=folder, check=False
        )
        log = folder / "log"
        said = log.read_text() if log.exists() else ""
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}{said}"

    try:
        if account is not None:
            shutil.chown(folder, account)
        run(binaries / "initdb", "-D", data, "-U", USER, "-A", "trust", "--no-sync", "-E", "UTF8")
        # Tests kill processes, not machines: nobody waits for the disk.
        options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
        run(
            binaries / "pg_ctl", "-D", data, "-l", folder / "log", "-o", options,
            "-t", str(int(PATIENCE_SECONDS)), "-w", "start",
        )  # fmt: skip
        try:
            yield f"postgresql+psycopg://{USER}@127.0.0.1:{port}"
        finally:
            run(binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
