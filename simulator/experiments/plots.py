"""The plots of experiments, one function each: a comparison in, matplotlib figure out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simulator.experiments.comparison import (
    Comparison,
    Point,
    Series,
    Spread,
    mean_accuracy,
    median_accuracy,
    never_trained,
    quantity,
    worst_tenth,
)

INK, PAPER = "#1b1f24", "#ffffff"
"""Of axes and letters, and what is behind them; a report puts its own in their place."""
COLOURS = ("#0f7ac4", "#d9541e", "#1c9a5c", "#b0459c", "#b8860b", "#12a3a8", "#8a6fd1", "#c2375a")
"""All stand out on white and on black alike."""
DASHES = ("-", "--", ":", "-.")
_SIZE = (6.0, 3.7)
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_SECONDS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
_ENERGY = ((1e6, "kWh"), (1e3, "Wh"), (1.0, "mWh"), (1e-3, "µWh"))

Units = Sequence[tuple[float, str]]
Measure = Callable[[Point], float | None]


@dataclass(frozen=True)
class Look:
    """How one series is drawn in all plots."""

    colour: str
    dashes: str


def look(index: int) -> Look:
    """Of the series with that number; all differ up to 32 of them."""
    return Look(COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)])


def accuracy_over_rounds(found: Comparison) -> Figure:
    """Mean accuracy of devices after each training round."""
    figure, axes = _new("Mean accuracy of devices, over rounds", "training rounds done")
    _accuracy_lines(axes, found, mean_accuracy)
    return figure


def fairness(found: Comparison) -> Figure:
    """Accuracy of the devices that do worst, after each training round."""
    figure, axes = _new("Fairness: mean of the worst tenth of devices", "training rounds done")
    _accuracy_lines(axes, found, worst_tenth)
    return figure


def median_over_rounds(found: Comparison) -> Figure:
    """Accuracy of the median device after each training round."""
    figure, axes = _new("Median device", "training rounds done")
    _accuracy_lines(axes, found, median_accuracy)
    return figure


def never_trained_over_rounds(found: Comparison) -> Figure | None:
    """Mean accuracy on devices that never train; None where there are none."""
    if not any(one.last(never_trained) for one in found.series):
        return None
    figure, axes = _new("Mean accuracy on devices that never train", "training rounds done")
    _accuracy_lines(axes, found, never_trained)
    return figure


def accuracy_over_time(found: Comparison) -> Figure | None:
    """Mean accuracy over the fleet's time."""
    return _accuracy_over(found, "seconds", "the fleet's time", _SECONDS)


def accuracy_over_bytes(found: Comparison) -> Figure | None:
    """Mean accuracy over what all devices have sent."""
    return _accuracy_over(found, "bytes_up", "bytes up, all devices", _BYTES)


def accuracy_over_energy(found: Comparison) -> Figure | None:
    """Mean accuracy over the energy that all devices have taken."""
    return _accuracy_over(found, "milliwatt_hours", "energy, all devices", _ENERGY)


def costs(found: Comparison) -> Figure | None:
    """What each fleet has spent in the end: bytes up and down, energy, flash erases."""
    shown = [(index, one) for index, one in enumerate(found.series) if one.has_fleet]
    if not shown:
        return None
    kinds: list[tuple[str, str, Units]] = [
        ("bytes_up", "bytes up", _BYTES),
        ("bytes_down", "bytes down", _BYTES),
        ("milliwatt_hours", "energy", _ENERGY),
        ("flash_erases", "flash erases", ((1.0, ""),)),
    ]
    figure = Figure(figsize=(12.4, 1.1 + 0.34 * len(shown)), layout="constrained")
    for place, (name, title, units) in enumerate(kinds):
        axes = figure.add_subplot(1, len(kinds), place + 1)
        spreads = [one.last(quantity(name)) for _, one in shown]
        scale, unit = _unit(max((one.high for one in spreads if one), default=1.0), units)
        for row, ((index, _), spread) in enumerate(zip(shown, spreads, strict=True)):
            if spread is None:
                continue
            low, mean, high = spread.low / scale, spread.mean / scale, spread.high / scale
            axes.barh(row, mean, height=0.7, color=look(index).colour)
            if high > low:
                axes.plot([low, high], [row, row], color=INK, linewidth=1.2)
            axes.annotate(
                _short(mean), (high, row), (4, 0), textcoords="offset points", va="center"
            )
        axes.set_title(f"{title}, {unit}" if unit else title)
        axes.set_yticks(range(len(shown)), [one.label if not place else "" for _, one in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.margins(x=0.22)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="x", alpha=0.22, linewidth=0.7)
        axes.tick_params(axis="y", length=0)
    return _tidy(figure)


PLOTS: dict[str, Callable[[Comparison], Figure | None]] = {
    "accuracy-over-rounds": accuracy_over_rounds,
    "accuracy-over-time": accuracy_over_time,
    "accuracy-over-bytes": accuracy_over_bytes,
    "accuracy-over-energy": accuracy_over_energy,
    "median": median_over_rounds,
    "worst-tenth": fairness,
    "never-trained": never_trained_over_rounds,
    "costs": costs,
}
"""File name without ending → function that draws it; None where there is nothing to draw."""


def add_legend(figure: Figure) -> None:
    """Which line is which, below the axes, for a plot that stands alone; of bars nothing."""
    lines = [one for axes in figure.axes for one in axes.lines]
    shown = {str(one.get_label()): one for one in lines}
    named = {name: one for name, one in shown.items() if not name.startswith("_child")}
    if named:
        figure.legend(
            list(named.values()),
            list(named),
            loc="outside lower center",
            ncols=min(3, len(named)),
            frameon=False,
        )


def _new(title: str, below: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(below)
    axes.set_ylabel("accuracy, %")
    axes.grid(axis="y", alpha=0.22, linewidth=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _tidy(figure)
    return figure, axes


def _accuracy_lines(axes: Axes, found: Comparison, accuracy: Measure) -> None:
    for index, one in enumerate(found.series):
        _line(axes, index, one, [float(at) for at in one.rounds], one.over_rounds(accuracy))
    if accuracy is mean_accuracy:
        _targets(axes, found)


def _accuracy_over(found: Comparison, name: str, what: str, units: Units) -> Figure | None:
    shown = [(index, one) for index, one in enumerate(found.series) if one.has_fleet]
    if not shown:
        return None
    ends = [one.last(quantity(name)) for _, one in shown]
    scale, unit = _unit(max((end.high for end in ends if end), default=1.0), units)
    figure, axes = _new(f"Mean accuracy of devices, over {what}", unit)
    axes.xaxis.set_major_locator(MaxNLocator())
    for index, one in enumerate(found.series):
        if one.has_fleet:
            spent = [at.mean / scale if at else 0.0 for at in one.over_rounds(quantity(name))]
            _line(axes, index, one, spent, one.over_rounds(mean_accuracy))
        else:
            _bound(axes, index, one)
    _targets(axes, found)
    return figure


def _line(
    axes: Axes, index: int, of: Series, at: Sequence[float], spreads: Sequence[Spread | None]
) -> None:
    known = [(x, one) for x, one in zip(at, spreads, strict=True) if one is not None]
    if not known:
        return
    drawn = look(index)
    places = [x for x, _ in known]
    axes.plot(
        places,
        [100 * one.mean for _, one in known],
        label=of.label,
        color=drawn.colour,
        linestyle=drawn.dashes,
        linewidth=1.8,
        marker="o",
        markersize=3.2,
    )
    low, high = ([100 * getattr(one, end) for _, one in known] for end in ("low", "high"))
    if low != high:
        axes.fill_between(places, low, high, color=drawn.colour, alpha=0.16, linewidth=0)


def _bound(axes: Axes, index: int, one: Series) -> None:
    """Something that takes no time of a fleet: where it ends, as a thin line."""
    end = one.last(mean_accuracy)
    if end is not None:
        drawn = look(index)
        axes.axhline(
            100 * end.mean,
            label=one.label,
            color=drawn.colour,
            linestyle=drawn.dashes,
            linewidth=1.0,
            alpha=0.8,
        )


def _targets(axes: Axes, found: Comparison) -> None:
    for target in sorted({one.target_accuracy or 0.0 for one in found.series} - {0.0}):
        axes.axhline(100 * target, color=INK, linewidth=1.0, linestyle=(0, (1, 4)), zorder=1)
        axes.annotate(
            "target",
            (0, 100 * target),
            (4, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=7.5,
        )


def _unit(largest: float, units: Units) -> tuple[float, str]:
    return next((one for one in units if largest >= 2 * one[0]), units[-1])


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _tidy(figure: Figure) -> Figure:
    """The looks that all plots share."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.title.set_fontsize(10.5)
    return figure
