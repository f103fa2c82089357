"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from codegen.firmware.bundle import FlashBytes, PlanReport

_PLAIN_WIDTH = 160


def print_json(facts: Any) -> None:
    """Print facts as indented JSON on stdout."""
    sys.stdout.write(json.dumps(facts, indent=2) + "\n")


def console() -> Console:
    """The console that people read; plain text when stdout is no terminal."""
    screen = Console(highlight=False)
    # Rich folds to 80 columns when stdout is a file or a pipe, where nothing needs folding.
    return screen if screen.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table whose first column is left aligned and whose numbers are right aligned."""
    result = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        numeric = index > 0 and all(_is_figure(row[index]) for row in rows)
        result.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        result.add_row(*(readable(value) for value in row))
    return result


def _is_figure(value: object) -> bool:
    """Numbers, texts that begin with one, and what stands for one that is missing."""
    return isinstance(value, (int, float)) or (
        isinstance(value, str) and (value[:1].isdigit() or value in ("", "n/a"))
    )


def readable(value: object) -> str:
    """Numbers with separators between thousands; everything else as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return str(value)


def percent(share: float | None) -> str:
    """A share of 1; n/a where there is none."""
    return "n/a" if share is None else f"{100 * share:.1f} %"


def budget_table(board: str, plans: Iterable[PlanReport]) -> Table:
    """SRAM by purpose, one row per plan of a bundle."""
    purposes = ["arena", "state", "samples", "link", "other", "stack", "total"]
    rows = [
        [
            plan.name,
            *plan.sram_bytes.model_dump().values(),
            plan.sram_limit_bytes,
            plan.delta_values,
        ]
        for plan in plans
    ]
    columns = ["plan", *purposes, "limit", "delta values"]
    return table(f"SRAM by purpose on {board}, bytes", columns, rows)


def flash_line(flash: FlashBytes) -> str:
    """What the image takes of the flash, as a sentence."""
    frozen = f" and {flash.frozen:,} of frozen ones" if flash.frozen else ""
    return f"Flash: {flash.code:,} bytes of code, {flash.weights:,} of weights{frozen}."
