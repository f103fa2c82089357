"""Who may do what: every role with every operation of the API's document, over HTTP."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

import pytest

from fleet.service.roles import Permission, may
from fleet.store import ROLES
from tests.fleet.coordinator import small_model
from tests.fleet.service.conftest import Site, campaign, private_campaign

EVERYBODY = frozenset(ROLES)
OPERATORS = frozenset({"operator", "admin"})
APPROVERS = frozenset({"approver", "admin"})
ADMINS = frozenset({"admin"})
CAMPAIGN = {"campaign": campaign().model_dump(mode="json", exclude_unset=True)}
PRIVATE = {"campaign": private_campaign().model_dump(mode="json", exclude_unset=True)}
WEIGHTS = base64.b64encode(small_model.blob()).decode()


@dataclass(frozen=True)
class Cell:
    """Who may do it, and a request that makes sense."""

    roles: frozenset[str]
    body: Any = None
    values: dict[str, str] = field(default_factory=dict)
    query: dict[str, Any] = field(default_factory=dict)


DEVICE = {"device": "d0"}
TABLE = {
    "GET /v1/whoami": Cell(EVERYBODY),
    "GET /v1/devices": Cell(EVERYBODY),
    "POST /v1/devices": Cell(OPERATORS, {"devices": [{"device": "new", "site": "home"}]}),
    "GET /v1/devices-export": Cell(EVERYBODY),
    "GET /v1/devices-preview": Cell(EVERYBODY),
    "GET /v1/devices-summary": Cell(EVERYBODY),
    "GET /v1/devices/{device}": Cell(EVERYBODY, values=DEVICE),
    "DELETE /v1/devices/{device}": Cell(ADMINS, values=DEVICE),
    "GET /v1/devices/{device}/history": Cell(EVERYBODY, values=DEVICE),
    "GET /v1/devices/{device}/record": Cell(EVERYBODY, values=DEVICE),
    "PATCH /v1/devices/{device}/labels": Cell(OPERATORS, {"labels": {"line": "c"}}, DEVICE),
    "POST /v1/devices/{device}/retire": Cell(OPERATORS, values=DEVICE),
    "POST /v1/devices/{device}/rotate": Cell(OPERATORS, values=DEVICE),
    "GET /v1/gateways": Cell(EVERYBODY),
    "POST /v1/gateways": Cell(ADMINS, {"gateway": "gw2", "site": "home"}),
    "POST /v1/gateways/{gateway}/retire": Cell(ADMINS, values={"gateway": "gw1"}),
    "GET /v1/models": Cell(EVERYBODY),
    "POST /v1/models": Cell(
        OPERATORS,
        {"model": "s2", "manifest": small_model.manifest_texts("c")["c"], "weights": WEIGHTS},
    ),
    "GET /v1/models/{model}": Cell(EVERYBODY, values={"model": "small"}),
    "POST /v1/models/{model}/versions": Cell(
        OPERATORS, {"weights": WEIGHTS}, values={"model": "small"}
    ),
    "GET /v1/models/{model}/versions/{version}/weights": Cell(
        EVERYBODY, values={"model": "small", "version": "1"}
    ),
    "POST /v1/models/{model}/versions/{version}/release": Cell(
        APPROVERS, values={"model": "small", "version": "1"}
    ),
    "POST /v1/models/{model}/rollback": Cell(APPROVERS, values={"model": "small"}),
    "GET /v1/models/{model}/compare": Cell(
        EVERYBODY, values={"model": "small"}, query={"first": 1, "second": 1}
    ),
    "GET /v1/campaigns": Cell(EVERYBODY),
    "POST /v1/campaigns": Cell(OPERATORS, CAMPAIGN),
    "POST /v1/campaigns-plan": Cell(EVERYBODY, CAMPAIGN),
    "POST /v1/campaigns-privacy": Cell(EVERYBODY, PRIVATE),
    "POST /v1/campaigns-read": Cell(EVERYBODY, {"text": "name: x"}),
    "GET /v1/campaigns-schema": Cell(EVERYBODY),
    "GET /v1/campaigns/{campaign}": Cell(EVERYBODY),
    "GET /v1/campaigns/{campaign}/standing": Cell(EVERYBODY),
    "GET /v1/campaigns/{campaign}/rounds/{round}/figures": Cell(EVERYBODY, values={"round": "0"}),
    "GET /v1/campaigns/{campaign}/rounds/{round}": Cell(EVERYBODY, values={"round": "0"}),
    "POST /v1/campaigns/{campaign}/actions": Cell(OPERATORS, {"action": "pause"}),
    "GET /v1/privacy": Cell(EVERYBODY),
    "GET /v1/tokens": Cell(ADMINS),
    "POST /v1/tokens": Cell(ADMINS, {"who": "bob", "role": "viewer"}),
    "DELETE /v1/tokens/{token}": Cell(ADMINS, values={"token": "0" * 16}),
    "GET /v1/audit": Cell(EVERYBODY),
    "GET /v1/settings": Cell(ADMINS),
    "GET /v1/webhooks": Cell(ADMINS),
    "POST /v1/webhooks": Cell(ADMINS, {"url": "https://example.com/", "events": ["gate"]}),
    "DELETE /v1/webhooks/{webhook}": Cell(ADMINS, values={"webhook": "0" * 16}),
    "GET /v1/events": Cell(EVERYBODY, query={"follow": False}),
}
WITHOUT_TOKEN = {"GET /healthz", "GET /readyz", "GET /metrics"}
ACTIONS = {
    "pause": OPERATORS,
    "resume": OPERATORS,
    "stop": OPERATORS,
    "roll-back": OPERATORS,
    "approve": APPROVERS,
}


def test_every_operation_of_the_document_is_in_the_table(site: Site) -> None:
    document = site.app.openapi()["paths"]
    there = {f"{method.upper()} {path}" for path, methods in document.items() for method in methods}
    assert there == TABLE.keys() | WITHOUT_TOKEN


def test_whoever_may_is_let_in_and_others_change_nothing(site: Site) -> None:
    of = site.client().start_campaign(campaign()).campaign
    for name, cell in TABLE.items():
        method, path = name.split()
        path = path.format(**{"campaign": of, **cell.values})
        for role in sorted(EVERYBODY, key=lambda role: role in cell.roles):
            before = site.operations.audit.newest(1)
            answer = site.ask(role, method, path, json=cell.body, params=cell.query)
            if role in cell.roles:
                assert answer.status_code not in (401, 403, 405, 422, 500), (
                    role,
                    name,
                    answer.text,
                )
                continue
            assert answer.status_code == 403, (role, name, answer.text)
            assert answer.json()["kind"] == "AccessError"
            assert site.operations.audit.newest(1) == before, (role, name)


def test_an_action_needs_the_right_that_it_stands_for(site: Site) -> None:
    of = site.client().start_campaign(campaign()).campaign
    for action, roles in ACTIONS.items():
        for role in sorted(ROLES, key=lambda role: role in roles):
            before = site.operations.audit.newest(1)
            body = {"action": action}
            answer = site.ask(role, "POST", f"/v1/campaigns/{of}/actions", json=body)
            assert (answer.status_code == 403) == (role not in roles), (role, action)
            assert role in roles or site.operations.audit.newest(1) == before


def test_without_a_token_only_the_service_itself_is_seen(site: Site) -> None:
    for name in TABLE.keys() | WITHOUT_TOKEN:
        method, path = name.split()
        values = TABLE[name].values if name in TABLE else {}
        path = path.format(**{"campaign": "0" * 16, "round": "0", **values})
        status = site.http.request(method, path).status_code
        assert status == (200 if name in WITHOUT_TOKEN else 401), name


@pytest.mark.parametrize("role", ["", "root", "Admin"])
def test_an_unknown_role_may_do_nothing(role: str) -> None:
    assert not any(may(role, permission) for permission in Permission)
