"""Figures that docs/operate.md names are figures that /metrics has."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.observed import busy_service

TEXT = (Path(__file__).parents[2] / "docs" / "operate.md").read_text("utf-8")
PART = TEXT[TEXT.index("\n### Watch it\n") : TEXT.index("\n## Backups\n")]


def test_each_figure_of_the_page_is_one_that_there_is(tmp_path: Path) -> None:
    with busy_service(tmp_path) as site:
        answer = site.http.get("/metrics").text
    samples = [one for of in text_string_to_metric_families(answer) for one in of.samples]
    there = {(one.name, *label) for one in samples for label in [("", ""), *one.labels.items()]}
    named = re.findall(r"`(tinyfleet_\w+)(?:\{(\w+)=\"([^\"]*)\"\})?`", PART)
    assert len(named) == PART.count("`tinyfleet_") >= 6
    assert [one for one in named if one not in there] == []
