"""`tinyfleet compile`: a model and its plans become a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from codegen.bundle import Bundle
from fleet.cli._output import budget_rows, console, print_json, table
from fleet.firmware import compile_firmware


def compile_bundle(
    *,
    model: Path,
    board: str,
    plans: Sequence[str],
    calibration: Path | None,
    out: Path,
    compiler: Literal["gcc", "zig"] | None,
    as_json: bool,
) -> None:
    """Compile and say what it costs; every refusal is an exception of `codegen`."""
    screen = console()
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    # Bars are for terminals; a log gets only the result.
    with Progress(*columns, console=screen, disable=as_json or not screen.is_terminal) as bars:
        stages: dict[str, TaskID] = {}

        def tell(stage: str, done: int, of: int) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=of)
            bars.update(stages[stage], completed=done, total=of)

        bundle = compile_firmware(
            model, board, plans, calibration, out, compiler=compiler, progress=tell
        )
    if as_json:
        print_json(bundle.report.model_dump(mode="json"))
    else:
        _show(bundle, out)


def _show(bundle: Bundle, out: Path) -> None:
    report = bundle.report.model_dump(mode="json")
    screen = console()
    titles = ["plan", "arena", "state", "samples", "link", "other", "stack", "total"]
    screen.print(
        table(
            f"SRAM by purpose on {report['board']}, bytes",
            [*titles, "limit", "delta values"],
            budget_rows(report),
        )
    )
    flash = report["flash_bytes"]
    screen.print(
        f"Flash: {flash['code']:,} bytes of code, {flash['weights']:,} of weights. "
        f"Compiled with {bundle.manifest.compiler}.",
        soft_wrap=True,
    )
    for note in report["notes"]:
        screen.print(f"Note: {note}", soft_wrap=True)
    screen.print(f"The bundle is in {out}.", soft_wrap=True)
