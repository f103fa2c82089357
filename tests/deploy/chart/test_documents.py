"""What the documentation says of the chart is so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from fleet.gateway.broker import MAX_PACKET_BYTES, access_list
from tests.deploy.chart.rendered import CHART, ROOT, named, render

DEPLOY = (ROOT / "docs/deploy.md").read_text("utf-8")
BROKERS = (ROOT / "docs/howto/cluster-broker.md").read_text("utf-8")


def leaves(values: dict[str, Any], rows: dict[str, Any], path: str = "") -> Iterator[Any]:
    """Values by path, as deep as the table goes."""
    for name, value in values.items():
        where = path + name
        if isinstance(value, dict) and value and where not in rows:
            yield from leaves(value, rows, where + ".")
        else:
            yield where, value


def test_the_table_has_every_value_with_its_default() -> None:
    part = DEPLOY.partition("### Values")[2].partition("\n### ")[0]
    rows = {
        path: yaml.safe_load(default)
        for path, default in re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", part, re.MULTILINE)
    }
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    assert rows == dict(leaves(values, rows))


def test_a_backup_is_restored_before_a_coordinator_writes_to_the_database() -> None:
    part = DEPLOY.partition("To restore one")[2].partition("```sh\n")[2].partition("```")[0]
    lines = [line.split() for line in part.splitlines()]
    assert [" ".join(one[:2]) for one in lines] == [
        *("helm install", "tinyfleet restore", "helm upgrade")
    ]
    running = []
    for line in lines[::2]:
        options = line[line.index("barn/values.yaml") + 1 :]
        coordinator = named(render(None, *options), "Deployment", "barn-coordinator")
        running.append(coordinator["spec"]["replicas"])
    assert running == [0, 2]


def emqx_rules(text: str) -> set[tuple[str, str, str]]:
    """Who may do what with which topics; `%u` is a user's own name."""
    found = set()
    for who, what, topics in re.findall(
        r'^\{allow, (?:all|\{user, "([\w-]+)"\}), (\w+), \[(.*)\]\}\.$', text, re.MULTILINE
    ):
        for topic in re.findall(r'"([^"]+)"', topics):
            for one in ("publish", "subscribe") if what == "all" else (what,):
                found.add((who, one, topic.replace("${username}", "%u")))
    return found


def mosquitto_rules(text: str) -> set[tuple[str, str, str]]:
    """The same of an access list of ours."""
    found = set()
    for section in re.split(r"^user ", "\n" + text, flags=re.MULTILINE):
        user = "" if section.startswith("\n") else section.split("\n")[0]
        for how, topic in re.findall(
            r"^(?:pattern|topic) (read|write|readwrite) (\S+)$", section, re.MULTILINE
        ):
            if how != "read":
                found.add((user, "publish", topic))
            if how != "write":
                found.add((user, "subscribe", topic))
    return found


def test_emqx_is_told_what_mosquitto_is_told() -> None:
    rules = BROKERS.partition("```erlang\n")[2].partition("```")[0]
    assert rules.endswith("{deny, all}.\n")
    assert emqx_rules(rules) == mosquitto_rules(access_list("barn", ["north-gw1"]))


def test_brokers_are_told_of_packets_as_large_as_ours() -> None:
    assert f"packets of {MAX_PACKET_BYTES:,} bytes" in BROKERS
    assert MAX_PACKET_BYTES < 32 * 1024
