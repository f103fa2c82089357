"""The alert rules of deploy/prometheus: Prometheus takes them, each fires when it should and only
then, each is about figures that there are, and the page says what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet.gateway.broker import MAX_QUEUED_MESSAGES
from fleet.gateway.daemon import MAX_WAITING
from tests.deploy.monitoring.conftest import Prometheus
from tests.patience import wait_until

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "prometheus"
STORIES = Path(__file__).parent / "alerts.test.yaml"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
NAMES = [rule["alert"] for rule in RULES]


def promtool(*arguments: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("Prometheus isn't installed (scripts/setup dev)")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_example_and_the_rules() -> None:
    promtool("check", "rules", str(FOLDER / "alerts.yaml"))
    promtool("check", "config", str(FOLDER / "prometheus.yaml"))


def test_each_alert_fires_for_one_series_and_not_for_another() -> None:
    promtool("test", "rules", str(STORIES))
    cases = [
        (case["alertname"], bool(case.get("exp_alerts")))
        for story in yaml.safe_load(STORIES.read_text("utf-8"))["tests"]
        for case in story["alert_rule_test"]
    ]
    assert set(cases) == {(name, fires) for name in NAMES for fires in (True, False)}


def test_each_alert_says_what_it_is_and_where_the_remedy_stands() -> None:
    assert len(set(NAMES)) == len(NAMES)
    page = (ROOT / "docs" / "howto" / "alerts.md").read_text("utf-8")
    assert sorted(re.findall(r"^### (Tinyfleet\w+)$", page, re.MULTILINE)) == sorted(NAMES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        said = rule["annotations"]
        assert said.keys() == {"summary", "description", "runbook_url"}
        assert said["runbook_url"] == f"docs/howto/alerts.md#{rule['alert'].lower()}"


def test_bounds_that_rules_and_pages_name_are_those_of_the_programs() -> None:
    by_name = {rule["alert"]: rule for rule in RULES}
    behind = by_name["TinyfleetGatewayBehind"]["expr"]
    assert behind == f"tinyfleet_gateway_waiting_batches >= {MAX_WAITING}"
    page = (ROOT / "docs" / "specification" / "metrics.md").read_text("utf-8")
    (row,) = [line for line in page.splitlines() if "`tinyfleet_gateway_waiting_batches`" in line]
    assert re.findall(r"\d+", row) == [str(MAX_WAITING)]
    queue = by_name["TinyfleetBrokerQueue"]["annotations"]["description"]
    assert re.findall(r"[\d,]{4,}", queue) == [f"{MAX_QUEUED_MESSAGES:,}"]


def test_each_rule_and_its_words_go_by_labels_that_the_real_series_have(
    prometheus: Prometheus,
) -> None:
    for rule in RULES:
        expression = rule["expr"]
        names = set(re.findall(r"\btinyfleet_\w+|\bup\b", expression))
        assert names, rule["alert"]
        series = {name: prometheus.query(name) for name in names}
        missing = [name for name, found in series.items() if not found]
        assert not missing, f"{rule['alert']}: nothing tells {missing}"
        labels = set.intersection(*(set(found[0]["metric"]) for found in series.values()))
        asked = re.findall(r"(\w+)=\"", expression)
        kept = [
            one.strip() for by in re.findall(r"by \(([^)]*)\)", expression) for one in by.split(",")
        ]
        assert {*asked, *kept} <= labels, rule["alert"]
        said = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        assert said <= (set(kept) or labels), rule["alert"]


def test_a_gate_that_a_real_service_tells_of_fires(prometheus: Prometheus) -> None:
    def health() -> dict[str, str]:
        rules = [one for group in prometheus.get("rules")["groups"] for one in group["rules"]]
        return {one["name"]: one["health"] for one in rules}

    def tripped() -> list[dict[str, str]]:
        firing = 'ALERTS{alertname="TinyfleetGateTripped", alertstate="firing"}'
        return [one["metric"] for one in prometheus.query(firing)]

    wait_until(lambda: "unknown" not in health().values(), health)
    assert health() == dict.fromkeys(NAMES, "ok")
    wait_until(tripped, "the gate's alert to fire")
    (gate,) = tripped()
    assert (gate["name"], gate["stage"]) == ("test", "all")
