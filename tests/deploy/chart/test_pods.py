"""What the chart runs: restricted pods, measured, probed, and the images of compose.yaml."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.chart.rendered import (
    CASES,
    CHART,
    NAMESPACE,
    ROOT,
    container,
    containers,
    named,
    pods,
    render,
    run,
    values,
)

KUBERNETES = "1.37"
# Of the Prometheus operator, whose schemas no package brings.
FOREIGN = {"ServiceMonitor", "PrometheusRule"}
COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text("utf-8"))
every_case = pytest.mark.parametrize("case", CASES)


def megabytes(amount: str) -> float:
    found = re.fullmatch(r"(\d+)(\w+)", amount)
    assert found, amount
    return int(found[1]) * {"m": 1, "g": 1024, "Mi": 1, "Gi": 1024}[found[2]]


def default_image(service: str) -> str:
    """What compose.yaml runs where its variable isn't set."""
    image = COMPOSE["services"][service]["image"]
    return str(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", image))


@every_case
def test_helm_finds_nothing_to_warn_of(case: str | None) -> None:
    done = run("lint", "--strict", str(CHART), *values(case))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@every_case
def test_kubernetes_takes_every_object(case: str | None) -> None:
    for one in render(case):
        if one["kind"] not in FOREIGN:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
        assert one["metadata"]["namespace"] == NAMESPACE


def test_chart_and_package_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]
    assert metadata.version("tinyfleet") == project["version"]


@every_case
def test_every_pod_is_restricted(case: str | None) -> None:
    found = pods(render(case))
    assert found
    for name, pod in found.items():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & spec.keys()
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] >= 10_000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in containers(pod):
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, f"{name}: {one['name']}"
        kinds = {key for volume in spec["volumes"] for key in volume} - {"name"}
        assert kinds <= {
            *("configMap", "secret", "projected", "emptyDir", "persistentVolumeClaim"),
        }


@every_case
def test_every_container_is_measured_and_probed(case: str | None) -> None:
    for name, pod in pods(render(case)).items():
        for one in containers(pod):
            for bound in ("requests", "limits"):
                assert one["resources"][bound].keys() == {"cpu", "memory"}, name
        lives = pod["spec"].get("restartPolicy", "Always") == "Always"
        for one in pod["spec"]["containers"] if lives else []:
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= one.keys(), name


def test_no_restart_is_asked_for_because_somebody_else_is_away() -> None:
    # A gateway's health check tells of its coordinator, and /readyz of the database.
    for pod in pods(render("everything")).values():
        for one in containers(pod):
            for probe in (one.get("livenessProbe", {}), one.get("startupProbe", {})):
                assert probe.get("exec", {}).get("command", [""])[0] != "tinyfleet"
                assert probe.get("httpGet", {}).get("path") != "/readyz"


def test_images_are_those_of_compose() -> None:
    objects = render("everything", "--set", "images.registry=")
    found = pods(objects)
    version = metadata.version("tinyfleet")
    assert container(found["barn-coordinator"], "coordinator")["image"] == (
        default_image("coordinator")
    )
    keeper = found["barn-gw-main-gw1"]
    assert container(keeper, "gateway")["image"] == default_image("gateway-1")
    assert container(keeper, "broker")["image"] == default_image("broker")
    assert container(found["barn-database"], "database")["image"] == default_image("database")
    assert default_image("coordinator").endswith(f":{version}")


def test_a_registry_goes_before_every_image_and_a_digest_before_a_tag() -> None:
    digest = "sha256:" + "0" * 64
    found = pods(render("everything", "--set", f"images.gateway.digest={digest}"))
    images = {one["image"] for pod in found.values() for one in containers(pod)}
    assert all(image.startswith("registry.example.com/tinyfleet/") for image in images)
    assert f"registry.example.com/tinyfleet/tinyfleet-gateway@{digest}" in images
    assert not any("tinyfleet-gateway:" in image for image in images)


def test_memory_is_limited_as_by_compose() -> None:
    found = pods(render("everything"))
    same = {
        "coordinator": container(found["barn-coordinator"], "coordinator"),
        "gateway-1": container(found["barn-gw-main-gw1"], "gateway"),
        "broker": container(found["barn-gw-main-gw1"], "broker"),
        "database": container(found["barn-database"], "database"),
    }
    for service, one in same.items():
        limit = one["resources"]["limits"]["memory"]
        assert megabytes(limit) == megabytes(COMPOSE["services"][service]["mem_limit"]), service


def test_commands_are_those_of_the_images() -> None:
    recipe = (ROOT / "deploy/images/Dockerfile").read_text("utf-8")
    found = pods(render("everything"))
    for pod, name, path in (
        ("barn-coordinator", "coordinator", "coordinator.toml"),
        ("barn-gw-main-gw1", "gateway", "gateway.toml"),
    ):
        one = container(found[pod], name)
        assert not {"command", "args"} & one.keys()
        assert f'"/etc/tinyfleet/{path}"]' in recipe


def test_the_grace_of_a_pod_is_that_of_compose() -> None:
    found = pods(render("everything"))
    for pod, service in (
        ("barn-coordinator", COMPOSE["services"]["coordinator"]),
        ("barn-gw-main-gw1", COMPOSE["x-gateway"]),
        ("barn-database", COMPOSE["services"]["database"]),
    ):
        wanted = int(service["stop_grace_period"].removesuffix("s"))
        assert found[pod]["spec"]["terminationGracePeriodSeconds"] == wanted


def test_several_coordinators_are_spread_and_one_is_always_left() -> None:
    objects = render(None)
    pod = pods(objects)["barn-coordinator"]
    keys = [one["topologyKey"] for one in pod["spec"]["topologySpreadConstraints"]]
    assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    budget = named(objects, "PodDisruptionBudget", "barn-coordinator")
    assert budget["spec"]["minAvailable"] == 1
    assert budget["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    # One alone would keep its node from being drained for ever.
    for replicas in (0, 1):
        few = render(None, "--set", f"coordinator.replicas={replicas}")
        assert not [one for one in few if one["kind"] == "PodDisruptionBudget"]


def test_a_gateway_is_one_pod_with_its_own_volume_and_secret() -> None:
    objects = render("several-sites")
    sets = [one for one in objects if one["kind"] == "StatefulSet"]
    assert [one["metadata"]["name"] for one in sets] == [
        *("barn-gw-north-gw1", "barn-gw-north-gw2", "barn-gw-south-gw"),
    ]
    secrets = []
    for one in sets:
        assert one["spec"]["replicas"] == 1
        assert [claim["metadata"]["name"] for claim in one["spec"]["volumeClaimTemplates"]] == [
            "spool"
        ]
        volumes: list[dict[str, Any]] = one["spec"]["template"]["spec"]["volumes"]
        secrets += [v["secret"]["secretName"] for v in volumes if v["name"] == "secrets"]
    assert secrets == [
        *("tinyfleet-gateway-north-gw1", "tinyfleet-gateway-north-gw2", "of-the-south"),
    ]
