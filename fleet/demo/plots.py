"""The demo's plots, one function each: data in, matplotlib figure out."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from fleet.demo.result import (
    SRAM_PURPOSES,
    DemoResult,
    accuracy_of,
    accuracy_per_round,
    plan_names,
    plan_of_device,
    traffic_of,
)

_SIZE = (6.4, 3.8)
_PURPOSE_NAMES = {"data_bss_other": "other data and bss"}


def accuracy(result: DemoResult) -> Figure:
    """Median and worst tenth of the devices' accuracy after each round."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    points = accuracy_per_round(result)
    rounds = [number for number, _ in points]
    axes.plot(rounds, [100 * at.median for _, at in points], "o-", label="median device")
    axes.plot(rounds, [100 * at.worst_tenth for _, at in points], "s--", label="worst tenth")
    axes.set_title("Accuracy on the devices' own held-out samples")
    axes.set_xlabel("rounds done")
    axes.set_ylabel("accuracy, %")
    axes.set_xticks(rounds)
    axes.legend(loc="lower right")
    return _tidy(figure)


def accuracy_by_plan(result: DemoResult) -> Figure:
    """Median accuracy before and after the campaign, by the plan that the devices trained."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    plan_of = plan_of_device(result)
    names = [(plan, name) for plan, name in plan_names(result).items() if plan in plan_of.values()]
    for index, (plan, name) in enumerate(names):
        for offset, scores, colour in (
            (-0.2, result.first_scores, "C7"),
            (0.2, result.final_scores, "C0"),
        ):
            own = [score for score in scores if plan_of.get(score.device) == plan]
            median = 100 * accuracy_of(own).median
            bar = axes.bar(index + offset, median, width=0.38, color=colour)
            axes.bar_label(bar, fmt="%.1f", fontsize=8)
        devices = sum(1 for used in plan_of.values() if used == plan)
        names[index] = (plan, f"{name}\n{devices} devices")
    axes.set_xticks(range(len(names)), [name for _, name in names])
    axes.set_title("Median accuracy by plan: before (grey) and after (blue)")
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(0, 105)
    return _tidy(figure)


def traffic(result: DemoResult) -> Figure:
    """Bytes up per device and round by plan, delta and whole link, beside a dense fp32 update."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    found = [(name, traffic_of(result, plan)) for plan, name in plan_names(result).items()]
    found = [(name, sent) for name, sent in found if sent.payload_up]
    series = [("delta alone", -0.2, "C0", [sent.payload_up for _, sent in found])]
    if any(sent.link_up for _, sent in found):
        series.append(("whole link", 0.2, "C1", [sent.link_up for _, sent in found]))
    for label, offset, colour, sizes in series:
        places = [index + offset for index in range(len(found))]
        bars = axes.bar(places, sizes, width=0.38, color=colour, label=label)
        axes.bar_label(bars, labels=[f"{size:,.0f}" for size in sizes], fontsize=8)
    dense = result.dense_fp32_bytes
    bars = axes.bar([len(found)], [dense], width=0.38, color="C7")
    axes.bar_label(bars, labels=[f"{dense:,}"], fontsize=8)
    axes.set_xticks(range(len(found) + 1), [*(name for name, _ in found), "dense fp32"])
    axes.set_yscale("log")
    axes.set_ylim(100, max(dense, 1_000) * 3)
    axes.set_title("Bytes up per device and round")
    axes.set_ylabel("bytes (log scale)")
    if found:
        axes.legend(loc="upper left", fontsize=8)
    return _tidy(figure)


def sram(result: DemoResult) -> Figure:
    """SRAM by purpose of each plan on each board, beside the board's limit."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    plans = sorted(result.plans, key=lambda plan: (plan.board, plan.sram_total_bytes))
    labels = [f"{plan.name}\n{plan.board}" for plan in plans]
    bottom = [0.0] * len(plans)
    for purpose in SRAM_PURPOSES:
        sizes = [plan.sram_bytes.get(purpose, 0) / 1024 for plan in plans]
        axes.bar(labels, sizes, bottom=bottom, label=_PURPOSE_NAMES.get(purpose, purpose))
        bottom = [low + size for low, size in zip(bottom, sizes, strict=True)]
    for index, plan in enumerate(plans):
        axes.hlines(plan.sram_limit_bytes / 1024, index - 0.45, index + 0.45, colors="k")
    axes.set_title("SRAM by purpose; black line: the board's limit")
    axes.set_ylabel("KiB")
    axes.tick_params(axis="x", labelsize=7)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _tidy(figure)


def _tidy(figure: Figure) -> Figure:
    """The looks that all plots share."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    return figure


PLOTS: dict[str, Callable[[DemoResult], Figure]] = {
    "accuracy": accuracy,
    "accuracy_by_plan": accuracy_by_plan,
    "uplink": traffic,
    "sram": sram,
}
"""File name without ending → function that draws it."""
