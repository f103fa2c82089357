"""Many seeds, and the shortest story of each that fails."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from simulator.experiments.faults.run import Outcome, faults_of, run_seed
from simulator.experiments.faults.scene import Scene
from simulator.experiments.faults.watch import Violation
from simulator.virtual.population import Firmware

CRASH, HANG = "no crash", "no hang"
HANG_SECONDS = 600.0
"""Of this machine's time. A story takes a second; what asks for no more events has no other end."""
MOST_RUNS = 150
"""To shorten one seed's schedule."""

Run = Callable[[int, Collection[int] | None], Outcome]
"""Runs a seed with some of its faults, or with all of them."""


@dataclass(frozen=True)
class Finding:
    """A seed in which something that has to hold didn't."""

    outcome: Outcome
    """With as few of its faults as it takes."""
    of: int
    """How many it had."""
    most: int
    """What its schedule was drawn with."""

    @property
    def violation(self) -> Violation:
        """What it was."""
        assert self.outcome.violation is not None
        return self.outcome.violation

    @property
    def command(self) -> str:
        """What shows it again."""
        seed, numbers = self.outcome.seed, [one.number for one in self.outcome.faults]
        only = ",".join(map(str, numbers)) or "none"
        return (
            f"tinyfleet experiment faults --seeds {seed}..{seed} --events {self.most} --only {only}"
        )

    def to_json(self) -> dict[str, Any]:
        """As plain dictionaries and lists."""
        return {
            "seed": self.outcome.seed,
            "invariant": self.violation.invariant,
            "at_seconds": self.violation.at,
            "what": self.violation.what,
            "faults": [str(one) for one in self.outcome.faults],
            "of": self.of,
            "command": self.command,
            "story": list(self.outcome.story),
        }


def shrunk(outcome: Outcome, most: int, run: Run) -> Finding:
    """The same violation with as few faults as possible (delta debugging, Zeller 1999).

    What is left out leaves the others as they were; so long as the same invariant breaks it isn't
    needed.
    """
    assert outcome.violation is not None
    best, of = outcome, len(outcome.faults)
    invariant = outcome.violation.invariant
    size, runs = max(1, of // 2), 0
    while size and runs < MOST_RUNS:
        first = 0
        while first < len(best.faults) and runs < MOST_RUNS:
            kept = [*best.faults[:first], *best.faults[first + size :]]
            tried = run(outcome.seed, [one.number for one in kept])
            runs += 1
            if tried.violation is not None and tried.violation.invariant == invariant:
                best = tried
            else:
                first += size
        size //= 2
    return Finding(best, of, most)


class _Worker:
    """A process that runs seeds. Where the devices' C crashes it dies, and another takes over.

    So it does where nothing is heard of it any more.
    """

    def __init__(self, firmware: Firmware, most: int) -> None:
        self._firmware, self._most = firmware, most
        self._begin()

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._firmware, self._most), daemon=True
        )
        self._process.start()
        theirs.close()

    def ask(self, seed: int, only: Collection[int] | None = None) -> None:
        self._asked = (seed, only)
        self._give_up_at = time.monotonic() + HANG_SECONDS
        self.connection.send(self._asked)

    @property
    def seconds_left(self) -> float:
        """Until it is given up."""
        return max(0.0, self._give_up_at - time.monotonic())

    def answer(self) -> Outcome:
        try:
            if not self.connection.poll(self.seconds_left):
                self._process.kill()
                return self._ended(HANG, f"the process was killed after {HANG_SECONDS:g} s")
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            return self._ended(CRASH, f"the process died with exit code {self._process.exitcode}")
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Outcome)
        return answer

    def _ended(self, invariant: str, what: str) -> Outcome:
        """Another process takes over."""
        self.close()
        self._begin()
        seed, only = self._asked
        faults = faults_of(Scene(seed, self._firmware), self._most, only)
        return Outcome(seed, tuple(faults), Violation(invariant, 0.0, what), (), 0, ())

    def run(self, seed: int, only: Collection[int] | None) -> Outcome:
        """Both."""
        self.ask(seed, only)
        return self.answer()

    def close(self) -> None:
        self.connection.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(connection: Connection, firmware: Firmware, most: int) -> None:
    try:
        while True:
            seed, only = connection.recv()
            try:
                connection.send(run_seed(seed, firmware, most, only))
            except Exception as error:
                connection.send(error)
    except (EOFError, OSError):
        return


def search(
    seeds: Iterable[int],
    firmware: Firmware,
    most: int,
    workers: int,
    only: Collection[int] | None = None,
) -> Iterator[Outcome | Finding]:
    """Run seeds in so many processes; yields what came of each, in any order.

    Args:
        seeds: which.
        firmware: of all devices.
        most: faults of a seed at most.
        workers: processes.
        only: numbers of the faults that happen; then nothing is shortened. Nor is what hangs.
    """
    todo = iter(seeds)
    everybody = [_Worker(firmware, most) for _ in range(workers)]
    try:
        busy: dict[Any, _Worker] = {}

        def go_on(worker: _Worker) -> None:
            seed = next(todo, None)
            if seed is not None:
                worker.ask(seed, only)
                busy[worker.connection] = worker

        for worker in everybody:
            go_on(worker)
        while busy:
            soon = min(one.seconds_left for one in busy.values())
            late = [one.connection for one in busy.values() if not one.seconds_left]
            for ready in wait(list(busy), soon) or late:
                worker = busy.pop(ready)
                outcome = worker.answer()
                if outcome.violation is None:
                    yield outcome
                elif only is None and outcome.violation.invariant != HANG:
                    yield shrunk(outcome, most, worker.run)
                else:
                    yield Finding(outcome, len(outcome.faults), most)
                go_on(worker)
    finally:
        for worker in everybody:
            worker.close()
