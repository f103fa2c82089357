"""Programs that wait, side by side in virtual time, and a store that they share.

A coordinator's driver is written as live ones are: it asks, waits and goes on. Here each is a
greenlet that goes on when what it waits for has come. Only one of them runs at a time, in the order
in which they were started, so the same events have the same results. Any of them can be killed
wherever it touches the world: before it waits, before it sends, behind each of its transactions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import sqlalchemy as sa
from greenlet import getcurrent, greenlet

from fleet.clock import Clock
from fleet.store import SqlStore
from simulator.experiments.window_clock import WindowClock


class WaitingClock(Clock, Protocol):
    """A clock on which one can wait for something, and ask to be called."""

    def wait(self, seconds: float, is_over: Callable[[], bool]) -> None:
        """Let time pass until ``is_over``, or so long."""

    def call_later(self, seconds: float, action: Callable[[], None]) -> None:
        """Run ``action`` when so much time has passed."""


class ProcessKilled(BaseException):
    """A process ends here as SIGKILL ends it: whatever wants to tidy up mustn't."""


class Process:
    """A program under way. It is the clock that its program is given."""

    def __init__(
        self, clock: WindowClock, name: str, run: Callable[[WaitingClock], object]
    ) -> None:
        """Nothing runs before its `Processes` do."""
        self.name = name
        self.error: Exception | None = None
        """What the program let out, where that has ended it."""
        self._clock = clock
        self._wakes_at = 0.0
        self._is_over: Callable[[], bool] = lambda: True
        self._steps_left: int | None = None
        self._never_runs = False
        self._greenlet = greenlet(lambda: self._run(run))

    def _run(self, run: Callable[[WaitingClock], object]) -> None:
        try:
            run(self)
        except ProcessKilled:
            pass
        except Exception as error:
            self.error = error

    @property
    def lives(self) -> bool:
        """Whether it hasn't ended."""
        return not (self._greenlet.dead or self._never_runs)

    @property
    def wakes_at(self) -> float:
        """When it goes on at the latest, on the monotonic clock."""
        return self._wakes_at

    @property
    def is_due(self) -> bool:
        """Whether it can go on."""
        return self._wakes_at <= self._clock.monotonic() or self._is_over()

    def go_on(self) -> None:
        """Let it run until it waits again, or ends."""
        self._greenlet.switch()

    def kill(self) -> None:
        """End it where it waits."""
        if self._greenlet:
            self._greenlet.throw(ProcessKilled())
        self._never_runs = True

    def kill_after(self, steps: int) -> None:
        """End it at its ``steps``-th step (from 1) from now."""
        self._steps_left = steps

    def step(self) -> None:
        """Where it is this that runs and its time has come, it ends here.

        It is about to touch the world, or just has.
        """
        if self._steps_left is not None and getcurrent() is self._greenlet:
            self._steps_left -= 1
            if self._steps_left <= 0:
                raise ProcessKilled

    # ---- the clock of its program ------------------------------------------------------

    def monotonic(self) -> float:
        """See `Clock`."""
        return self._clock.monotonic()

    def wall(self) -> float:
        """See `Clock`."""
        return self._clock.wall()

    def sleep(self, seconds: float) -> None:
        """See `Clock`."""
        self.wait(seconds, lambda: False)

    def call_later(self, seconds: float, action: Callable[[], None]) -> None:
        """See `WaitingClock`."""
        self.step()
        self._clock.call_later(seconds, action)

    def wait(self, seconds: float, is_over: Callable[[], bool]) -> None:
        """See `WaitingClock`."""
        self.step()
        self._clock.count_event()
        self._wakes_at = self._clock.monotonic() + max(0.0, seconds)
        self._is_over = is_over
        if not self.is_due:
            self._greenlet.parent.switch()


class Processes:
    """All of them."""

    def __init__(self, clock: WindowClock) -> None:
        """None yet."""
        self._clock = clock
        self._all: list[Process] = []

    def start(self, name: str, run: Callable[[WaitingClock], object]) -> Process:
        """Begin a program; it runs as soon as time does."""
        process = Process(self._clock, name, run)
        self._all.append(process)
        return process

    def step(self) -> None:
        """See `Process.step`."""
        for one in self._all:
            one.step()

    def advance(self, seconds: float, is_over: Callable[[], bool] = lambda: False) -> None:
        """Let time pass, and all that wait go on when they can; ends early where ``is_over``."""
        end = self._clock.monotonic() + seconds
        while not is_over():
            self._all = [one for one in self._all if one.lives]
            due = [one for one in self._all if one.is_due]
            for one in due:
                one.go_on()
            if due:
                continue
            now = self._clock.monotonic()
            if now >= end:
                return
            wakes_at = min([end, *(one.wakes_at for one in self._all)])
            self._clock.wait(
                wakes_at - now, lambda: is_over() or any(one.is_due for one in self._all)
            )

    def kill_all(self) -> None:
        """End all of them."""
        for one in self._all:
            one.kill()
        self._all.clear()


class SharedStore(SqlStore):
    """A coordinator's store that tells of each transaction that may have written."""

    on_commit: Callable[[], None] = staticmethod(lambda: None)
    """Called behind each; what it raises comes out of whoever wrote."""
    _depth = 0

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """See `Database.writing`."""
        self._depth += 1
        try:
            with super().writing() as connection:
                yield connection
        finally:
            self._depth -= 1
        if not self._depth:
            self.on_commit()
