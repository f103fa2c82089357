"""The one-machine part of docs/operate.md, run as it stands there, in one shell.

What a page's ```text block shows has to come in that order, whatever figures, ids and times it has;
`…` stands for lines that are left out, and for the rest of a line.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import processes
from tests.deployments import TRIES
from tests.patience import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "operate.md").read_text("utf-8")
PAGE = TEXT[TEXT.index("\n## One machine\n") : TEXT.index("\n## Several machines\n")]
LONGEST_SECONDS = 1200.0
MARK = "@@@ block"


@dataclass(frozen=True)
class Block:
    """Commands, and what the page shows of their output."""

    commands: str
    shown: str


def blocks() -> list[Block]:
    found = re.findall(r"```(sh|text)\n(.*?)```", PAGE, re.DOTALL)
    made: list[Block] = []
    for kind, content in found:
        if kind == "sh":
            made.append(Block(content, ""))
        else:
            made[-1] = Block(made[-1].commands, content)
    return made


def form(line: str) -> str:
    """A line without what differs from run to run, and without how a table is drawn."""
    line = re.sub(r"\b[0-9a-f]{16}\b", "ID", line)
    line = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?", "TIME", line)
    line = re.sub(r"[+-]?\b\d[\d,.]*", "N", line)
    line = re.sub(r"\bN (s|min)\b", "AGO", line)
    return " ".join(re.sub(r"[│┃]", " | ", line).split())


def first_missing(shown: str, came: str) -> str:
    """The first line that is shown and didn't come behind the one before it; empty without one."""
    lines = iter([form(line) for line in came.splitlines()])
    for line in shown.splitlines():
        wanted, rest, _ = form(line).partition("…")
        if not wanted:
            continue
        if not any(one.startswith(wanted.strip()) if rest else one == wanted for one in lines):
            return line
    return ""


def test_lines_are_compared_without_figures_and_in_order() -> None:
    came = "Sites\n┃ a ┃ 12,345 ┃\n│ b │   1 s │\nend (0123456789abcdef) at 2026-01-02 03:04:05\n"
    assert (
        first_missing("Sites\n│ a │ 9 │\n…\nend (fedcba9876543210) at 2027-01-01 00:00:00", came)
        == ""
    )
    assert first_missing("│ b │ 9 s │\nSites", came) == "Sites"
    assert first_missing("│ a │ …", came) == ""
    assert first_missing("│ c │ 9 s │", came) == "│ c │ 9 s │"


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: its name can be too long for a gateway's unix socket.
    with tempfile.TemporaryDirectory(prefix="tinyfleet-") as made:
        (Path(made) / "examples").symlink_to(ROOT / "examples")
        yield Path(made)
        try:
            wait_until(lambda: not processes.running(made), "`down` to leave nothing behind")
        finally:
            for pid in processes.running(made):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


PATIENT = f"""#!{sys.executable}
import os, subprocess, sys

command = [{str(Path(sys.executable).with_name("tinyfleet"))!r}, *sys.argv[1:]]
for _ in range({TRIES - 1} if "up" in sys.argv[1:2] else 0):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if "not ready after" not in done.stdout:
        print(done.stdout, end="")
        sys.exit(done.returncode)
os.execv(command[0], command)
"""


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    # As the command, but `up` has more time: others may use the machine as well.
    command = folder / "bin" / "tinyfleet"
    command.parent.mkdir()
    command.write_text(PATIENT)
    command.chmod(0o755)
    path = os.pathsep.join(
        (str(command.parent), str(Path(sys.executable).parent), os.environ["PATH"])
    )
    wanted = {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    known = {name: value for name, value in os.environ.items() if "TINYFLEET_" not in name}
    return {**known, **wanted}


def test_the_page_does_on_one_machine_what_it_says(
    folder: Path, environment: dict[str, str]
) -> None:
    found = blocks()
    assert len(found) >= 8
    assert all("--machine host" in one.commands for one in found if "simulate" in one.commands)
    script = "set -e\n" + "".join(
        f"echo '{MARK} {number}'\n{one.commands}" for number, one in enumerate(found)
    )
    shell = subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said = shell.communicate(timeout=LONGEST_SECONDS)[0]
    finally:
        # Devices that are still attached are of its group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        down = subprocess.run(
            [sys.executable, "-m", "fleet.cli", "down", "barn"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    print(said)
    assert shell.returncode == 0, said[-3000:]
    assert "0 processes stopped" in down.stdout, "the page itself has stopped all"
    parts = re.split(rf"^{MARK} \d+\n", said, flags=re.MULTILINE)[1:]
    for block, came in zip(found, parts, strict=True):
        missing = first_missing(block.shown, came)
        assert not missing, f"the page shows\n{missing}\nbut there came\n{came}"
