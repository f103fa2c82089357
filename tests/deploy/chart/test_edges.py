"""Who may speak to whom: what network policies allow is the table of docs/deploy.md, no more."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.deploy.chart.rendered import CASES, ROOT, Manifest, pods, render

# Where the files of values say that whoever is named there lives.
PLACES = {
    "192.0.2.1/32": "access.api",
    "192.0.2.2/32": "access.metrics",
    "192.0.2.3/32": "access.superlink",
    "192.0.2.4/32": "access.devices",
    "192.0.2.5/32": "database.peers",
    "192.0.2.6/32": "broker.peers",
    "192.0.2.7/32": "coordinator.egress",
}
OPEN = "0.0.0.0/0"
Edge = tuple[str, str, int]


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    for one in selector.get("matchExpressions", []):
        assert one["operator"] == "In"
        if labels.get(one["key"]) not in one["values"]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def peers(rules: list[Manifest], side: str, labels: dict[str, dict[str, str]]) -> set[Any]:
    """Pods and places with ports that rules of one direction name."""
    found = set()
    for rule in rules:
        # Without a list of peers a rule is for everybody, and without ports for all.
        assert rule[side]
        ports = [one["port"] for one in rule["ports"]]
        for peer in rule[side]:
            if "ipBlock" in peer:
                where = [PLACES.get(peer["ipBlock"]["cidr"], peer["ipBlock"]["cidr"])]
            elif "namespaceSelector" in peer:
                where = ["access.dns"]
            else:
                where = [pod for pod in labels if selects(peer["podSelector"], labels[pod])]
            found |= {(one, port) for one in where for port in ports}
    return found


def edges(objects: list[Manifest]) -> set[Edge]:
    """Source, target, port. Between two pods only what both of them allow."""
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(objects).items()}
    policies = [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"]
    into: dict[str, set[Any]] = {}
    out: dict[str, set[Any]] = {}
    for pod, mine in labels.items():
        own = [one for one in policies if selects(one["podSelector"], mine)]
        assert {kind for one in own for kind in one["policyTypes"]} == {"Ingress", "Egress"}, pod
        into[pod] = peers([r for one in own for r in one.get("ingress", [])], "from", labels)
        out[pod] = peers([r for one in own for r in one.get("egress", [])], "to", labels)
    found = {
        (source, target, port)
        for target, allowed in into.items()
        for source, port in allowed
        if source not in labels or (target, port) in out[source]
    }
    return found | {
        (source, target, port)
        for source, allowed in out.items()
        for target, port in allowed
        if target not in labels
    }


def kinds(found: set[Edge], objects: list[Manifest]) -> set[Edge]:
    """The same by what pods are."""
    components = {
        name: pod["metadata"]["labels"]["app.kubernetes.io/component"]
        for name, pod in pods(objects).items()
    }

    def kind(name: str, port: int) -> str:
        return "broker" if port == 8883 and name in components else components.get(name, name)

    return {(components.get(a, a), kind(b, port), port) for a, b, port in found}


def table() -> set[Edge]:
    """Who may speak to whom, as the documentation has it."""
    document = (ROOT / "docs/deploy.md").read_text("utf-8")
    part = document.partition("### Who may speak to whom")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `?([\w.]+)`? \| `?([\w.]+)`? \| (\d+) \|", part, re.MULTILINE)
    assert rows
    return {(source, target, int(port)) for source, target, port in rows}


def test_policies_allow_what_the_table_says_and_nothing_else() -> None:
    found: set[Edge] = set()
    for case in ("several-sites", "external", "everything"):
        objects = render(case)
        ports = {"external": {6432: 5432, 8884: 8883}}.get(case, {})
        now = kinds(edges(objects), objects)
        found |= {(a, b, ports.get(port, port)) for a, b, port in now if a != OPEN and b != OPEN}
    assert found == table()


def test_a_site_reaches_its_own_broker_only() -> None:
    found = {(a, b) for a, b, port in edges(render("several-sites")) if port == 8883}
    assert found == {
        ("barn-gw-north-gw1", "barn-gw-north-gw1"),
        ("barn-gw-north-gw2", "barn-gw-north-gw1"),
        ("barn-gw-south-gw", "barn-gw-south-gw"),
        ("access.devices", "barn-gw-north-gw1"),
        ("access.devices", "barn-gw-south-gw"),
    }


def test_without_a_word_nobody_comes_in() -> None:
    # By default the database is anywhere; all that listens is shut.
    assert edges(render(None)) == {
        ("barn-coordinator", "access.dns", 53),
        ("barn-coordinator", OPEN, 5432),
    }


@pytest.mark.parametrize("case", CASES)
def test_no_policy_is_of_pods_that_arent_ours(case: str | None) -> None:
    for one in render(case):
        if one["kind"] == "NetworkPolicy":
            mine = one["spec"]["podSelector"]["matchLabels"]
            assert mine["app.kubernetes.io/instance"] == "barn", one["metadata"]["name"]
