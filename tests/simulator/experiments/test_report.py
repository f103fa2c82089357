"""The page: everything inside of it, nothing of a name taken for HTML, the same each time."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from simulator.experiments.comparison import Comparison, FinishedRun
from simulator.experiments.report import write_report
from tests.simulator.experiments.test_comparison import made_up

EVIL = '<script>alert("$x^2$ & _y")</script>'


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def written(comparison: Comparison, out: Path) -> str:
    write_report(comparison, out)
    return (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report(finished: Path) -> str:
    """Of the finished run."""
    return (finished / "report.html").read_text(encoding="utf-8")


def test_a_page_has_every_strategy_figure_and_plot(
    report: str, finished: Path, result: FinishedRun
) -> None:
    page = Page(report)
    names = sorted(path.stem for path in (finished / "plots").glob("*.svg"))
    assert names == [
        "accuracy-over-bytes",
        "accuracy-over-energy",
        "accuracy-over-rounds",
        "accuracy-over-time",
        "costs",
        "median",
        "never-trained",
        "worst-tenth",
    ]
    assert sum(tag == "figure" for tag, _ in page.tags) == len(names)
    for cell in result.result["cells"]:
        assert cell["strategy"] in page.text
    for told in ("Until the mean accuracy of devices is 50 %", "Seeds 3, 7", "4 devices"):
        assert told in page.text
    assert "Four devices & three ways <to learn>" in page.text
    assert "rotation_degrees" in page.text  # of the experiment's file


def test_a_page_needs_nothing_from_elsewhere(report: str) -> None:
    page = Page(report)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img", "link", "iframe", "object"})
    for _, attributes in page.tags:
        for name in ("href", "xlink:href", "src"):
            assert (attributes.get(name) or "#").startswith("#")
    assert re.findall(r"url\((?!#)|@import", report) == []


def test_a_page_is_read_in_light_and_in_dark(report: str, finished: Path) -> None:
    """Letters and axes have the page's own colour, and no plot a background."""
    assert "prefers-color-scheme: dark" in report
    plots = "".join(re.findall(r"<figure.*?</figure>", report, re.DOTALL))
    assert "var(--ink)" in plots
    assert not re.search(r"#(1b1f24|000000|ffffff)\b", plots)
    for path in (finished / "plots").glob("*.svg"):
        ElementTree.fromstring(path.read_text("utf-8"))


def test_names_are_texts_whatever_is_in_them(tmp_path: Path) -> None:
    runs = (made_up(EVIL, EVIL), made_up("_hidden $a$"))
    text = written(Comparison(runs), tmp_path)
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(f"{EVIL}: fleet") >= 3  # legend, two tables, a plot
    assert "_hidden $a$: fleet" in page.text
    assert "nobody came" in page.text


def test_a_plot_that_stands_alone_says_which_line_is_which(tmp_path: Path) -> None:
    page = Page(written(Comparison((made_up("_hidden $a$"), made_up(EVIL))), tmp_path))
    shown = ElementTree.parse(tmp_path / "plots" / "accuracy-over-rounds.svg").getroot()
    texts = [one.text for one in shown.iter("{http://www.w3.org/2000/svg}text")]
    for name in ("_hidden $a$", EVIL):
        assert f"{name}: fleet" in texts
        assert f"{name}: bound" in texts
        assert f"{name}: broken" not in texts
    assert page.text.count("_hidden $a$: bound") == 3  # legend and two tables


def test_a_page_is_the_same_each_time(report: str, result: FinishedRun, tmp_path: Path) -> None:
    assert written(Comparison((result,)), tmp_path) == report


def test_without_a_fleet_there_are_no_plots_of_what_a_fleet_spends(tmp_path: Path) -> None:
    whole = made_up()
    cells = [one for one in whole.result["cells"] if one["strategy"] == "bound"]
    text = written(Comparison((FinishedRun("bound", {**whole.result, "cells": cells}),)), tmp_path)
    names = sorted(path.stem for path in (tmp_path / "plots").glob("*.svg"))
    assert names == ["accuracy-over-rounds", "median", "worst-tenth"]
    assert "bytes up" not in Page(text).text
