"""`tinyfleet plan`: find update plans that learn most within a board's limits."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from codegen.boards import load_board
from codegen.importer import import_model
from codegen.plan_search import pictures
from codegen.plan_search.planning import PlanningResult, Proposal, Settings, find_plans
from codegen.plan_search.samples import load_samples
from codegen.quantize_model import QuantizationOptions, quantize_model
from codegen.toolchain import find_toolchain
from fleet.cli._errors import CommandError
from fleet.cli._output import console, print_json, readable, table
from fleet.cli._progress import stage_bars
from fleet.protocol.delta_coding import encode


def make_plans(
    *,
    model: Path,
    board: str,
    data: Path,
    calibration: Path | None,
    quantization: QuantizationOptions,
    settings: Settings,
    out: Path,
    compiler: Literal["gcc", "zig"] | None,
    as_json: bool,
) -> None:
    """Search, write the plan file and the pictures, and say what was found."""
    if out.is_dir():
        raise CommandError(f"{out} is a folder; give the plan file's name with --out FILE")
    target = load_board(board)
    imported = import_model(model)
    # Without a file of its own, a float model is calibrated with the samples themselves.
    samples_file = calibration or (data if imported.uncoded else None)
    quantized = quantize_model(imported, samples_file, quantization)
    graph = quantized.graph
    samples = load_samples(data, graph, imported)
    with stage_bars(hidden=as_json) as tell:
        result = find_plans(
            graph,
            target,
            samples,
            settings,
            protocol_cddl=Path(str(files("fleet.protocol") / "tinyfleet.cddl")),
            toolchain=find_toolchain(compiler),
            coded_bytes=_coded_bytes,
            journal=out.with_suffix(".contributions.jsonl"),
            progress=tell,
        )
    out.write_text(json.dumps(result.plan_file(), indent=1) + "\n", "utf-8")
    drawn = {
        out.with_suffix(".contributions.svg"): pictures.contributions_picture(result.contributions),
        out.with_suffix(".accuracy.svg"): pictures.accuracy_picture(result),
    }
    for path, figure in drawn.items():
        pictures.save(figure, path)
    if as_json:
        print_json({**_facts(result), "notes": quantized.notes})
        return
    _show(result)
    screen = console()
    for note in quantized.notes:
        screen.print(f"Note: {note}", soft_wrap=True)
    screen.print(
        f"Plans: {out}; pictures: {', '.join(map(str, drawn))}. Compile with --plan {out}#best.",
        soft_wrap=True,
    )


def _coded_bytes(values: NDArray[np.int32]) -> int:
    return len(encode(values))


def _show(result: PlanningResult) -> None:
    screen = console()
    rows: list[list[object]] = [
        [
            item.name,
            len(item.plan.biases),
            sum(len(weight.channels) for weight in item.plan.weights),
            item.costs.sram_bytes,
            item.costs.delta_bytes,
            item.costs.macs,
            item.predicted,
            _percent(item.measured.probability),
            _percent(item.measured.hits),
        ]
        for item in result.proposals
    ]
    columns = [
        "plan", "biases of", "channels", "SRAM", "delta", "MACs per step", "predicted gain",
        "right class", "accuracy",
    ]  # fmt: skip
    head = result.head_only
    rows.insert(
        0,
        ["head alone", "", "", "", "", "", "", _percent(head.probability), _percent(head.hits)],
    )
    limits = f"{result.limits.sram_bytes:,} bytes of SRAM"
    if result.limits.delta_bytes is not None:
        limits += f", {result.limits.delta_bytes:,} bytes of delta per round"
    if result.limits.macs is not None:
        limits += f", {result.limits.macs:,} multiply-accumulates per step"
    screen.print(
        table(f"Best plans for less and less SRAM on {result.board}; limit {limits}", columns, rows)
    )
    best = result.best
    screen.print(
        f"Gains are predicted by the method '{result.contributions.method}' in "
        f"{result.contributions.unit}; accuracy and mean probability of the right class are "
        "measured by training each plan with the device's arithmetic, on samples held out.",
        soft_wrap=True,
    )
    screen.print(_additivity(result, best), soft_wrap=True)
    found = (
        "is proved optimal for these contributions"
        if best.optimal
        else "is the best that was found before the search was cut short"
    )
    screen.print(
        f"Plan best {found}. Linked: {result.linked.sram_bytes.total:,} bytes of SRAM; the delta "
        f"of a round took {result.delta_bytes:,} bytes.",
        soft_wrap=True,
    )
    screen.print(
        table(
            "Plan best with other options",
            ["option", "SRAM", "delta", "note"],
            [
                [v.option, v.costs.sram_bytes, v.costs.delta_bytes, ""]
                if v.costs
                else [v.option, "n/a", "n/a", v.refusal]
                for v in result.variants
            ],
        )
    )


def _additivity(result: PlanningResult, best: Proposal) -> str:
    measured = best.measured.probability - result.head_only.probability
    if result.contributions.method == "fisher":
        loss = result.head_only.loss - best.measured.loss
        return (
            f"Plan best: {readable(best.predicted)} nats predicted for a first step; all steps "
            f"lowered the loss by {readable(loss)} nats."
        )
    return (
        f"That gains add up is an assumption: for plan best {readable(best.predicted)} was "
        f"predicted, {readable(measured)} measured."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _facts(result: PlanningResult) -> dict[str, Any]:
    return {
        "board": result.board,
        "limits": asdict(result.limits),
        "head_only": asdict(result.head_only),
        "contributions": result.contributions.to_json(),
        "plans": [
            {
                "name": item.name,
                "id": item.plan.id,
                "plan": item.spec.model_dump(mode="json", exclude_defaults=True),
                "predicted_gain": item.predicted,
                "optimal": item.optimal,
                "costs": asdict(item.costs),
                "measured": asdict(item.measured),
            }
            for item in result.proposals
        ],
        "best": {
            "linked_sram_bytes": result.linked.sram_bytes.model_dump(mode="json"),
            "measured_delta_bytes": result.delta_bytes,
            "measured_gain": result.best.measured.probability - result.head_only.probability,
            "predicted_gain": result.best.predicted,
        },
        "delta_bits_per_value": asdict(result.bits),
        "variants": [
            {"option": v.option, "costs": v.costs and asdict(v.costs), "refusal": v.refusal}
            for v in result.variants
        ],
    }
