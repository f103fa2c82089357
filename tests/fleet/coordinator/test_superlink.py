"""Processes that outlive whoever started them, and who takes them over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet.coordinator.superlink import ManagedProcess
from tests.patience import wait_until

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def managed(tmp_path: Path) -> Iterator[Callable[..., ManagedProcess]]:
    made: list[ManagedProcess] = []

    def make(command: list[str] = SLEEP) -> ManagedProcess:
        pid_file = tmp_path / "process.json"
        made.append(ManagedProcess("it", command, tmp_path / "log", os.environ, pid_file))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_a_process_that_runs_is_taken_over_and_can_be_stopped(
    managed: Callable[..., ManagedProcess],
) -> None:
    first = managed()
    first.start()
    second = managed()
    second.start()
    assert second.pid == first.pid
    assert second.alive()
    second.stop()
    assert not first.alive()
    assert not managed().adopt()


def test_a_number_that_is_another_process_by_now_is_left_alone(
    managed: Callable[..., ManagedProcess], tmp_path: Path
) -> None:
    left = {"pid": os.getpid(), "command": SLEEP}
    (tmp_path / "process.json").write_text(json.dumps(left))
    assert not managed().adopt()


@pytest.mark.parametrize("name", ["python", "python3", "python3.11"])
def test_a_process_that_another_path_to_the_same_program_started_is_taken_over(
    managed: Callable[..., ManagedProcess], tmp_path: Path, name: str
) -> None:
    elsewhere = tmp_path / name
    elsewhere.symlink_to(sys.executable)
    first = managed([str(elsewhere), *SLEEP[1:]])
    first.start()
    wait_until(lambda: managed().adopt(), "it is found")


def test_a_process_of_another_command_is_left_alone(
    managed: Callable[..., ManagedProcess],
) -> None:
    first = managed()
    first.start()
    assert not managed([*SLEEP, "other"]).adopt()
    assert first.alive()


def test_a_process_that_has_ended_but_was_not_waited_for_does_not_run(
    managed: Callable[..., ManagedProcess], tmp_path: Path
) -> None:
    with subprocess.Popen(SLEEP) as child:
        left = {"pid": child.pid, "command": SLEEP}
        (tmp_path / "process.json").write_text(json.dumps(left))
        wait_until(managed().adopt, "the process to run its command")
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not managed().adopt()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"pid": "x", "command": []}'])
def test_a_file_that_names_no_process_is_no_process(
    managed: Callable[..., ManagedProcess], tmp_path: Path, content: str
) -> None:
    (tmp_path / "process.json").write_text(content)
    assert not managed().adopt()
