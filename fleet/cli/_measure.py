"""`tinyfleet measure`: what a bundle's image takes when it runs."""

from __future__ import annotations

from pathlib import Path

from codegen.graph.ir import LOSS_UNITS
from fleet.cli._output import console, print_json, table
from simulator.machines.measure import Measurement, measure

_KERNELS_SHOWN = 12
_OUTPUTS_SHOWN = 16


def measure_bundle(*, bundle: Path, plan: str | None, machine: str | None, as_json: bool) -> None:
    """Run the image and print the figures; refusals are exceptions of codegen and simulator."""
    found = measure(bundle, plan, machine)
    if as_json:
        print_json(found.to_json())
    else:
        _show(found)


def _show(found: Measurement) -> None:
    screen = console()
    step = found.instructions.step
    screen.print(
        table(
            f"Plan {found.plan_name} on {found.board}, run by {found.machine}",
            ["what", "measured"],
            [
                ["instructions, forward pass", found.instructions.forward],
                ["instructions, training step", step],
                ["stack high water, bytes", found.stack_high_water_bytes],
                ["SRAM touched, bytes", found.sram_touched_bytes],
                ["SRAM limit, bytes", found.sram_limit_bytes],
                *(
                    [[f"loss of the sample, {found.loss_unit}", found.loss]]
                    if found.loss_unit != LOSS_UNITS["none"]
                    else []
                ),
            ],
        )
    )
    kernels = list(found.instructions.by_kernel.items())
    rows: list[list[object]] = [
        [name, count, f"{100 * count / step:.1f} %"] for name, count in kernels[:_KERNELS_SHOWN]
    ]
    rest = sum(count for _, count in kernels[_KERNELS_SHOWN:])
    if rest:
        rows.append(["all others", rest, f"{100 * rest / step:.1f} %"])
    screen.print(
        table("Instructions of the training step by function", ["function", "count", "share"], rows)
    )
    outputs = [f"{value:.3f}" for value in found.logits[:_OUTPUTS_SHOWN]]
    rest = len(found.logits) - len(outputs)
    are_logits = found.loss_unit == LOSS_UNITS["cross-entropy"]
    screen.print(
        f"{'Logits' if are_logits else 'Outputs'}: {', '.join(outputs)}"
        + (f" and {rest} more" if rest else ""),
        soft_wrap=True,
    )
