"""A container engine of a test's own, with images made of Debian's packages.

What takes long and is the same each time lies in a folder of the machine's temporary directory:
base images as archives, and what the engine keeps. `make clean` doesn't know of it; deleting it
costs two minutes of the next run.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import docker
import pytest
from docker.models.containers import Container

from tests.patience import PATIENCE_SECONDS

CACHE = Path(tempfile.gettempdir()) / "tinyfleet-deploy"
BASE, OTHERS = "tinyfleet-test-base:bookworm", "tinyfleet-test-others:bookworm"
BROKER, DATABASE, PROMETHEUS = (
    OTHERS,
    "tinyfleet-test-postgres:bookworm",
    "tinyfleet-test-prometheus:bookworm",
)
NEEDED = ("dockerd", "docker", "docker-compose", "debootstrap", "iptables")
# As the usual image of PostgreSQL starts it, by the same variables.
START_POSTGRES = """\
#!/bin/sh
set -eu
export PATH=/usr/lib/postgresql/15/bin:$PATH
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --pgdata "$PGDATA" --username "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" \\
        --auth-host=scram-sha-256 --auth-local=trust --encoding=UTF8 --locale=C.UTF-8
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    pg_ctl start --pgdata "$PGDATA" --wait --options "-c listen_addresses=''"
    createdb --username "$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl stop --pgdata "$PGDATA" --wait
fi
exec postgres -D "$PGDATA" -c "listen_addresses=*"
"""


@dataclass(frozen=True)
class Engine:
    """An engine that runs; `environment` is what its programs are started with."""

    client: docker.DockerClient
    environment: dict[str, str]

    def run(
        self, *command: str, stdin: IO[bytes] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A program that speaks to the engine; fails the test with what it says."""
        found = subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=stdin,
        )
        assert found.returncode == 0, f"{command}:\n{found.stdout}\n{found.stderr}"
        return found

    def build(self, name: str, *lines: str) -> None:
        """An image of a few lines."""
        self.client.images.build(fileobj=io.BytesIO("\n".join(lines).encode()), tag=name, rm=True)


def kill(container: Container) -> None:
    """As the kernel would: the engine isn't asked, so that it starts the container again."""
    container.reload()
    pid = container.attrs["State"]["Pid"]
    assert pid, f"{container.name} doesn't run"
    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """Start it, with the base images; skips the test, and says why, where that can't be."""
    if os.geteuid() != 0:
        pytest.skip("containers: an engine is started by root only")
    if missing := [one for one in NEEDED if shutil.which(one) is None]:
        pytest.skip(f"containers: not installed: {', '.join(missing)} (scripts/setup dev)")
    CACHE.mkdir(mode=0o700, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pytest.skip(f"containers: another test uses {CACHE}")
        archives = [(BASE, _archive("base", _base)), (OTHERS, _archive("others", _others))]
        with _running() as found:
            for name, archive in archives:
                if not found.client.images.list(name):
                    repository, _, tag = name.partition(":")
                    found.run("docker", "import", str(archive), f"{repository}:{tag}")
            found.build(DATABASE, f"FROM {OTHERS}", 'ENTRYPOINT ["/usr/local/bin/start-postgres"]')
            found.build(PROMETHEUS, f"FROM {OTHERS}", 'ENTRYPOINT ["prometheus"]')
            yield found


@contextlib.contextmanager
def _running() -> Iterator[Engine]:
    socket, log = CACHE / "docker.sock", CACHE / "dockerd.log"
    pid = CACHE / "dockerd.pid"
    pid.unlink(missing_ok=True)
    command = ["dockerd", "--data-root", str(CACHE / "data"), "--exec-root", str(CACHE / "exec")]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "-H", f"unix://{socket}", "--pidfile", str(pid)],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    client = None
    try:
        end = time.monotonic() + PATIENCE_SECONDS
        while client is None:
            with contextlib.suppress(docker.errors.DockerException):
                client = docker.DockerClient(f"unix://{socket}", timeout=600)
                break
            if process.poll() is not None or time.monotonic() > end:
                said = log.read_text(errors="replace").splitlines()[-1:]
                pytest.skip(f"containers: no engine can be started here: {said}")
            time.sleep(0.2)
        yield Engine(client, {**os.environ, "DOCKER_HOST": f"unix://{socket}"})
    finally:
        if client is not None:
            client.close()
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def _archive(name: str, make: Callable[[Path], None]) -> Path:
    """An archive of a root file system, made once."""
    archive = CACHE / f"{name}.tar"
    if archive.exists():
        return archive
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        root = Path(work) / "root"
        root.mkdir()
        make(root)
        without = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale")
        excluded = [f"--exclude=./{one}/*" for one in without]
        new = archive.with_suffix(".new")
        _run("tar", "-C", str(root), *excluded, "-cf", str(new), ".")
        new.replace(archive)
    return archive


def _base(root: Path) -> None:
    wanted = "--include=python3,python3-venv,ca-certificates"
    _run("debootstrap", "--variant=minbase", wanted, "bookworm", str(root))


def _others(root: Path) -> None:
    _run("tar", "-C", str(root), "-xf", str(_archive("base", _base)))
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    install = "apt-get install -y --no-install-recommends mosquitto postgresql-15 prometheus"
    for line in (
        "apt-get update",
        f"DEBIAN_FRONTEND=noninteractive {install}",
        "useradd --uid 10001 --no-create-home tinyfleet",
        "install -d -m 1777 /var/lib/postgresql/data",
        "install -d -o 65534 -g 65534 /prometheus",
    ):
        _run("chroot", str(root), "sh", "-c", line)
    start = root / "usr/local/bin/start-postgres"
    start.write_text(START_POSTGRES)
    start.chmod(0o755)


def _run(*command: str) -> None:
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        last: Sequence[str] = (found.stdout + found.stderr).splitlines()[-3:]
        pytest.skip(f"containers: {command[0]} can't do its work here: {last}")
