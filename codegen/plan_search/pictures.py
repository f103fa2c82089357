"""Pictures of an analysis: what each candidate contributes, and what plans reach for their SRAM."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from codegen.firmware.memory_picture import render
from codegen.plan_search.contributions import Contributions
from codegen.plan_search.proposals import PlanningResult

KIB = 1024


def contributions_picture(contributions: Contributions) -> Figure:
    """Gain by bias depth, and by layer and number of channels trained."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(1, 1.6))
    above.plot(range(len(contributions.biases)), contributions.biases, marker=".", color="C0")
    above.set_xlabel("biases of the last … layers")
    above.set_ylabel(f"gain\n({contributions.unit})", fontsize=8)
    above.set_title("Contribution of biases")
    layers = list(contributions.weights)
    widest = max((len(gains) for gains in contributions.weights.values()), default=1)
    for rank in range(widest):
        places, gains = [], []
        for index, layer in enumerate(layers):
            ranked = sorted(contributions.weights[layer].items())
            # Ranks are counted from the whole layer down: small layers have fewer of them.
            place = len(ranked) - widest + rank
            if place >= 0:
                places.append(index - 0.3 + 0.6 * rank / max(1, widest - 1))
                gains.append(ranked[place][1])
        below.bar(places, gains, width=0.6 / widest, color=f"C{rank}", label=_share(widest - rank))
    below.axhline(0.0, color="k", linewidth=0.5)
    below.set_xticks(range(len(layers)), layers, rotation=90, fontsize=7)
    below.set_ylabel(f"gain\n({contributions.unit})", fontsize=8)
    below.set_title("Contribution of weights, by the share of channels trained")
    if layers:
        below.legend(fontsize=8, ncols=widest)
    return _tidy(figure)


def _share(steps_from_whole: int) -> str:
    return "all channels" if steps_from_whole == 1 else f"1/{2 ** (steps_from_whole - 1)}"


def accuracy_picture(result: PlanningResult) -> Figure:
    """Measured accuracy and loss of the plans found against the SRAM of the whole firmware."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes, below = figure.subplots(2, sharex=True)
    sram = [proposal.costs.sram_bytes / KIB for proposal in result.proposals]
    hits = [100 * proposal.standing.hits for proposal in result.proposals]
    losses = [proposal.standing.mean_loss for proposal in result.proposals]
    axes.plot(sram, hits, "o", color="C0")
    below.plot(sram, losses, "o", color="C1")
    axes.axhline(
        100 * result.head_only.standing.hits, color="C0", linestyle=":", label="head alone"
    )
    below.axhline(
        result.head_only.standing.mean_loss, color="C1", linestyle=":", label="head alone"
    )
    for part in (axes, below):
        part.axvline(result.limits.sram_bytes / KIB, color="k", linewidth=1)
        part.legend(fontsize=8)
    for place, height, proposal in zip(sram, losses, result.proposals, strict=True):
        below.annotate(proposal.name, (place, height), fontsize=7, xytext=(0, 5),
                       textcoords="offset points", ha="center")  # fmt: skip
    axes.set_ylabel("held-out samples right, %")
    below.set_ylabel("held-out loss, calibrated, nats")
    below.set_xlabel("SRAM of the firmware, KiB (black line: the limit)")
    axes.set_title(
        f"Plans for {result.board}, each trained and scored with up to "
        f"{result.finals.rules.seeds} seeds"
    )
    return _tidy(figure)


def _tidy(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes ``figure`` as SVG or PNG, as the file's name ends; the same bytes every time."""
    path.write_bytes(render(figure, "svg" if path.suffix == ".svg" else "png"))
