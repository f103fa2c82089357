"""Figures and alarms of docs/operate.md are figures that /metrics has."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from fleet.store import SqlStore
from tests.fleet.service.conftest import campaign, make_site

TEXT = (Path(__file__).parents[2] / "docs" / "operate.md").read_text("utf-8")
PART = TEXT[TEXT.index("\n### Watch it\n") : TEXT.index("\n## Backups\n")]


def test_each_alarm_of_the_page_is_about_a_figure_that_there_is() -> None:
    site = make_site(SqlStore(), deleted=lambda: {"reports": 1})
    try:
        of = site.client().start_campaign(campaign()).campaign
        site.store.claim(of, "driver")
        site.store.begin_round(of, "driver", 0, "train", {"assignments": []})
        site.store.set_state(of, "driver", "waiting", "approval", "begin:0")
        answer = site.http.get("/metrics").text
    finally:
        site.http.close()
        site.store.close()
    samples = [one for of in text_string_to_metric_families(answer) for one in of.samples]
    there = {(one.name, *label) for one in samples for label in [("", ""), *one.labels.items()]}
    named = re.findall(r"`(tinyfleet_\w+)(?:\{(\w+)=\"([^\"]*)\"\})?`", PART)
    assert len(named) == PART.count("`tinyfleet_") >= 6
    assert [one for one in named if one not in there] == []
