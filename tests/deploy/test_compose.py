"""The Compose file and the image's recipe, read without an engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer.main
import yaml

from fleet.cli import app
from fleet.service import containers

DEPLOY = Path(__file__).parents[2] / "deploy"
STACK: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
RECIPE = (DEPLOY / "images" / "Dockerfile").read_text("utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("boxes") / "plant"
    containers.init(made, "plant", "home", [], is_private=True)
    return made


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_may_do_little_and_is_bounded(name: str) -> None:
    one = SERVICES[name]
    assert (one["read_only"], one["restart"], one["init"]) == (True, "always", True)
    assert one["cap_drop"] == ["ALL"]
    assert one["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "pid", "network_mode", "cap_add", "env_file"} & one.keys()
    assert one["mem_limit"]
    assert one["pids_limit"]
    assert not str(one["user"]).startswith("0")


def test_every_image_is_a_variable_with_a_tag(folder: Path) -> None:
    for name, one in SERVICES.items():
        assert re.fullmatch(r"\$\{[A-Z]+_IMAGE:-[^:}]+:[^:}]+\}|tinyfleet-.*\}", one["image"]), name


def test_secrets_are_files_that_init_makes_and_each_is_for_one_kind_of_part(folder: Path) -> None:
    for name, one in STACK["secrets"].items():
        path = Path(one["file"].replace("${TINYFLEET_FOLDER}", str(folder)))
        assert path.is_file(), name
    used = {secret for one in SERVICES.values() for secret in one.get("secrets", ())}
    assert used == STACK["secrets"].keys()
    assert not set(SERVICES["gateway-1"]["secrets"]) & set(SERVICES["gateway-2"]["secrets"])
    environment = {
        name: one["environment"] for name, one in SERVICES.items() if "environment" in one
    }
    assert environment.keys() == {"database"}
    assert environment["database"]["POSTGRES_PASSWORD_FILE"] == "/run/secrets/database.password"


def test_what_is_mounted_is_there_and_the_authority_is_in_no_container(folder: Path) -> None:
    for name, one in SERVICES.items():
        for volume in one.get("volumes", ()):
            source = re.sub(r"\$\{TINYFLEET_FOLDER[^}]*\}", str(folder), volume).partition(":")[0]
            path = DEPLOY / source if source.startswith(".") else Path(source)
            assert source in STACK["volumes"] or path.exists(), (name, volume)
            assert not source.startswith((f"{folder}/ca", f"{folder}/keys")), (name, volume)


def test_only_what_has_tls_may_be_reached_from_elsewhere() -> None:
    for one in SERVICES.values():
        for port in one.get("ports", ()):
            outer = re.sub(r"^\$\{TINYFLEET_ADDRESS:-127\.0\.0\.1\}", "", port)
            if outer != port:
                assert outer in (":8443:8443", ":9092:9092", ":8883:8883")
            else:
                assert port.startswith("127.0.0.1:")
    assert SERVICES["gateway-1"].get("ports") is None
    internal = {name for name, one in STACK["networks"].items() if one.get("internal")}
    assert set(SERVICES["database"]["networks"]) <= internal
    assert set(SERVICES["gateway-2"]["networks"]) <= internal
    shared = {
        (one, other)
        for one in SERVICES
        for other in SERVICES
        if one < other and set(SERVICES[one]["networks"]) & set(SERVICES[other]["networks"])
    }
    assert ("database", "gateway-1") not in shared
    assert ("broker", "database") not in shared


def test_the_page_says_who_meets_in_which_network() -> None:
    meet: dict[str, set[str]] = {}
    for name, one in SERVICES.items():
        for network in one["networks"]:
            meet.setdefault(network, set()).add(name)
    page = (DEPLOY.parent / "docs" / "deploy.md").read_text("utf-8")
    said = page.partition("Containers meet in networks")[2].partition("leads out")[0].lower()
    told = {
        network: set(names.replace("gateways", "gateway-1, gateway-2").split(", "))
        for network, names in re.findall(r"`(\w+)` \(([^)]*)\)", " ".join(said.split()))
    }
    assert told == meet


def test_what_images_start_and_ask_are_commands_of_ours() -> None:
    lines = re.findall(r"^\s*CMD (\[.*\])$", RECIPE, flags=re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        words = yaml.safe_load(line)
        command: Any = typer.main.get_command(app)
        for word in words[words[0] == "tinyfleet" :]:
            if word.startswith(("-", "/")):
                break
            command = command.commands[word]
        known = {option for one in command.params for option in one.opts}
        assert {word for word in words if word.startswith("-")} <= known


def test_images_are_built_with_what_settings_may_ask_for_and_from_wheels_alone(
    tmp_path: Path,
) -> None:
    # Whoever builds has no index, and programs that note what they are asked for.
    told, wheels = tmp_path / "told", tmp_path / "wheels"
    python, docker = tmp_path / "python", tmp_path / "docker"
    python.write_text(
        '#!/bin/sh\necho "$*" >>"$TOLD"\n'
        'case "$*" in *--no-deps*) touch "$TINYFLEET_WHEELS"/own/tinyfleet-7-py3.whl;; esac\n'
    )
    docker.write_text('#!/bin/sh\necho "docker $*" >>"$TOLD"\n')
    environment = {
        "PATH": os.environ["PATH"],
        "TOLD": str(told),
        "TINYFLEET_WHEELS": str(tmp_path),
        "TINYFLEET_PYTHON": str(python),
        "DOCKER": str(docker),
    }
    for one in (python, docker):
        one.chmod(0o755)
    subprocess.run([DEPLOY / "images" / "build"], env=environment, check=True, capture_output=True)
    lines = told.read_text("utf-8").splitlines()
    gathers = [line for line in lines if " pip wheel " in line]
    chosen = [line for line in lines if " pip install " in line]
    assert len(gathers) == len(chosen) == 2
    assert all(f"--find-links {wheels} " in line for line in [*gathers, *chosen])
    roles = [set(re.findall(r"\w+", line.rpartition("[")[2])) for line in [*gathers[1:], *chosen]]
    coordinator = {"service", "postgres", "tracing"}
    assert roles == [coordinator, {"gateway", "tracing"}, coordinator]
    assert [line.split()[0] for line in lines[-2:]] == ["docker", "docker"]


def compose(folder: Path, *words: str, **environment: str) -> str:
    """What Compose says of the stack of this folder."""
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose isn't installed: the file was only read")
    files = ["--env-file", str(folder / "compose.env"), "--file", str(DEPLOY / "compose.yaml")]
    found = subprocess.run(
        [program, *files, *words],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_compose_reads_the_file(folder: Path) -> None:
    read = yaml.safe_load(compose(folder, "config"))
    assert read["services"].keys() == SERVICES.keys()
    assert read["services"]["broker"]["user"] == f"{folder.stat().st_uid}:0"


class NothingRuns(BaseHTTPRequestHandler):
    """An engine that has no containers, and notes which ones it was asked for."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        filters = urllib.parse.parse_qs(url.query).get("filters", ["{}"])[0]
        self.asked += json.loads(filters).get("label", [])
        about = {"ApiVersion": "1.41", "MinAPIVersion": "1.12", "Version": "20.10"}
        body = json.dumps(about if url.path.endswith("/version") else []).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_each_fleet_of_a_machine_has_containers_and_volumes_of_its_own(tmp_path: Path) -> None:
    label, projects = "com.docker.compose.project=", []
    for fleet in ("Barn", "dairy_2"):
        containers.init(tmp_path / fleet, fleet, "home", [])
        NothingRuns.asked.clear()
        with ThreadingHTTPServer(("127.0.0.1", 0), NothingRuns) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            where = {"DOCKER_HOST": f"tcp://127.0.0.1:{server.server_port}", "NO_PROXY": "*"}
            compose(tmp_path / fleet, "ps", **where)
            server.shutdown()
        projects.append({one for one in NothingRuns.asked if one.startswith(label)})
    # 1.29 also looks for what it called otherwise once.
    assert f"{label}tinyfleet-barn" in projects[0]
    assert f"{label}tinyfleet-dairy_2" in projects[1]
    assert not projects[0] & projects[1]
