"""A real Prometheus with the rules of deploy/prometheus, which scrapes a real service and a real
gateway."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml

from fleet.ports import free_port
from tests.fleet.gateway.site import Site as GatewaySite
from tests.observed import busy_service, gateway_with_metrics
from tests.patience import wait_until

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "deploy" / "prometheus" / "prometheus.yaml"


@dataclass
class Prometheus:
    port: int

    def get(self, path: str, **parameters: str) -> Any:
        """What its HTTP API answers."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found


@pytest.fixture(scope="package")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus isn't installed (scripts/setup dev)")
    folder = tmp_path_factory.mktemp("prometheus")
    with busy_service(folder) as service, gateway_with_metrics(["cow-0", "cow-1"]) as gateway:
        for name in gateway.names:
            gateway.add(name)
        gateway.start()
        config = uvicorn.Config(service.app, port=free_port(), log_config=None)
        api = uvicorn.Server(config)
        thread = threading.Thread(target=api.run)
        thread.start()
        try:
            yield from _running(folder, config.port, gateway)
        finally:
            api.should_exit = True
            thread.join()


def _running(folder: Path, service: int, gateway: GatewaySite) -> Iterator[Prometheus]:
    assert gateway.settings.metrics
    found = Prometheus(free_port())
    ports = {"tinyfleet": service, "tinyfleet-gateway": gateway.settings.metrics.port}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(_here(ports)))
    command = ["prometheus", f"--config.file={folder / 'prometheus.yaml'}"]
    options = [
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{found.port}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log)
    try:
        wait_until(
            lambda: _has_all(found), lambda: (folder / "log").read_text()[-2000:], look_seconds=0.2
        )
        yield found
    finally:
        process.terminate()
        process.wait()


def _here(ports: dict[str, int]) -> dict[str, Any]:
    """The example with the ports of this test, and quicker."""
    config: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text("utf-8"))
    config["global"] = {"scrape_interval": "250ms", "evaluation_interval": "250ms"}
    config["rule_files"] = [str(EXAMPLE.parent / one) for one in config["rule_files"]]
    assert {one["job_name"] for one in config["scrape_configs"]} == set(ports)
    config["scrape_configs"] = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        for job, port in ports.items()
    ]
    return config


def _has_all(found: Prometheus) -> bool:
    """Whether several scrapes of both are there, and what the broker says of itself."""
    try:
        return bool(
            found.query("count_over_time(tinyfleet_store_up[1m]) > 3")
            and found.query("count_over_time(tinyfleet_broker_heap_bytes[1m]) > 3")
        )
    except OSError:
        return False
