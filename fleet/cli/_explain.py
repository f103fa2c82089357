"""`tinyfleet explain`: the program of a plan, step by step, and what fills the SRAM when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegen.firmware.bundle import Bundle, PlanReport, load_bundle
from codegen.firmware.program_file import BufferInfo, CallInfo, ProgramInfo, load_programs
from fleet.cli._errors import CommandError
from fleet.cli._output import budget_table, console, flash_line, print_json, table

_PICTURES = ("png", "svg")
_STATE_SHOWN = 8


@dataclass(frozen=True)
class _Explained:
    """A plan's program with what is known of the image that runs it."""

    bundle: Bundle
    program: ProgramInfo
    report: PlanReport
    instructions: tuple[int, ...] | None
    """Per step; None where they weren't measured."""
    instructions_outside: int = 0
    """Of the engine around the steps."""


def explain_bundle(
    *, bundle: Path, plan: str | None, memory: Path | None, instructions: bool, as_json: bool
) -> None:
    """Print the program and draw the map; refusals are exceptions of codegen and simulator."""
    if memory is not None and memory.suffix.lower().lstrip(".") not in _PICTURES:
        raise CommandError(f"--memory {memory}: name a file that ends in .png or .svg")
    found = _explained(load_bundle(bundle), plan, instructions)
    if memory is not None:
        _draw(found, memory)
    if as_json:
        print_json(_facts(found))
    else:
        _show(found, memory)


def _explained(bundle: Bundle, plan: str | None, measured: bool) -> _Explained:
    manifest = bundle.manifest
    chosen = manifest.plans[0] if plan is None else manifest.plan(plan)
    program = load_programs(bundle)[chosen.id]
    report = next(report for report in bundle.report.plans if report.id == chosen.id)
    if not measured:
        return _Explained(bundle, program, report, None)
    from simulator.machines.measure import profile_step

    profile = profile_step(bundle, chosen.id, [step.function for step in program.steps])
    counts = tuple(profile.by_function[step.function] for step in program.steps)
    return _Explained(bundle, program, report, counts, profile.outside)


def _draw(found: _Explained, file: Path) -> None:
    # Matplotlib takes a while to import: only who wants a picture waits for it.
    from codegen.firmware.memory_picture import Effort, draw, render

    figure = draw(
        found.program,
        _title(found),
        found.report.sram_bytes,
        found.report.sram_limit_bytes,
        None if found.instructions is None else Effort("instructions", found.instructions),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(render(figure, "svg" if file.suffix.lower() == ".svg" else "png"))


def _title(found: _Explained) -> str:
    manifest = found.bundle.manifest
    return f"{manifest.model.name}, plan {found.program.name} on {manifest.board.name}"


def _facts(found: _Explained) -> dict[str, Any]:
    program = found.program
    facts = program.model_dump(mode="json")
    if found.instructions is not None:
        for step, count in zip(facts["steps"], found.instructions, strict=True):
            step["instructions"] = count
        facts["instructions_outside_steps"] = found.instructions_outside
    return {
        "board": found.bundle.manifest.board.name,
        "model": found.bundle.manifest.model.name,
        **facts,
        "peak": {
            "step": program.peak_step,
            "live_bytes": program.steps[program.peak_step].live_bytes,
            "buffers": [buffer.name for buffer in program.live_at(program.peak_step)],
        },
        "sram_bytes": found.report.sram_bytes.model_dump(mode="json"),
        "sram_limit_bytes": found.report.sram_limit_bytes,
        "flash_bytes": found.bundle.report.flash_bytes.model_dump(mode="json"),
    }


def _show(found: _Explained, memory: Path | None) -> None:
    screen, program, report = console(), found.program, found.bundle.report
    columns = ["step", "kernel", "layer", "in", "out", "live bytes", "MACs"]
    if found.instructions is not None:
        columns += ["instructions", "per MAC"]
    screen.print(table(f"Steps: {_title(found)}", columns, _step_rows(found)))
    if found.instructions is not None:
        total = sum(found.instructions) + found.instructions_outside
        screen.print(
            f"Instructions of the training step: {total:,}, of which "
            f"{found.instructions_outside:,} outside the steps."
        )
    peak = program.peak_step
    step = program.steps[peak]
    screen.print(
        table(
            f"Live at the peak, step {peak} ({step.kernel} of {step.layer}): "
            f"{step.live_bytes:,} bytes",
            ["buffer", "kind", "bytes", "offset", "from step", "to step"],
            [_buffer_row(buffer) for buffer in program.live_at(peak)],
        )
    )
    screen.print(_arena_line(program), soft_wrap=True)
    screen.print(
        table(
            f"Update state: {program.state_bytes:,} bytes in {len(program.state)} tensors",
            ["tensor", "trained channels", "bytes"],
            _state_rows(program),
        )
    )
    screen.print(budget_table(report.board, [found.report]))
    screen.print(flash_line(report.flash_bytes), soft_wrap=True)
    if memory is not None:
        screen.print(f"The memory map is in {memory}.", soft_wrap=True)


def _step_rows(found: _Explained) -> list[list[object]]:
    """One row per step; the stages of a chain follow theirs, indented."""
    rows: list[list[object]] = []
    for number, step in enumerate(found.program.steps):
        row = [f"{number}", *_call_cells(step), step.live_bytes, step.macs]
        if found.instructions is not None:
            count = found.instructions[number]
            row += [count, f"{count / step.macs:.2f}" if step.macs else ""]
        rows.append(row)
        if step.chain is None:
            continue
        for stage in step.chain.stages:
            cells: list[object] = ["", *_call_cells(stage, indent="  "), "", stage.macs]
            rows.append([*cells, *[""] * (len(row) - len(cells))])
    return rows


def _call_cells(call: CallInfo, indent: str = "") -> list[object]:
    return [indent + call.kernel, call.layer, _shapes(call.inputs), _shapes(call.outputs)]


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes)


def _buffer_row(buffer: BufferInfo) -> list[object]:
    return [buffer.name, buffer.kind, buffer.bytes, buffer.offset, buffer.first, buffer.last]


def _arena_line(program: ProgramInfo) -> str:
    arena, bound = program.arena_bytes, program.arena_lower_bound_bytes
    above = arena - bound
    distance = f"{above:,} bytes ({100 * above / bound:.1f} %) above" if above else "equal to"
    return (
        f"Arena: {arena:,} bytes, {distance} the lower bound of {bound:,} bytes that are live at "
        "the peak."
    )


def _state_rows(program: ProgramInfo) -> list[list[object]]:
    largest = sorted(program.state, key=lambda state: -state.bytes)
    rows: list[list[object]] = [
        [state.tensor, f"{state.channels:,} of {state.of_channels:,}", state.bytes]
        for state in largest[:_STATE_SHOWN]
    ]
    rest = largest[_STATE_SHOWN:]
    if rest:
        rows.append([f"{len(rest)} others", "", sum(state.bytes for state in rest)])
    return rows
