"""What the chart tells programs: they read it, and what it names is there."""

from __future__ import annotations

import http.server
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from cryptography.hazmat.primitives import serialization
from flwr.supercore.protobuf.client import ProtobufClient
from typer.testing import CliRunner

from fleet.cli import app
from fleet.coordinator.settings import CoordinatorSettings
from fleet.gateway.config import GatewaySettings
from fleet.service import containers as containers_of_one_machine
from tests.deploy.chart.rendered import (
    CASES,
    CHART,
    NAMESPACE,
    ROOT,
    Manifest,
    container,
    containers,
    named,
    pods,
    render,
    run,
    seen_files,
    text,
    values,
)

every_case = pytest.mark.parametrize("case", CASES)
GIVEN = "a-token-of-a-test"


def coordinator_settings(objects: list[Manifest], folder: Path) -> CoordinatorSettings:
    path = folder / "coordinator.toml"
    path.write_text(text(objects, ("ConfigMap", "barn-coordinator", path.name)), "utf-8")
    return CoordinatorSettings.read(path)


def gateway_settings(objects: list[Manifest], folder: Path) -> dict[str, GatewaySettings]:
    found = {}
    for one in objects:
        name = one["metadata"]["name"]
        if one["kind"] == "StatefulSet" and name.startswith("barn-gw-"):
            path = folder / f"{name}.toml"
            path.write_text(text(objects, ("ConfigMap", name, "gateway.toml")), "utf-8")
            found[name] = GatewaySettings.read(path)
    return found


def paths_in(settings: Any) -> list[str]:
    """Absolute paths that a configuration names."""
    if isinstance(settings, dict):
        return [path for one in settings.values() for path in paths_in(one)]
    found = str(settings).removeprefix("file:")
    return [found] if found.startswith("/") else []


@every_case
def test_what_a_configuration_names_is_seen_by_its_container(case: str | None) -> None:
    objects = render(case)
    for name, pod in pods(objects).items():
        of = pod["spec"]["containers"][0]
        files, writable = seen_files(objects, pod, of)
        for path, source in files.items():
            if not path.startswith("/etc/tinyfleet/") or not path.endswith(".toml"):
                continue
            for wanted in paths_in(tomllib.loads(text(objects, source))):
                assert (
                    wanted in files
                    or any(one.startswith(wanted + "/") for one in files)
                    or wanted in {one["mountPath"] for one in of["volumeMounts"]}
                    or any(wanted.startswith(one + "/") for one in writable)
                ), f"{name}: {wanted}"


@every_case
def test_programs_read_their_configurations(case: str | None, tmp_path: Path) -> None:
    objects = render(case)
    settings = coordinator_settings(objects, tmp_path)
    given = yaml.safe_load((Path(__file__).parent / f"{case}.yaml").read_text()) if case else {}
    sites = given.get("sites", [])
    assert settings.fleet == given.get("fleet", "fleet")
    assert settings.bootstrap.gateways == {
        gateway["name"]: site["name"] for site in sites for gateway in site["gateways"]
    }
    keys = named(objects, "ConfigMap", "barn-gateway-keys").get("data") or {}
    assert keys.keys() == {f"{name}.pub" for name in settings.bootstrap.gateways}
    here = [site for site in sites if site.get("here", True)]
    found = gateway_settings(objects, tmp_path)
    assert [one.gateway for one in found.values()] == [
        gateway["name"] for site in here for gateway in site["gateways"]
    ]
    assert [one.share for one in found.values()] == [
        f"{number}/{len(site['gateways'])}" if len(site["gateways"]) > 1 else ""
        for site in here
        for number, _ in enumerate(site["gateways"], 1)
    ]


@every_case
def test_ports_are_those_on_which_programs_listen(case: str | None, tmp_path: Path) -> None:
    objects = render(case)
    found = pods(objects)
    settings = coordinator_settings(objects, tmp_path)

    def ports(of: Manifest) -> dict[str, int]:
        return {one["name"]: one["containerPort"] for one in of["ports"]}

    assert ports(container(found["barn-coordinator"], "coordinator")) == {
        "api": settings.api.port,
        "superlink": settings.superlink.port,
    }
    for name, one in gateway_settings(objects, tmp_path).items():
        assert one.metrics is not None
        assert ports(container(found[name], "gateway")) == {"metrics": one.metrics.port}
        # Whoever dials a name gets to the port of the pods behind it.
        assert one.superlink == f"barn-superlink.{NAMESPACE}.svc:{settings.superlink.port}"
        if one.broker.folder is None and one.broker.host.endswith(".svc"):
            service = named(objects, "Service", one.broker.host.split(".")[0])
            assert [port["port"] for port in service["spec"]["ports"]] == [one.broker.port]
            assert one.broker.ca_file is not None
    for service in (one for one in objects if one["kind"] == "Service"):
        selector = service["spec"]["selector"].items()
        behind = [pod for pod in found.values() if selector <= pod["metadata"]["labels"].items()]
        assert behind, service["metadata"]["name"]
        for pod in behind:
            known = {
                k: v for one in containers(pod) for k, v in ports({"ports": [], **one}).items()
            }
            for port in service["spec"]["ports"]:
                assert known[port["targetPort"]] == port["port"]


def test_secrets_are_files_and_nothing_else() -> None:
    objects = render("everything")
    for one in objects:
        assert (GIVEN in str(one)) == (one["kind"] == "Secret")
        if one["kind"] == "ConfigMap":
            assert "PRIVATE KEY" not in str(one)
    for pod in pods(objects).values():
        for one in containers(pod):
            assert "envFrom" not in one
            assert all("valueFrom" not in variable for variable in one.get("env", []))
            names = {variable["name"] for variable in one.get("env", [])}
            assert not [name for name in names if re.search("PASSWORD$|TOKEN|KEY", name)]
        for volume in pod["spec"]["volumes"]:
            secret = volume.get("secret") or volume.get("projected", {})
            if "secret" in str(volume):
                assert secret["defaultMode"] == 0o440


@every_case
def test_the_notes_name_all_that_has_to_exist(case: str | None) -> None:
    done = run(
        *("install", "barn", str(CHART), "--dry-run=client", "--namespace", NAMESPACE),
        *values(case),
    )
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    told = re.findall(r"^  (ConfigMap|Secret) ([\w.-]+): (.*)$", notes, re.MULTILINE)
    said = {
        (kind, name, file)
        for kind, name, files in told
        for file in files.partition(", for ")[0].split(", ")
    }
    objects = render(case)
    made = {(one["kind"], one["metadata"]["name"]) for one in objects}
    needed = set()
    for pod in pods(objects).values():
        for one in containers(pod):
            files, _ = seen_files(objects, pod, one)
            needed |= {source for source in files.values() if source[:2] not in made}
    assert said == needed


def test_a_sites_broker_is_made_by_our_command_and_finds_its_files(tmp_path: Path) -> None:
    objects = render("everything")
    pod = pods(objects)["barn-gw-main-gw1"]
    begins, broker = container(pod, "broker-configuration"), container(pod, "broker")
    files, writable = seen_files(objects, pod, begins)
    assert "/broker" in writable
    for path, (kind, _, _) in files.items():
        assert kind == "Secret"
        (tmp_path / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path[1:]).write_text("something\n", "utf-8")
    words = [
        re.sub(r"=(/|[\w-]+=/)", lambda found: f"={found[1][:-1]}{tmp_path}/", word)
        for word in begins["command"][1:]
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    config = (tmp_path / "broker/mosquitto.conf").read_text("utf-8").replace(str(tmp_path), "")
    seen, its_folders = seen_files(objects, pod, broker)
    for path in re.findall(r"^\w+ (/\S+)$", config, re.MULTILINE):
        assert path in seen or any(path.startswith(one) for one in its_folders), path
    # Without TLS it listens for the gateway in its own pod only.
    assert re.findall(r"^listener (.*)$", config, re.MULTILINE) == [
        "1883 127.0.0.1",
        "8883 0.0.0.0",
    ]
    access = (tmp_path / "broker/access").read_text("utf-8")
    assert re.findall(r"^user (.*)$", access, re.MULTILINE) == ["main-gw1", "main-gw2"]
    assert broker["command"][-1] == "/broker"


def test_a_backup_has_its_name_once_it_is_whole_and_old_ones_go(tmp_path: Path) -> None:
    objects = render("everything", "--set", "backup.keep=2")
    of = container(pods(objects)["barn-backup"], "backup")
    shell, options, script = of["command"]
    program = tmp_path / "bin" / "tinyfleet"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$*" > "$2"; exit ${FAILS:-0}\n', "utf-8")
    program.chmod(0o755)
    here = tmp_path / "backups"
    here.mkdir()
    kept = [
        here / name
        for name in (
            *("others.tar", "barn-20010102T000000Z.tar", "barn-2-20010101T000000Z.tar"),
            "barn-2-20010102T000000Z.part",
            # Another job is writing it.
            "barn-20010103T000000Z.part.k4_2x.new",
        )
    ]
    for one in (*kept, here / "barn-20010101T000000Z.tar"):
        one.touch()
    job = named(objects, "CronJob", "barn-backup")["spec"]["jobTemplate"]["spec"]
    longest = job["activeDeadlineSeconds"]
    begun = [here / f"barn-20010102T000000Z.part{end}" for end in ("", ".x3_9k.new")]
    for one in begun:
        one.touch()
    for one in (*begun, kept[-2]):
        os.utime(one, (time.time() - longest - 60,) * 2)
    os.utime(kept[-1], (time.time() - longest + 300,) * 2)

    def back_up(**more: str) -> int:
        path = f"{program.parent}:{os.environ['PATH']}"
        command = [shell, options, script.replace("/backups", str(here))]
        return subprocess.run(command, env={"PATH": path, **more}).returncode

    assert back_up(FAILS="1") == 1
    (failed,) = [one for one in here.iterdir() if one.stat().st_size]
    # Two fleets' jobs may run at the same second.
    assert failed.match("barn-*.part")
    failed.unlink()
    assert not [one for one in here.glob("*.tar") if one.stat().st_size]
    assert back_up() == 0
    (new,) = [one for one in here.iterdir() if one.stat().st_size]
    assert set(here.iterdir()) == {*kept, new}
    assert new.read_text("utf-8").split()[2:] == ["--config", "/etc/tinyfleet/coordinator.toml"]
    assert CliRunner().invoke(app, ["backup", "--help"]).exit_code == 0


def test_what_others_have_is_not_copied_into_the_chart(tmp_path: Path) -> None:
    objects = render("everything")
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text("utf-8"))
    assert named(objects, "PrometheusRule", "barn")["spec"] == rules
    script = (ROOT / "deploy/mosquitto/run").read_text("utf-8")
    assert named(objects, "ConfigMap", "barn-run-broker")["data"]["run"].strip() == script.strip()
    assert all(one.is_symlink() for one in (CHART / "files").iterdir())
    # A package of the chart has the files themselves.
    assert run("package", str(CHART), "--destination", str(tmp_path)).returncode == 0
    package = next(tmp_path.glob("*.tgz"))
    assert render("everything", chart=package) == objects


def test_jobs_are_called_as_the_rules_know_them() -> None:
    objects = render("everything")
    rules = (ROOT / "deploy/prometheus/alerts.yaml").read_text("utf-8")
    jobs = set()
    for monitor in (one for one in objects if one["kind"] == "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        services = [
            one
            for one in objects
            if one["kind"] == "Service" and wanted <= one["metadata"]["labels"].items()
        ]
        for service in services:
            jobs.add(service["metadata"]["labels"][monitor["spec"]["jobLabel"]])
            offered = {one["name"] for one in service["spec"]["ports"]}
            assert {one["port"] for one in monitor["spec"]["endpoints"]} <= offered
    assert jobs == set(re.findall(r'job="([\w-]+)"', rules))


def test_a_supernode_finds_the_one_coordinator_that_listens(
    no_proxy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The name of the SuperLink has the addresses of all coordinators.
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    usual = socket.getaddrinfo
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def several(host: Any, port: Any, *rest: Any, **named: Any) -> Any:
            if host != f"barn-superlink.{NAMESPACE}.svc":
                return usual(host, port, *rest, **named)
            waiting = ("127.0.0.2", "127.0.0.3", "127.0.0.1")
            return [one for where in waiting for one in usual(where, port, *rest, **named)]

        monkeypatch.setattr(socket, "getaddrinfo", several)
        url = f"http://barn-superlink.{NAMESPACE}.svc:{server.server_port}/"
        # Flower's own client, as its SuperNode has it.
        assert ProtobufClient(url)._client.get(url).status_code == 200
        server.shutdown()


def test_a_folder_of_ours_has_all_that_the_chart_goes_by(tmp_path: Path) -> None:
    folder = tmp_path / "our barn"
    services = ("barn-api", "barn-superlink", "barn-broker-main")
    hosts = [f"{service}.{NAMESPACE}.svc" for service in services]
    containers_of_one_machine.init(folder, "barn", "main", hosts)
    command = [sys.executable, str(CHART / "from-folder"), str(folder)]
    done = subprocess.run([*command, "barn", NAMESPACE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = [word for line in done.stdout.splitlines() for word in shlex.split(line)]
    assert [one for one in words if "barn" in one] == [
        *(str(folder / "kubernetes.yaml"), "barn", str(folder / "values.yaml"))
    ]
    brought = list(yaml.safe_load_all((folder / "kubernetes.yaml").read_text("utf-8")))
    assert (folder / "kubernetes.yaml").stat().st_mode & 0o077 == 0
    objects = render(None, "--values", str(folder / "values.yaml"))
    assert {one["metadata"]["namespace"] for one in brought} == {NAMESPACE}
    everything = [*objects, *brought]
    for pod in pods(objects).values():
        for one in containers(pod):
            for source in seen_files(objects, pod, one)[0].values():
                assert text(everything, source)
    for name, one in gateway_settings(objects, tmp_path).items():
        public = text(objects, ("ConfigMap", "barn-gateway-keys", f"{one.gateway}.pub"))
        private = text(brought, ("Secret", f"tinyfleet-gateway-{one.gateway}", "gateway.key"))
        key = serialization.load_ssh_private_key(private.encode(), None)
        assert key.public_key() == serialization.load_ssh_public_key(public.encode()), name
    url = sa.make_url(text(brought, ("Secret", "tinyfleet-store", "store.url")))
    assert named(objects, "Service", url.host or "")["spec"]["ports"][0]["port"] == 5432
    password = text(brought, ("Secret", "tinyfleet-database", "database.password"))
    assert url.password == password
    # Its certificates have the names of one release's Services.
    other = subprocess.run([*command, "other", NAMESPACE], capture_output=True, text=True)
    assert other.returncode == 1
    (suggested,) = [one for one in other.stderr.splitlines() if one.startswith("tinyfleet init")]
    again = tmp_path / "again"
    words = ["init", str(again), *suggested.split()[3:]]
    assert CliRunner().invoke(app, words).exit_code == 0
    command[-1] = str(again)
    assert subprocess.run([*command, "other", NAMESPACE]).returncode == 0
    made = [json.loads((one / "site.json").read_text("utf-8")) for one in (folder, again)]
    assert made[0] == made[1]
