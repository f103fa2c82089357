"""Builds the MQTT client with sanitizers and drives it by commands (harness.c)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[3]
RUNTIME = ROOT / "device_runtime"
STATES = ("idle", "waiting", "dialling", "connecting", "online", "stopping")

CONNACK = "20 03 00 00 00"


class Client:
    """An MQTT client in a process of its own; a sanitizer's finding fails the test."""

    def __init__(self, program: Path, options: dict[str, object]) -> None:
        self.held_back: list[str] = []  # lines printed but not yet asked for
        arguments = [text for pair in options.items() for text in map(str, pair)]
        self.process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, command: str) -> list[str]:
        """Sends one command; the lines it printed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        lines = []
        while (line := self.process.stdout.readline()) != ".\n":
            if not line:
                assert self.process.stderr is not None
                errors = self.process.stderr.read()
                pytest.fail(f"the client's process ended at {command!r}:\n{errors}")
            lines.append(line.rstrip("\n"))
        return lines

    def feed(self, packet: str, polls: int = 40) -> list[str]:
        """Gives bytes (hex, comments removed) to the client and lets it work on them."""
        self("feed " + "".join(packet.split()))
        return self(f"poll {polls}")

    def sent(self) -> bytes:
        """What the client has written since the last call."""
        return bytes.fromhex(self("out")[0].removeprefix("out").strip())

    def state(self) -> str:
        return self("state")[0].removeprefix("state ")

    def connect(self, connack: str = CONNACK) -> list[str]:
        """From any state that dials: through to the answer to CONNACK."""
        self("start")
        self("poll 1")
        self("accept")
        self("poll 2")
        return self.feed(connack)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(timeout=PATIENCE_SECONDS)
        assert self.process.stderr is not None
        errors = self.process.stderr.read()
        assert code == 0, errors


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) here; install gcc or clang")
    program = tmp_path_factory.mktemp("link") / "harness"
    sources = [str(path) for path in sorted((RUNTIME / "link").glob("*.c"))]
    command = [compiler, "-std=c99", "-g", "-O1", "-Wall", "-Wextra", "-Werror"]
    command += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += ["-I", str(RUNTIME / "include"), *sources]
    command += [str(Path(__file__).with_name("harness.c")), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


@pytest.fixture
def make_client(harness: Path) -> Iterator[Callable[..., Client]]:
    clients: list[Client] = []

    def make(**options: object) -> Client:
        clients.append(Client(harness, options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(make_client: Callable[..., Client]) -> Client:
    return make_client()
