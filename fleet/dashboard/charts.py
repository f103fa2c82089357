"""Charts as geometry: data in, lines and bars in the units of a drawing out; `charts.html` draws.

The same figures come as rows, for those who can't see the drawing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 600, 220
LEFT, RIGHT, TOP, BOTTOM = 64, 592, 10, 190
"""Where the plot is in the drawing."""

COLOURS = 3
"""Of series; more than that begin again, with dashes."""

_LETTER = 6.5
"""Of a text below the plot: its width, rather too much."""


@dataclass(frozen=True)
class Tick:
    """A line of the grid at `at`, and what is written beside it."""

    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A point of a line, or a bar; `label` is told of it."""

    x: float
    y: float
    label: str
    width: float = 0.0
    height: float = 0.0


@dataclass(frozen=True)
class Series:
    """A line or bars of one colour: `number` counts from 0."""

    name: str
    number: int
    marks: tuple[Mark, ...]
    path: str = ""

    @property
    def colour(self) -> int:
        """1 to `COLOURS`."""
        return self.number % COLOURS + 1


@dataclass(frozen=True)
class Chart:
    """What is drawn, and what it says in words."""

    title: str
    description: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Series, ...] = ()
    bars: tuple[Series, ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = field(default=(), repr=False)


def steps(low: float, high: float, most: int = 5) -> tuple[float, ...]:
    """Round numbers that cover a range: 1, 2, 2.5 or 5 of a power of ten apart, `most` at most
    within it and one around it at each end."""
    if not high > low:
        low, high = low - (abs(low) or 1.0) / 2, low + (abs(low) or 1.0) / 2
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((size * power for size in (1, 2, 2.5, 5) if size * power >= rough), 10 * power)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return tuple(round(number * step, 12) for number in range(first, last + 1))


def lines(
    title: str,
    description: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    over: str,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
    x_marks: Sequence[tuple[float, str]] | None = None,
) -> Chart | None:
    """Lines of points (x, y), x growing; None where there is no point.

    `over` names x in the table; `x_marks` are told below the plot instead of round numbers, those
    that have room.
    """
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    if not xs:
        return None
    y_steps = steps(min(ys), max(ys))
    low, high = min(xs), max(xs)
    at_x = _scale(low, high, LEFT, RIGHT)
    if x_marks is not None:
        ticks = _with_room(x_marks, at_x)
    else:
        ticks = tuple((x, x_text(x)) for x in steps(low, high) if low <= x <= high)
    at_y = _scale(y_steps[0], y_steps[-1], BOTTOM, TOP)
    drawn = []
    for number, (name, points) in enumerate(series.items()):
        marks = tuple(
            Mark(at_x(x), at_y(y), f"{name}, {x_text(x)}: {y_text(y)}") for x, y in points
        )
        path = "".join(
            f"{'L' if index else 'M'}{mark.x:.1f} {mark.y:.1f}" for index, mark in enumerate(marks)
        )
        drawn.append(Series(name, number, marks, path))
    return Chart(
        title,
        description,
        x_ticks=tuple(Tick(at_x(x), label) for x, label in ticks),
        y_ticks=tuple(Tick(at_y(y), y_text(y)) for y in y_steps),
        lines=tuple(drawn),
        header=(over, *series),
        rows=_table(series, x_text, y_text),
    )


def bars(
    title: str,
    description: str,
    categories: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    over: str,
    y_text: Callable[[float], str],
) -> Chart | None:
    """Bars of each series beside each other for every category; None where there is none.

    Values are 0 or more. `over` names the categories in the table.
    """
    if not categories or not series:
        return None
    y_steps = steps(0.0, max([1.0, *(y for values in series.values() for y in values)]))
    at_y = _scale(y_steps[0], y_steps[-1], BOTTOM, TOP)
    slot = (RIGHT - LEFT) / len(categories)
    width = 0.8 * slot / len(series)
    drawn = []
    for number, (name, values) in enumerate(series.items()):
        marks = []
        for index, y in enumerate(values):
            left = LEFT + slot * (index + 0.1) + number * width
            label = f"{name}, {categories[index]}: {y_text(y)}"
            marks.append(Mark(left, at_y(y), label, width, BOTTOM - at_y(y)))
        drawn.append(Series(name, number, tuple(marks)))
    every = math.ceil(len(categories) / 8)
    return Chart(
        title,
        description,
        x_ticks=tuple(
            Tick(LEFT + slot * (index + 0.5), name)
            for index, name in enumerate(categories)
            if index % every == 0
        ),
        y_ticks=tuple(Tick(at_y(y), y_text(y)) for y in y_steps),
        bars=tuple(drawn),
        header=(over, *series),
        rows=tuple(
            (name, *(y_text(values[index]) for values in series.values()))
            for index, name in enumerate(categories)
        ),
    )


def _with_room(
    marks: Sequence[tuple[float, str]], at: Callable[[float], float]
) -> tuple[tuple[float, str], ...]:
    """The marks from left to right whose texts don't touch the one before."""
    found: list[tuple[float, str]] = []
    free = -math.inf
    for x, text in marks:
        half = _LETTER * len(text) / 2
        if at(x) - half >= free:
            found.append((x, text))
            free = at(x) + half + _LETTER
    return tuple(found)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From values to units of the drawing; the middle where all values are one."""
    if high <= low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) * (end - start) / (high - low)


def _table(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
) -> tuple[tuple[str, ...], ...]:
    """A row for each x, with the last y that each series has there."""
    known = [dict(points) for points in series.values()]
    every = sorted({x for points in known for x in points})
    return tuple(
        (x_text(x), *(y_text(points[x]) if x in points else "" for points in known)) for x in every
    )
