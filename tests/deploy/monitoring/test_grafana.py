"""The dashboard for Grafana, as far as it can be judged without one: its keys are those of
Grafana's own types, and a real Prometheus answers what its panels ask."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.deploy.monitoring.conftest import Prometheus

FOLDER = Path(__file__).parents[3] / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "tinyfleet.json").read_text("utf-8"))
PANELS: list[dict[str, Any]] = [one for one in DASHBOARD["panels"] if one["type"] != "row"]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24

# Of fields that plugins add and the types therefore don't have.
OF_PLUGINS = {"definition", "step", "titleFormat", "textFormat"}
# Nothing is refused at the gateway of these tests.
EMPTY = {"Deltas not counted in"}


def lost(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """What of one is not in the other."""
    if isinstance(before, dict):
        for key, value in before.items():
            if not isinstance(after, dict) or key not in after:
                yield f"{where}/{key}"
            else:
                yield from lost(value, after[key], f"{where}/{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{where}/{number}")
    elif before != after:
        yield where


def test_every_key_is_one_of_grafanas_types() -> None:
    register_default_plugins()
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))
    unknown = [one for one in lost(DASHBOARD, again) if one.rpartition("/")[2] not in OF_PLUGINS]
    assert unknown == []


def test_each_panel_has_its_own_place_and_says_what_it_shows() -> None:
    everything = DASHBOARD["panels"]
    assert len({one["id"] for one in everything}) == len(everything)
    taken: dict[tuple[int, int], str] = {}
    for panel in everything:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= COLUMNS
        xs, ys = range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])
        for cell in itertools.product(xs, ys):
            assert cell not in taken, f"{panel['title']} lies over {taken.get(cell)}"
            taken[cell] = panel["title"]
    assert len({one["title"] for one in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == SOURCE
        assert all(one["datasource"] == SOURCE for one in panel["targets"])
        assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"]


def test_what_it_asks_for_can_be_chosen() -> None:
    first, *others = DASHBOARD["templating"]["list"]
    assert (first["name"], first["type"], first["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )
    names = {one["name"] for one in DASHBOARD["templating"]["list"]}
    used = set(
        re.findall(r"\$\{?(\w+)", json.dumps([DASHBOARD["panels"], DASHBOARD["annotations"]]))
    )
    assert used == names | {"__rate_interval"}
    assert all(one["datasource"] == SOURCE and one["includeAll"] for one in others)


def asked(panel: dict[str, Any]) -> list[tuple[str, str]]:
    """Its queries as Grafana sends them with all of everything chosen, and their legends."""
    found = []
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", "1m")
        for one in DASHBOARD["templating"]["list"][1:]:
            expression = expression.replace(f"${one['name']}", one["allValue"])
        assert "$" not in expression
        found.append((expression, target.get("legendFormat", "")))
    return found


@pytest.mark.parametrize("panel", PANELS, ids=lambda one: one["title"])
def test_a_real_prometheus_answers_each_panel(
    prometheus: Prometheus, panel: dict[str, Any]
) -> None:
    shown = []
    for expression, legend in asked(panel):
        series = prometheus.query(expression)
        assert bool(series) == (panel["title"] not in EMPTY), expression
        for one in series:
            labels = one["metric"]
            shown.append(re.sub(r"\{\{(\w+)\}\}", lambda match, of=labels: of[match[1]], legend))
            if panel["type"] == "table":
                organize = panel["transformations"][0]["options"]
                assert (
                    organize["indexByName"].keys() - organize["renameByName"].values()
                    <= labels.keys()
                )
    assert panel["type"] == "table" or len(set(shown)) == len(shown), "two lines have one legend"


def test_what_can_be_chosen_are_labels_that_there_are(prometheus: Prometheus) -> None:
    for one in DASHBOARD["templating"]["list"][1:]:
        match = re.fullmatch(r"label_values\((\w+), (\w+)\)", one["query"]["query"])
        assert match
        assert one["definition"] == one["query"]["query"]
        assert prometheus.get(f"label/{match[2]}/values", **{"match[]": match[1]}), one["name"]


def test_the_files_that_provision_it_agree_with_it() -> None:
    (provider,) = yaml.safe_load(
        (FOLDER / "provisioning" / "dashboards" / "tinyfleet.yaml").read_text("utf-8")
    )["providers"]
    assert provider["type"] == "file"
    (source,) = yaml.safe_load(
        (FOLDER / "provisioning" / "datasources" / "prometheus.yaml").read_text("utf-8")
    )["datasources"]
    example = yaml.safe_load((FOLDER.parent / "prometheus" / "prometheus.yaml").read_text("utf-8"))
    assert source["type"] == DASHBOARD["templating"]["list"][0]["query"]
    assert source["jsonData"]["timeInterval"] == example["global"]["scrape_interval"]
