"""Geometry of charts: everything is within the drawing, and as the figures say."""

from __future__ import annotations

import itertools
import math
import re

from hypothesis import given
from hypothesis import strategies as st

from fleet.dashboard.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    bars,
    lines,
    steps,
)
from fleet.dashboard.screens.devices import scores
from fleet.service.schema import HistoryEntry
from tests.conftest import examples

FIGURES = st.floats(-1e9, 1e9, allow_nan=False, width=32)
PAIRS = st.lists(st.tuples(FIGURES, FIGURES), min_size=1, max_size=20, unique_by=lambda one: one[0])


def plain(value: float) -> str:
    return f"{value:g}"


@examples(100)
@given(low=st.integers(-10_000, 10_000), span=st.floats(0.01, 1e9), most=st.integers(2, 10))
def test_steps_are_round_and_cover_the_range(low: int, span: float, most: int) -> None:
    found = steps(low, low + span, most)
    step = found[1] - found[0]
    assert found[0] <= low + 1e-6 * step
    assert found[-1] >= low + span - 1e-6 * step
    assert 2 <= len(found) <= most + 2
    digits = step / 10 ** math.floor(math.log10(step) + 1e-6)
    assert any(math.isclose(digits, one, rel_tol=1e-4) for one in (1, 2, 2.5, 5)), step


def test_steps_of_one_value_are_around_it() -> None:
    assert steps(0.0, 0.0)[0] < 0 < steps(0.0, 0.0)[-1]
    assert steps(7.0, 7.0)[0] < 7 < steps(7.0, 7.0)[-1]


@examples(100)
@given(first=PAIRS, second=PAIRS)
def test_lines_stay_within_the_plot(
    first: list[tuple[float, float]], second: list[tuple[float, float]]
) -> None:
    chart = lines(
        "t",
        "d",
        {"first": sorted(first), "second": sorted(second)},
        over="x",
        x_text=plain,
        y_text=plain,
    )
    assert chart is not None
    marks = [mark for one in chart.lines for mark in one.marks]
    assert len(marks) == len(first) + len(second)
    for mark in marks:
        assert LEFT - 0.01 <= mark.x <= RIGHT + 0.01
        assert TOP - 0.01 <= mark.y <= BOTTOM + 0.01
    for ticks, low, high in (
        (chart.x_ticks, LEFT, RIGHT),
        (chart.y_ticks, TOP, BOTTOM),
    ):
        assert all(low - 0.01 <= tick.at <= high + 0.01 for tick in ticks)
    for one in chart.lines:
        assert re.fullmatch(r"M[\d.]+ [\d.]+(L[\d.]+ [\d.]+)*", one.path)
    assert len(chart.rows) == len({x for x, _ in first} | {x for x, _ in second})
    assert 0 < LEFT < RIGHT <= WIDTH
    assert 0 < TOP < BOTTOM <= HEIGHT


def test_a_line_goes_where_its_figures_are() -> None:
    chart = lines(
        "t",
        "d",
        {"a": [(0.0, 0.0), (5.0, 1.0)], "b": [(10.0, 0.5)]},
        over="round",
        x_text=plain,
        y_text=plain,
    )
    assert chart is not None
    (low, middle), (end,) = ([(mark.x, mark.y) for mark in one.marks] for one in chart.lines)
    assert low == (LEFT, BOTTOM)
    assert middle == ((LEFT + RIGHT) / 2, TOP)
    assert end == (RIGHT, (TOP + BOTTOM) / 2)
    assert chart.header == ("round", "a", "b")
    assert chart.rows == (("0", "0", ""), ("5", "1", ""), ("10", "", "0.5"))


def test_texts_below_the_plot_do_not_touch() -> None:
    points = [(float(at), 0.5) for at in range(100)]
    marks = [(float(at), f"campaign-{at}") for at in range(100)]
    chart = lines("t", "d", {"a": points}, over="x", x_text=plain, y_text=plain, x_marks=marks)
    assert chart is not None
    assert chart.x_ticks[0].label == "campaign-0"
    assert 3 <= len(chart.x_ticks) <= 8
    for left, right in itertools.pairwise(chart.x_ticks):
        assert right.at - left.at >= 6 * max(len(left.label), len(right.label))


@examples(60)
@given(columns=st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=30))
def test_bars_stand_on_the_ground_beside_each_other(columns: list[tuple[float, float]]) -> None:
    chart = bars(
        "t",
        "d",
        [str(number) for number in range(len(columns))],
        {"before": [one for one, _ in columns], "after": [two for _, two in columns]},
        over="score",
        y_text=plain,
    )
    assert chart is not None
    marks = sorted((mark for one in chart.bars for mark in one.marks), key=lambda mark: mark.x)
    for mark in marks:
        assert mark.height >= 0
        assert math.isclose(mark.y + mark.height, BOTTOM)
        assert mark.y >= TOP - 0.01
    for left, right in itertools.pairwise(marks):
        assert left.x + left.width <= right.x + 0.01
    assert marks[-1].x + marks[-1].width <= RIGHT
    assert len(chart.rows) == len(columns)


def test_nothing_is_drawn_of_nothing() -> None:
    assert lines("t", "d", {"a": []}, over="x", x_text=plain, y_text=plain) is None
    assert bars("t", "d", [], {}, over="x", y_text=plain) is None


def test_a_device_of_a_model_without_accuracy_shows_its_loss() -> None:
    history = [
        HistoryEntry(campaign="c", round=at, kind="train", ended=10.0 + at, held_out=9,
                     train_steps=5, loss_before=0.5 - at / 10, loss_after=0.4 - at / 10)
        for at in (1, 0)
    ]  # fmt: skip
    chart = scores(history)
    assert chart is not None
    assert chart.title.startswith("Loss")
    assert "0.500 on its held-out samples at first, 0.400 the last time" in chart.description
    assert "right" not in chart.description
