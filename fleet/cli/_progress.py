"""Progress bars for commands that take minutes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fleet.cli._output import console

if TYPE_CHECKING:  # the compiler stands behind it, which not every installation has
    from fleet.firmware import Progress as Tell


@contextmanager
def stage_bars(*, hidden: bool) -> Iterator[Tell]:
    """A bar for each stage that the yielded function is told of.

    Bars are for terminals: none are drawn where they are ``hidden`` or the output goes to a log.
    """
    screen = console()
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=screen, disable=hidden or not screen.is_terminal) as bars:
        stages: dict[str, TaskID] = {}

        def tell(stage: str, done: int, of: int) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=of)
            bars.update(stages[stage], completed=done, total=of)

        yield tell
