"""The stack of deploy/compose.yaml, as a newcomer starts it, with the images of a test's engine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.models.containers import Container

from fleet.errors import ServiceError
from fleet.service import containers
from fleet.service.client import Client
from fleet.service.deployment import Deployment, authority_of, token_of
from tests.deploy.engine import BROKER, DATABASE, PROMETHEUS, Engine
from tests.patience import wait_until

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose.yaml"
PORTS = (1883, 8443, 8883, 9090, 9092)
PARTS = ("broker", "coordinator", "database", "gateway-1", "gateway-2", "prometheus")
LOOK_SECONDS = 0.5


class Stack:
    """A folder that `tinyfleet init --containers` has made, and what runs of it."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        """Nothing is started yet."""
        self.engine = engine
        self.folder = folder
        env = (folder / containers.ENV_FILE).read_text()
        self.name = dict(one.split("=", 1) for one in env.splitlines() if "=" in one)[
            "COMPOSE_PROJECT_NAME"
        ]

    @classmethod
    def init(cls, engine: Engine, folder: Path) -> Stack:
        """A new one, with the test's images."""
        containers.init(folder, "plant", "home", [])
        with (folder / containers.ENV_FILE).open("a") as file:
            file.write(
                f"TINYFLEET_TAG=test\nMOSQUITTO_IMAGE={BROKER}\nPOSTGRES_IMAGE={DATABASE}\n"
                f"PROMETHEUS_IMAGE={PROMETHEUS}\n"
            )
        return cls(engine, folder)

    @property
    def command(self) -> list[str]:
        files = ["--env-file", str(self.folder / containers.ENV_FILE), "--file", str(COMPOSE)]
        return ["docker-compose", *files]

    def compose(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.engine.run(*self.command, *words, **options)

    def up(self, *parts: str, tag: str = "test") -> None:
        """Start what doesn't run, or runs another image."""
        env = self.folder / containers.ENV_FILE
        lines = [one for one in env.read_text().splitlines() if "TINYFLEET_TAG" not in one]
        env.write_text("\n".join([*lines, f"TINYFLEET_TAG={tag}"]) + "\n")
        self.compose("up", "--detach", *parts)

    def part(self, name: str) -> Container:
        return self.engine.client.containers.get(f"{self.name}_{name}_1")

    def log(self, name: str) -> str:
        return str(self.part(name).logs().decode(errors="replace"))

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        authority = str(authority_of(self.folder))
        url = Deployment.read(self.folder).url
        with Client(url, token_of(self.folder), ca_file=authority) as one:
            yield one

    def wait_ready(self) -> float:
        """Until the service is ready and has heard of both gateways; how long that took."""
        began = time.monotonic()

        def is_ready() -> bool:
            with contextlib.suppress(ServiceError), self.client() as client:
                now = client.ready()
                ages = [age for age in now.gateways.values() if age is not None]
                return now.ready and len(ages) == containers.GATEWAYS and max(ages) < 60
            return False

        wait_until(is_ready, lambda: self.log("coordinator")[-2000:], LOOK_SECONDS)
        return time.monotonic() - began

    def heard(self, since: float = 0.0) -> int:
        """Devices online that have told of their samples, heard since then; 0 with the API away."""
        with contextlib.suppress(ServiceError), self.client() as client:
            found = client.all_devices("online && train_samples > 0")
            return sum(one.last_seen is not None and one.last_seen >= since for one in found)
        return 0

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of an operator on this machine."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TINYFLEET_SITE": str(self.folder)}
        command = [sys.executable, "-m", "fleet.cli", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def exec(self, part: str, *command: str) -> tuple[int, str]:
        """What a program within a container says, with its code."""
        found = self.part(part).exec_run(list(command))
        return found.exit_code, found.output.decode(errors="replace")

    def backup(self, out: Path) -> None:
        """As the page on backups says it."""
        line = ["tinyfleet", "backup", "-", "--config", "/etc/tinyfleet/coordinator.toml"]
        command = ["docker", "exec", self.part("coordinator").name, *line]
        with out.open("wb") as file:
            found = subprocess.run(
                command,
                env=self.engine.environment,
                stdout=file,
                stderr=subprocess.PIPE,
                check=False,
            )
        assert found.returncode == 0, found.stderr

    def restore(self, archive: Path) -> None:
        line = ["restore", "-", "--config", "/etc/tinyfleet/coordinator.toml"]
        with archive.open("rb") as file:
            self.compose("run", "--rm", "-T", "coordinator", *line, stdin=file)

    def down(self, *, forgets: bool = False) -> None:
        self.compose("down", *(["--volumes"] if forgets else []))


@contextlib.contextmanager
def devices(stack: Stack, bundle: Path, count: int, log: Path) -> Iterator[None]:
    """So many boards in Unicorn, attached as a newcomer attaches them."""
    command = [sys.executable, "-m", "fleet.cli", "simulate", str(bundle), "--site"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, str(stack.folder), "--devices", str(count)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )

    def are_heard() -> bool:
        assert process.poll() is None, log.read_text()
        return stack.heard() == count

    try:
        wait_until(are_heard, lambda: log.read_text()[-2000:], LOOK_SECONDS)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def require_free_ports() -> None:
    """Skip where the ports of compose.yaml are in use."""
    for port in PORTS:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                pytest.skip(f"containers: port {port} of this machine is in use")


def targets() -> dict[str, str]:
    """What Prometheus asks, and how that is."""
    with urllib.request.urlopen("http://127.0.0.1:9090/api/v1/targets", timeout=30) as answer:
        found = json.load(answer)["data"]["activeTargets"]
    return {one["scrapeUrl"]: one["health"] for one in found}
