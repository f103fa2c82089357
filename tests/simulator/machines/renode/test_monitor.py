"""The monitor's client beside what Renode has said on its console."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator.machines.renode import monitor
from simulator.machines.renode.monitor import Monitor, RenodeError, find_renode
from tests import processes
from tests.patience import wait_until
from tests.simulator.machines.renode import recorded

RECORDED = [sys.executable, recorded.__file__]


@pytest.fixture
def renode() -> Iterator[Monitor]:
    with Monitor(RECORDED) as made:
        yield made


def test_an_answer_is_what_stands_between_the_command_and_the_next(renode: Monitor) -> None:
    assert renode.execute("version") == recorded.ANSWERS["version"]
    assert renode.execute('mach create "n1"') == ""
    assert renode.execute("sysbus.cpu ExecutedInstructions") == "0x0000000000064BE2"
    assert renode.execute("sysbus ReadBytes 0x08000000 4").split() == [
        "[",
        "0x00,",
        "0x10,",
        "0x00,",
        "0x20,",
        "]",
    ]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ('mach set "nope"', "Machine nope not found"),
        ("frob", "No such command or device: frob"),
        ("include @/nowhere/models.cs", "Parameters did not match"),
        ("include @/tmp/Wrong.cs", r"error CS0246: The type or namespace name `Stm32Flash'"),
        ("machine LoadPlatformDescription @/tmp/board.repl", "Error E04: Could not resolve type"),
    ],
)
def test_what_renode_refuses_is_an_error_with_its_words_and_the_next_command_works(
    renode: Monitor, command: str, why: str
) -> None:
    with pytest.raises(RenodeError, match=why) as refused:
        renode.execute(command)
    assert repr(command) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert renode.execute("version") == recorded.ANSWERS["version"]


def test_a_script_ends_with_the_first_line_that_is_refused(renode: Monitor) -> None:
    with pytest.raises(RenodeError, match="frob"):
        renode.run_script('# a node\nmach create "n1"\n\nfrob\ndie\n')
    assert renode.alive


def test_a_command_that_is_never_done_is_given_up(renode: Monitor) -> None:
    with pytest.raises(RenodeError, match="hasn't done 'hang' in 0 s"):
        renode.execute("hang", seconds=0.2)


def test_an_end_is_told_with_the_last_words(renode: Monitor) -> None:
    with pytest.raises(RenodeError, match=r"ended at 'die'.*System\.DivideByZeroException"):
        renode.execute("die")
    with pytest.raises(RenodeError, match="ended at 'version'"):
        renode.execute("version")
    wait_until(lambda: not renode.alive, "its end")


def test_a_program_that_is_no_renode_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "START_SECONDS", 0.5)
    with pytest.raises(RenodeError, match="hasn't done"):
        Monitor([sys.executable, "-c", "import time; time.sleep(600)"])
    with pytest.raises(RenodeError, match="ended"):
        Monitor(["true"])


def test_closing_leaves_no_process_behind() -> None:
    with Monitor(RECORDED) as renode:
        renode.execute("linger")
        group = os.getpgid(renode.pid)
        wait_until(lambda: len(in_group(group)) == 2, "the child to be there")
    wait_until(lambda: not in_group(group), "all of the group to end")
    renode.close()


def in_group(group: int) -> list[int]:
    found = []
    for pid in processes.running(sys.executable):
        try:
            if os.getpgid(pid) == group and not is_zombie(pid):
                found.append(pid)
        except ProcessLookupError:
            continue
    return found


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_renode_ends_with_whoever_has_started_it_however_that_ends() -> None:
    program = (
        "import sys, time\n"
        "from simulator.machines.renode.monitor import Monitor\n"
        f"made = Monitor({RECORDED!r})\n"
        "print(made.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or is_zombie(pid), "it to end")
    starter.stdout.close()


def test_without_renode_it_is_said_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("RENODE", raising=False)
    with pytest.raises(RenodeError, match=r"no renode on the path; get Renode 1\.16"):
        find_renode()
    monkeypatch.setenv("RENODE", str(tmp_path / "renode"))
    with pytest.raises(RenodeError, match=r"RENODE=.*is no program"):
        find_renode()
    program = tmp_path / "renode"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_renode() == str(program)
