"""`tinyfleet compile`: a model and its plans become a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from codegen.firmware.bundle import QUANTIZATION, Bundle
from codegen.firmware.flash_layout import Keep
from codegen.graph.ir import Loss
from codegen.quantization.model import QuantizationOptions
from codegen.quantization.report import LayerError, QuantizationReport, load_report
from fleet.cli._output import budget_table, console, flash_line, percent, print_json, table
from fleet.cli._progress import stage_bars
from fleet.firmware import compile_firmware

_MOST_NAMES = 12
_REGIONS = {
    "identity": "identity",
    "journal": "journal",
    "slot_a": "weights slot A",
    "slot_b": "weights slot B",
    "samples": "sample log",
    "personal": "personal values",
}


def compile_bundle(
    *,
    model: Path,
    board: str,
    plans: Sequence[str],
    publish: Sequence[str],
    calibration: Path | None,
    quantization: QuantizationOptions,
    out: Path,
    samples: Keep,
    compiler: Literal["gcc", "zig"] | None,
    loss: Loss | None,
    output: str | None,
    as_json: bool,
) -> None:
    """Compile and say what it costs; every refusal is an exception of `codegen`."""
    with stage_bars(hidden=as_json) as tell:
        bundle = compile_firmware(
            model,
            board,
            plans,
            calibration,
            out,
            compiler=compiler,
            progress=tell,
            samples=samples,
            quantization=quantization,
            publish=publish,
            loss=loss,
            output=output,
            guess=False,
        )
    report = load_report(bundle.path / QUANTIZATION) if quantization.report else None
    if as_json:
        facts = bundle.report.model_dump(mode="json")
        print_json(facts if report is None else {**facts, "quantization": report.model_dump()})
        return
    if report is not None:
        _show_quantization(report)
    _show(bundle, out)


def _trained(bundle: Bundle) -> list[str]:
    """What is trained, for what, and how a sample is labelled: a line each."""
    loss, model = bundle.report.loss, bundle.manifest.model
    outputs = f"{model.classes} values" if model.classes > 1 else "one value"
    why = f" ({loss.output_because})" if loss.output_because else ""
    kinds = {
        "cross-entropy": f"cross entropy over {model.classes} classes",
        "binary": "binary cross entropy of each output",
        "mse": "mean squared error against "
        + ("targets" if model.target_scale else "the model's own input"),
        "none": "none: the bundle only infers, no plan trains anything",
    }
    if loss.name == "binary" and model.classes > 1:
        labels = f"0 … {model.labels - 1}, a bit for each output, the first the lowest"
    elif loss.name == "mse" and model.target_scale:
        labels = (
            f"{outputs} a sample behind its input, int16 codes of {model.target_scale:.3g} each; "
            "the label itself plays no part"
        )
    elif loss.name in ("mse", "none"):
        labels = "play no part"
    else:
        labels = f"{_classes(loss.class_names, model.labels)}, one number a sample"
    return [
        f"Output: '{loss.output}', {outputs}{why}.",
        f"Loss: {kinds[loss.name]} ({loss.because}).",
        f"Labels: {labels}.",
    ]


def _classes(names: Sequence[str], count: int) -> str:
    """The numbers of ``count`` classes, with the ``names`` that the file has for them."""
    named = [f"{number} ({name})" for number, name in enumerate(names)]
    if len(named) > _MOST_NAMES:
        named = [*named[: _MOST_NAMES - 1], f"… {named[-1]}"]
    return ", ".join(named) or f"0 … {count - 1}"


def _show_quantization(report: QuantizationReport) -> None:
    screen = console()
    screen.print(
        table(
            f"Error of the int8 model, calibration by {report.method}"
            + (f" {report.percentile:g}" if report.percentile is not None else ""),
            [
                "layer",
                "operation",
                "int8 step",
                *("SQNR dB", "cosine", "max error"),
                *("own SQNR dB", "own cosine", "own max error"),
            ],
            [_error_row(layer) for layer in report.comparison.layers],
        )
    )
    changed = [pair for pair in report.equalized or () if pair.strength is not None]
    if changed:
        screen.print(
            table(
                "Equalized channels",
                ["between", "and", "widest/median before", "after", "noise after/before"],
                [
                    [
                        pair.first,
                        pair.second,
                        pair.imbalance_before,
                        pair.imbalance_after,
                        pair.predicted_noise,
                    ]
                    for pair in changed
                ],
            )
        )
    elif report.equalized is not None:
        screen.print(
            f"Equalization changed nothing: no pair of layers would gain ({len(report.equalized)} "
            "looked at).",
            soft_wrap=True,
        )
    comparison = report.comparison
    told = "Own: from this layer alone, given the float model's tensors in int8. "
    told += f"{comparison.samples} samples"
    if comparison.top1_agreement is not None:
        told += (
            f", the same class as the float model for {percent(comparison.top1_agreement)} of them"
        )
    screen.print(f"{told}.", soft_wrap=True)


def _error_row(layer: LayerError) -> list[object]:
    figures = [
        value
        for errors in (layer.accumulated, layer.own)
        for value in (
            "exact" if errors.sqnr_db is None else f"{errors.sqnr_db:.1f}",
            f"{errors.cosine:.5f}",
            errors.max_abs_error,
        )
    ]
    return [layer.layer, layer.kind, "n/a" if layer.step is None else layer.step, *figures]


def _show(bundle: Bundle, out: Path) -> None:
    report = bundle.report
    screen = console()
    screen.print(budget_table(report.board, report.plans))
    above = [f"{plan.name} {plan.arena_above_bound_bytes:,}" for plan in report.plans]
    screen.print(f"Arena above its lower bound, bytes: {', '.join(above)}.", soft_wrap=True)
    screen.print(
        f"{flash_line(report.flash_bytes)} Compiled with {bundle.manifest.compiler}.",
        soft_wrap=True,
    )
    outside = [
        f"{_REGIONS[name]} ({region.bytes:,} bytes at {region.address:#010x})"
        for name, region in report.flash_regions.regions.items()
        if region.flash == "external"
    ]
    if outside:
        screen.print(f"In the external flash: {', '.join(outside)}.", soft_wrap=True)
    for line in _trained(bundle):
        screen.print(line, soft_wrap=True)
    for note in report.notes:
        screen.print(f"Note: {note}", soft_wrap=True)
    screen.print(f"The bundle is in {out}.", soft_wrap=True)
