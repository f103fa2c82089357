"""A service in this process: its API over a store, and clients with tokens of every role."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from fleet.campaign import CampaignConfig
from fleet.coordinator.creation import new_campaign
from fleet.protocol.manifest import Manifest
from fleet.registry import Observed
from fleet.service.api import make_app
from fleet.service.client import Client
from fleet.service.operations import Actor, Operations
from fleet.service.schema import BundleToImport, DevicesToAdd, DeviceToAdd, GatewayToAdd
from fleet.store import ROLES, SqlStore, Tokens
from tests.fleet.coordinator import small_model
from tests.fleet.store.conftest import database, postgres_server

__all__ = ["postgres_server"]

URL = "http://service"
DAY = 86_400.0
SETUP = Actor("setup", "admin", "the tests' own")


@dataclass
class Site:
    """A service with a model, two boards' bundles, a gateway and six devices, two of them new."""

    store: SqlStore
    operations: Operations
    app: FastAPI
    tokens: dict[str, str]
    http: TestClient
    passwords: dict[str, str] = field(default_factory=dict)

    def headers(self, role: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[role]}"}

    def ask(self, role: str, method: str, path: str, **options: Any) -> httpx.Response:
        """A request with a role's token."""
        headers = {**self.headers(role), **options.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **options)

    def client(self, role: str = "admin", why: str = "") -> Client:
        """What commands use."""
        return Client(URL, self.tokens[role], why=why, transport=self.http._transport)


def fill(operations: Operations) -> dict[str, str]:
    """What every test finds there; gives the devices' passwords."""
    for text in small_model.manifest_texts("a", "b").values():
        weights = base64.b64encode(small_model.blob()).decode()
        wanted = BundleToImport(model="small", manifest=text, weights=weights)
        operations.import_bundle(SETUP, wanted)
    operations.add_gateway(SETUP, GatewayToAdd(gateway="gw1", site="home"))
    devices = [
        DeviceToAdd(device=f"d{number}", site="home", labels={"line": "ab"[number % 2]})
        for number in range(6)
    ]
    told = operations.add_devices(SETUP, DevicesToAdd(devices=devices))
    operations.registry.observe({f"d{number}": seen(operations, number) for number in range(4)})
    return {one.device: one.password for one in told.devices}


def seen(operations: Operations, number: int, **values: Any) -> Observed:
    """What a gateway tells of a device."""
    known = Manifest.parse(json.dumps(small_model.manifest("ab"[number % 2])))
    entry = small_model.device_entry(f"d{number}", known.board.name)
    wanted = {name: value for name, value in entry.items() if name in Observed.model_fields}
    heard = {"gateway": "gw1", "last_seen": operations.registry.now()}
    return Observed.model_validate({**wanted, **heard, **values})


def make_site(store: SqlStore, **options: Any) -> Site:
    operations = Operations(store, "fleet")
    passwords = fill(operations)
    tokens = {role: Tokens(store).issue(f"{role}-ann", role, DAY)[1] for role in ROLES}
    app = make_app(operations, version="1.2.3", **{"requests_per_minute": 1_000_000, **options})
    http = TestClient(app, base_url=URL, raise_server_exceptions=False)
    return Site(store, operations, app, tokens, http, passwords)


@pytest.fixture
def new_site(
    new_database: Callable[[str], str | None],
) -> Iterator[Callable[..., Site]]:
    """Makes a service over an empty database of a kind."""
    made: list[Site] = []

    def make(kind: str = "sqlite", **options: Any) -> Site:
        made.append(make_site(SqlStore(new_database(kind)), **options))
        return made[-1]

    yield make
    for one in made:
        one.http.close()
        one.store.close()


@pytest.fixture
def new_database(request: pytest.FixtureRequest, tmp_path: Any) -> Callable[[str], str | None]:
    return lambda kind: database(request, kind, tmp_path)


@pytest.fixture
def site(new_site: Callable[..., Site]) -> Site:
    return new_site("memory")


def campaign(**fields: Any) -> CampaignConfig:
    """A small campaign."""
    return CampaignConfig.model_validate({"name": "test", "model": "small", "rounds": 2, **fields})


def private_campaign(**privacy: Any) -> CampaignConfig:
    """The same with noise, at a cost of 1/8 a round (zCDP)."""
    said = {"clip": 100, "noise_multiplier": 2.0, "delta": 1e-3, **privacy}
    return campaign(
        coding="masked",
        masking={"least_devices": 2},
        aggregation={"rule": "fedavg"},
        privacy=said,
    )


def measured(site: Site, kind: str, seconds: dict[str, float], steps: int = 5) -> None:
    """A past campaign of the model had a round in which devices took so long, with plan large."""
    texts = small_model.manifest_texts("a", "b")
    name = new_campaign(
        site.store, campaign(), texts, small_model.blob(), author="ann", base="small:1"
    )
    site.store.claim(name, "driver")
    site.store.begin_round(name, "driver", 1, kind, {})
    reports = [
        {
            "device": device,
            "plan": small_model.manifest("a")["plans"][-1]["id"],
            "train_steps": steps,
            "seconds": one,
        }
        for device, one in seconds.items()
    ]
    site.store.finish_round(name, "driver", 1, "done", {"accepted": 1}, reports, None)


def with_power(site: Site, board: str, milliwatts: int) -> None:
    """A board's bundle comes again, with what the board takes while it computes."""
    text = small_model.manifest(board)
    text["board"]["active_milliwatts"] = milliwatts
    weights = base64.b64encode(small_model.blob()).decode()
    bundle = BundleToImport(model="small", manifest=json.dumps(text), weights=weights)
    site.operations.import_bundle(SETUP, bundle)
