"""`tinyfleet demo`: progress while it runs, then a table."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fleet.cli._output import console, print_json, table
from fleet.demo.orchestrator import DemoSettings, run_demo
from fleet.demo.report import (
    LINK_COLUMNS,
    LINK_NOTE,
    PLAN_COLUMNS,
    ROUND_COLUMNS,
    SRAM_COLUMNS,
    headline,
    link_rows,
    plan_rows,
    round_rows,
    sram_rows,
)
from fleet.demo.result import DemoResult, summary


class ProgressLines:
    """One bar per phase on a terminal; where there is none, one line per phase that is done."""

    def __init__(self, screen: Console) -> None:
        """``screen`` is what is written to."""
        self._screen = screen
        self._bars = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=screen,
            disable=not screen.is_terminal,
        )
        self._phase = ""
        self._said = ""
        self._task = self._bars.add_task("", visible=False)

    def phase(self, name: str, done: int, of: int) -> None:
        """See `fleet.demo.orchestrator.Watcher`."""
        if name != self._phase:
            self._phase = name
            self._task = self._bars.add_task(name, total=of)
        self._bars.update(self._task, completed=done, total=of)
        if not self._screen.is_terminal and done == of and name != self._said:
            self._said = name
            self.say(f"{name}: {done} of {of}")

    def say(self, text: str) -> None:
        """See `fleet.demo.orchestrator.Watcher`."""
        self._screen.print(text, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop to draw."""
        self._bars.stop()


def show_demo(settings: DemoSettings, *, as_json: bool) -> None:
    """Run the demo and show what came of it; every failure is an exception of ours."""
    # The services log to files; on the screen their chatter would break the bars.
    logging.getLogger().addHandler(logging.NullHandler())
    if as_json:
        print_json(summary(run_demo(settings)))
        return
    screen = console()
    with ProgressLines(screen) as lines:
        result = run_demo(settings, lines)
    show_result(screen, result, settings.out)


def show_result(screen: Console, result: DemoResult, out: Path) -> None:
    """The tables at the end of a demo."""
    screen.print(table("Plans", PLAN_COLUMNS, plan_rows(result)))
    screen.print(table("Link, bytes per device and round", LINK_COLUMNS, link_rows(result)))
    screen.print(LINK_NOTE.format(dense=result.dense_fp32_bytes), soft_wrap=True)
    screen.print(table("SRAM by purpose, bytes", SRAM_COLUMNS, sram_rows(result)))
    screen.print(table("Rounds", ROUND_COLUMNS, round_rows(result)))
    deltas = result.deltas
    screen.print(
        f"{result.devices} devices, {result.rounds} rounds, {result.seconds:,.0f} s. Deltas: "
        f"{deltas.accepted} accepted, {deltas.late} late, {deltas.duplicate} duplicate, "
        f"{sum(deltas.refused.values())} refused.",
        soft_wrap=True,
    )
    for line in (*headline(result), *result.privacy):
        screen.print(line, soft_wrap=True)
    screen.print(f"Report: {out / 'report.html'}", soft_wrap=True)
