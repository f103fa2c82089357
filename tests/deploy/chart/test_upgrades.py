"""What an upgrade keeps, and which values are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.deploy.chart.rendered import CASES, CHART, Manifest, pods, refusal, render

# All else of a StatefulSet's specification is refused by Kubernetes once it is there.
MUTABLE = {
    *("replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit"),
    *("persistentVolumeClaimRetentionPolicy", "minReadySeconds"),
}
CHANGED = (
    *("--set", "coordinator.replicas=5", "--set", "images.registry=registry.example.org/"),
    *("--set", "gateway.resources.limits.memory=2Gi", "--set", "monitoring.labels.release=other"),
)


def kept(objects: list[Manifest]) -> dict[tuple[str, str], object]:
    """What Kubernetes doesn't let an upgrade change."""
    found: dict[tuple[str, str], object] = {}
    for one in objects:
        kind, spec = one["kind"], one.get("spec", {})
        if kind == "StatefulSet":
            value: object = {k: v for k, v in spec.items() if k not in MUTABLE}
        elif kind == "Deployment":
            value = spec["selector"]
        elif kind == "Service":
            value = spec.get("clusterIP")
        else:
            value = None
        found[kind, one["metadata"]["name"]] = value
    return found


@pytest.fixture
def next_version(tmp_path: Path) -> Path:
    """The chart as a later version has it."""
    copy = tmp_path / "chart"
    shutil.copytree(CHART, copy)
    about = yaml.safe_load((copy / "Chart.yaml").read_text("utf-8"))
    about |= {"version": "7.1.0", "appVersion": "7.1.0"}
    (copy / "Chart.yaml").write_text(yaml.safe_dump(about), "utf-8")
    return copy


@pytest.mark.parametrize("case", CASES)
def test_an_upgrade_changes_nothing_that_cant_be_changed(
    case: str | None, next_version: Path
) -> None:
    old, new = render(case), render(case, *CHANGED, chart=next_version)
    assert kept(old) == kept(new)
    images = {pod["spec"]["containers"][0]["image"] for pod in pods(new).values()}
    assert "registry.example.org/tinyfleet-coordinator:7.1.0" in images


def test_rendered_twice_all_is_the_same(next_version: Path) -> None:
    # No password is made that the next upgrade would make anew.
    once = render("everything", chart=next_version)
    assert once == render("everything", "--set", "global.x=1", chart=next_version)


def test_two_versions_never_share_a_store() -> None:
    (one,) = [one for one in render(None) if one["kind"] == "Deployment"]
    assert one["spec"]["strategy"] == {"type": "Recreate"}


def test_a_changed_configuration_starts_its_pods_anew_and_a_changed_key_none() -> None:
    def marks(*options: str) -> dict[str, object]:
        found = pods(render("several-sites", *options))
        return {name: pod["metadata"].get("annotations") for name, pod in found.items()}

    before = marks()
    slower = marks("--set", "coordinator.settings=[pace]\nhello_seconds = 30.0")
    assert {name for name in before if before[name] != slower[name]} == {"barn-coordinator"}
    key = "ecdsa-sha2-nistp256 AAAA"
    assert marks("--set", f"sites[0].gateways[0].publicKey={key}") == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["fleet=a barn"], ["fleet", "does not match pattern"]),
        (["coordinater.replicas=2"], ["coordinater", "not allowed"]),
        (["coordinator.replicas=-1"], ["coordinator/replicas", "minimum"]),
        (["database.port=70000"], ["database/port", "maximum"]),
        (["sites[3].name=west"], ["sites/3", "gateways"]),
        (["sites[0].gateways[0].publicKey=ssh-ed25519 AAAA"], ["publicKey", "pattern"]),
        (["sites[0].gateways[0].name=North_GW"], ["sites/0/gateways/0/name", "pattern"]),
        (["sites[0].broker.bundled=false"], ["sites/0/broker", "host"]),
        (["sites[0].broker.host=mqtt.example.com"], ["the broker of north is bundled", "host"]),
        (["sites[2].broker.bundled=true"], ["the gateways of far aren't here", "broker"]),
        (["ingress.enabled=true"], ["ingress", "host"]),
        (["images.registry=registry.example.com"], ["images/registry", "pattern"]),
        (["gateway.resources.limits.cpu=null"], ["gateway/resources/limits", "cpu"]),
        (["access.api[0].cidr=10.0.0.0/8"], ["access/api/0", "cidr"]),
    ],
    ids=lambda one: one[0].partition("=")[0] if isinstance(one, list) else "",
)
def test_wrong_values_are_refused_by_name(options: list[str], words: list[str]) -> None:
    said = refusal(*(word for one in options for word in ("--set", one)), case="several-sites")
    assert all(word in said for word in words), said


def test_two_of_one_name_are_refused() -> None:
    said = refusal("--set", "sites[1].name=north", case="several-sites")
    assert 'two have the name "north"' in said
    said = refusal("--set", "sites[1].gateways[0].name=north-gw1", case="several-sites")
    assert 'two gateways have the name "north-gw1"' in said


def test_a_release_whose_names_would_not_fit_is_refused() -> None:
    assert "longer than 16 characters" in refusal(release="a-very-long-release")
    longest = "g" * 32
    objects = render(
        *("several-sites", "--set", f"sites[0].gateways[0].name={longest}"), release="r" * 16
    )
    # Kubernetes adds eleven characters in a label of a StatefulSet's pods.
    names = [one["metadata"]["name"] for one in objects if one["kind"] == "StatefulSet"]
    assert max(len(name) for name in names) + 11 <= 63
