"""`tinyfleet plan`: find update plans that learn most within a board's limits."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from codegen.firmware.boards import load_board
from codegen.firmware.toolchain import find_toolchain
from codegen.graph.ir import Loss
from codegen.importer.model import import_model
from codegen.plan_search import pictures
from codegen.plan_search.finalists import CHOSEN
from codegen.plan_search.planning import find_plans
from codegen.plan_search.proof import Bench
from codegen.plan_search.proposals import PlanningResult, Proposal, Settings
from codegen.plan_search.race import Difference
from codegen.plan_search.samples import load_samples
from codegen.quantization.calibration import uncoded
from codegen.quantization.model import QuantizationOptions, quantize_model
from fleet.cli._errors import CommandError
from fleet.cli._output import console, percent, print_json, readable, table
from fleet.cli._progress import stage_bars
from fleet.protocol.delta_coding import encode
from simulator.machines.measure import measure


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
    loss: Loss | None,
    output: str | None,
    as_json: bool,
) -> None:
    """Search, write the plan file and the pictures, and say what was found."""
    if out.is_dir():
        raise CommandError(f"{out} is a folder; give the plan file's name with --out FILE")
    target = load_board(board)
    imported = import_model(model, loss, data, output)
    # Without a file of its own, a float model is calibrated with the samples themselves.
    samples_file = calibration or (data if uncoded(imported) else None)
    quantized = quantize_model(imported, samples_file, quantization)
    graph = quantized.graph
    samples = load_samples(data, graph, imported)
    with stage_bars(hidden=as_json) as tell:
        result = find_plans(
            graph,
            target,
            samples,
            settings,
            Bench(
                protocol_cddl=Path(str(files("fleet.protocol") / "tinyfleet.cddl")),
                toolchain=find_toolchain(compiler),
                coded_bytes=_coded_bytes,
                step_instructions=_step_instructions,
            ),
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
        f"Plans: {out}; pictures: {', '.join(map(str, drawn))}. Compile with --plan "
        f"{shlex.quote(str(out))}#best.",
        soft_wrap=True,
    )


def _coded_bytes(values: NDArray[np.int32]) -> int:
    return len(encode(values))


def _step_instructions(bundle: Path) -> int:
    return measure(bundle).instructions.step


def _show(result: PlanningResult) -> None:
    screen = console()
    rows: list[list[object]] = [
        [
            item.name,
            len(item.plan.biases),
            sum(len(weight.channels) for weight in item.plan.weights),
            item.costs.sram_bytes,
            item.costs.delta_bytes,
            item.costs.instructions,
            "n/a" if item.predicted is None else item.predicted,
        ]
        for item in result.proposals
    ]
    columns = [
        "plan", "biases of", "channels", "SRAM", "delta", "instructions per step",
        "predicted gain",
    ]  # fmt: skip
    screen.print(table(f"Plans on {result.board}; limit {result.limits}", columns, rows))
    screen.print(
        f"Gains are predicted by the method '{result.contributions.method}' in "
        f"{result.contributions.unit}. SRAM, delta and instructions are measured on the image of "
        "each.",
        soft_wrap=True,
    )
    screen.print(_round(result), soft_wrap=True)
    if result.left_out:
        screen.print(
            f"Left out, since they take more than the limit once measured: "
            f"{', '.join(result.left_out)}."
        )
    _show_race(result)
    screen.print(_additivity(result), soft_wrap=True)
    highest = result.highest_sum
    found = (
        "is proved to have the highest sum of contributions"
        if highest.optimal
        else "has the highest sum of contributions that was found before the search was cut short"
    )
    screen.print(f"Plan {highest.name} {found}.")
    screen.print(
        table(
            "Plan best with other options",
            ["option", "SRAM", "delta", "instructions per step", "note"],
            [
                [
                    v.option,
                    v.costs.sram_bytes,
                    v.costs.delta_bytes,
                    v.costs.instructions,
                    "" if result.limits.allow(v.costs) else "beyond the limits",
                ]
                if v.costs
                else [v.option, "n/a", "n/a", "n/a", v.refusal]
                for v in result.variants
            ],
        )
    )


def _show_race(result: PlanningResult) -> None:
    """How the plans did when they were trained, the best one first."""
    screen = console()
    rules = result.finals.rules
    names = {item.origin: item.name for item in result.proposals}
    ranked = sorted(
        result.proposals,
        key=lambda item: (-len(item.standing.outcomes), item.standing.mean_loss),
    )
    rows: list[list[object]] = [
        [
            item.name,
            len(item.standing.outcomes),
            item.standing.mean_loss,
            percent(item.standing.hits),
            _between(item.standing.loss, rules.error, 1.0, ".3f"),
            _between(item.standing.right, rules.error, 100.0, ".1f"),
            _remark(item, result, names),
        ]
        for item in ranked
    ]
    columns = [
        "plan", "seeds", "loss", "accuracy", "loss above the lowest", "points of accuracy above it",
        "",
    ]  # fmt: skip
    finals = result.finals
    title = f"Last choice: {finals.epochs} epochs at {finals.learning_rate:g}, {rules.seeds} seeds"
    screen.print(table(title, columns, rows))
    held = {index for run in result.best.standing.outcomes for index in run.samples}
    screen.print(
        "Each plan is trained from the model's own weights on with the device's arithmetic; with "
        f"each seed other samples are held out ({len(held):,} of yours once at least). Loss is "
        "that of the logits at their best temperature, in nats. Differences are paired by sample "
        f"and seed, at {100 * (1 - rules.error):g} % between the figures in brackets. A plan is "
        f"stopped when its loss is above the lowest for sure: the best one is stopped with a "
        f"probability of {100 * rules.error:g} % at most. Of the plans within one standard error "
        "of the lowest loss, plan best is the one that needs least SRAM.",
        soft_wrap=True,
    )
    if result.race.chosen == result.race.leader:
        reason = "it has the lowest loss, and no smaller one ties with it"
    else:
        reason = (
            f"it ties with {result.race.leader}, which has the lowest loss, and is the smallest "
            "that does"
        )
    screen.print(f"Plan best is {result.race.chosen}: {reason}.")


def _between(found: Difference | None, error: float, factor: float, figures: str) -> str:
    if found is None:
        return "n/a"
    low, high = found.interval(error)
    shown = (format(factor * value, f"+{figures}") for value in (found.mean, low, high))
    return "{} ({} … {})".format(*shown)


def _remark(item: Proposal, result: PlanningResult, names: Mapping[str, str]) -> str:
    standing = item.standing
    if standing.stopped and standing.behind is not None:
        behind = names[standing.behind]
        return f"stopped after {len(standing.outcomes)} seeds, behind {behind}"
    if item.name == CHOSEN:
        return f"chosen ({item.origin})"
    if standing.loss is None:
        return "lowest loss"
    return "ties" if standing.ties else ""


def _round(result: PlanningResult) -> str:
    deltas = result.best.linked.rounds
    of = result.limits.round
    repeated = f" ({result.samples:,} of yours, repeated)" if of.samples > result.samples else ""
    return (
        f"A delta is that of a first round, from the model's own weights on, of {of}{repeated}: "
        f"the largest of {len(deltas)} on different samples, and as much more as they differ by "
        f"(plan best: {', '.join(f'{size:,}' for size in deltas)} bytes). "
        "--round-samples and --round-epochs say what your rounds are."
    )


def _additivity(result: PlanningResult) -> str:
    plan, gained = result.highest_sum, result.summed_gain
    assert plan.predicted is not None
    if result.contributions.method == "fisher":
        return (
            f"Plan {plan.name}: {readable(plan.predicted)} nats predicted for a first step; all "
            f"steps {'raised' if gained < 0 else 'lowered'} the loss by {readable(abs(gained))} "
            "nats."
        )
    return (
        f"That gains add up is an assumption: for plan {plan.name} {readable(plan.predicted)} nats "
        f"were predicted, {readable(gained)} measured, trained as contributions were."
    )


def _facts(result: PlanningResult) -> dict[str, Any]:
    return {
        "board": result.board,
        "limits": asdict(result.limits),
        "finals": asdict(result.finals),
        "leader": result.race.leader,
        "chosen": result.race.chosen,
        "contributions": result.contributions.to_json(),
        "plans": [
            {
                "name": item.name,
                "origin": item.origin,
                "id": item.plan.id,
                "plan": item.spec.model_dump(mode="json", exclude_defaults=True),
                "predicted_gain": item.predicted,
                "optimal": item.optimal,
                "costs": asdict(item.costs),
                "rounds_delta_bytes": item.linked.rounds,
                "measured": _measured(item, result),
            }
            for item in result.proposals
        ],
        "left_out": result.left_out,
        "round_drawn_from": result.samples,
        "best": {
            "linked_sram_bytes": result.best.linked.report.sram_bytes.model_dump(mode="json"),
            "measured_delta_bytes": result.best.costs.delta_bytes,
            "measured_instructions": result.best.costs.instructions,
            "predicted_gain": result.best.predicted,
        },
        "highest_sum": {
            "predicted_gain": result.highest_sum.predicted,
            "measured_gain": result.summed_gain,
        },
        "delta_bits_per_value": asdict(result.bits),
        "variants": [
            {"option": v.option, "costs": v.costs and asdict(v.costs), "refusal": v.refusal}
            for v in result.variants
        ],
    }


def _measured(item: Proposal, result: PlanningResult) -> dict[str, Any]:
    standing, error = item.standing, result.finals.rules.error
    return {
        "seeds": len(standing.outcomes),
        "loss": standing.mean_loss,
        "hits": standing.hits,
        "behind": standing.behind,
        "stopped": standing.stopped,
        "ties": standing.ties,
        **{
            f"more_{name}": found and {"mean": found.mean, "between": found.interval(error)}
            for name, found in (("loss", standing.loss), ("hits", standing.right))
        },
    }
