"""Renode's monitor, spoken to through the process's own standard input and output.

So nothing listens. Renode says that a command has failed in words only, its exit code is 0 and
the rest of a script is dropped; every command is therefore sent alone, is followed by a mark that
is echoed, and what comes before the mark is looked through for such words.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from simulator.errors import SimulatorError
from simulator.machines.child_process import die_with_parent

COMMAND_SECONDS = 60.0
START_SECONDS = 60.0
_MOST_WORDS = 1000
_MARK = "tinyfleet-mark-"
_ERRORS = re.compile(
    r"^(There was an error executing command|No such command or device|Errors during compilation|"
    r"Could not |Error E\d+|Parameters did not match|.* not found\.?$|Bad parameters|"
    r"The following methods are available)",
    re.MULTILINE,
)
_PROMPT = re.compile(r"^(?:\([^()\n]*\) ?)+", re.MULTILINE)
_GC_PARAMETERS = "nursery-size=128m"
"""Of Mono, for many nodes: else collections stop the world for most of the time."""


class RenodeError(SimulatorError):
    """Renode is missing, has ended, or refuses a command."""


def find_renode() -> str:
    """The program: what the variable RENODE names, else `renode` on the path.

    Raises: RenodeError that says how to get one.
    """
    named = os.environ.get("RENODE")
    found = shutil.which(named or "renode")
    if found is None:
        where = f"RENODE={named} is no program" if named else "there is no renode on the path"
        raise RenodeError(
            f"{where}; get Renode 1.16 from https://renode.io and let the variable RENODE name its "
            "program, or run devices as unicorn"
        )
    return found


class Monitor:
    """A Renode process and what it answers to commands."""

    def __init__(self, command: Sequence[str], log_file: Path | None = None) -> None:
        """Start it; ``command`` is the program with options of its own, where it has any.

        Raises: RenodeError where it doesn't answer in time.
        """
        options = ["--disable-xwt", "--hide-analyzers", "--hide-log", "--plain", "--console"]
        self._process = subprocess.Popen(
            [*command, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"MONO_GC_PARAMS": _GC_PARAMETERS, **os.environ},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self._text = ""
        self._changed = threading.Condition()
        self._ended = False
        self._marks = 0
        self._reader = threading.Thread(target=self._read, name="renode", daemon=True)
        self._reader.start()
        try:
            self._command("", START_SECONDS)
            if log_file is not None:
                self.execute(f"logFile @{log_file}")
        except BaseException:
            self.close()
            raise

    def execute(self, command: str, seconds: float = COMMAND_SECONDS) -> str:
        """What a command says.

        Raises: RenodeError with Renode's words where it is refused, isn't done in time, or Renode
            has ended.
        """
        said = self._command(command, seconds)
        wrong = _ERRORS.search(said)
        if wrong is not None:
            why = " ".join(said[wrong.start() :].split())[:_MOST_WORDS]
            raise RenodeError(f"Renode refuses {command!r}: {why}")
        return said

    def run_script(self, script: str) -> None:
        """Every line of a script, one after the other; the first that is refused ends it."""
        for line in script.splitlines():
            if line.strip() and not line.startswith("#"):
                self.execute(line)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process, whose group it leads."""
        return self._process.pid

    def close(self) -> None:
        """End the process and whatever it has started; once is enough."""
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.write(b"quit\n")
            self._process.stdin.flush()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        # Else it might go on with another pipe that gets the number of this one.
        self._reader.join(5.0)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()

    def __enter__(self) -> Self:
        """The monitor itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        self.close()

    def _command(self, command: str, seconds: float) -> str:
        assert self._process.stdin is not None
        self._marks += 1
        mark = f"{_MARK}{self._marks}"
        lines = f'{command}\necho "{mark}"\n' if command else f'echo "{mark}"\n'
        try:
            self._process.stdin.write(lines.encode())
            self._process.stdin.flush()
        except OSError:
            raise self._end_of_it(command) from None
        # The mark stands twice: in the echoed command, between quotes, and alone as the answer.
        answer = re.compile(rf"^{mark}$", re.MULTILINE)
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                found = answer.search(self._text)
                if found is not None:
                    said, self._text = self._text[: found.start()], self._text[found.end() :]
                    return _answer_of(said, command, mark)
                if self._ended:
                    raise self._end_of_it(command)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise RenodeError(f"Renode hasn't done {command!r} in {seconds:.0f} s")
                self._changed.wait(left)

    def _end_of_it(self, command: str) -> RenodeError:
        tail = " ".join(self._text.split())[-500:]
        return RenodeError(f"Renode has ended at {command!r}; it said last: {tail or 'nothing'}")

    def _read(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        while data := os.read(pipe.fileno(), 1 << 16):
            with self._changed:
                self._text += data.decode(errors="replace").replace("\r", "")
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def _answer_of(said: str, command: str, mark: str) -> str:
    """Without prompts and without the commands that the console repeats."""
    plain = _PROMPT.sub("", said)
    repeated = {command.strip(), f'echo "{mark}"'}
    return "\n".join(line for line in plain.splitlines() if line.strip() not in repeated).strip()
