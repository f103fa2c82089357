"""What docs/design/threats.md says of stolen secrets, where no other test has it."""

from __future__ import annotations

import ast
import base64
import json
import logging
import re
import socket
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from fleet.coordinator.settings import ApiSettings
from fleet.coordinator.superlink import SuperLink
from fleet.gateway.broker import Broker, BrokerConfig, new_passwords
from fleet.ports import free_port
from fleet.service import deployment
from fleet.service.api import make_app
from fleet.service.log import JsonLines
from fleet.service.operations import Operations
from fleet.store import SqlStore, WeightsVersion, sqlite_url
from tests.fleet.gateway.broker_client import Client

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "design" / "threats.md").read_text("utf-8")
ROLES = ("viewer", "operator", "approver", "admin")

# The page


def named_tests() -> list[str]:
    return sorted(set(re.findall(r"`(tests/[\w/]+\.py::test_\w+)`", PAGE)))


def test_every_claim_of_the_page_names_a_test() -> None:
    claims = [line for line in PAGE.splitlines() if line.startswith("* ")]
    assert len(claims) > 30
    assert [one for one in claims if not re.search(r"`tests/[\w/]+\.py::test_\w+`$", one)] == []
    assert all(re.match(r"\* can(?:'t)? ", one) for one in claims)


@pytest.mark.parametrize("named", named_tests())
def test_the_tests_that_the_page_names_exist(named: str) -> None:
    path, _, function = named.partition("::")
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    assert function in {one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)}


# Brokers


def test_a_password_of_one_site_is_no_good_at_another_sites_broker(tmp_path: Path) -> None:
    passwords = new_passwords(["north", "south", "cow", "pig"])
    north = BrokerConfig(
        "barn", {"north": passwords["north"]}, {"cow": passwords["cow"]}, port=free_port()
    )
    south = BrokerConfig(
        "barn", {"south": passwords["south"]}, {"pig": passwords["pig"]}, port=free_port()
    )
    with Broker(tmp_path / "north", north) as here, Broker(tmp_path / "south", south) as there:
        for broker, own, strangers in ((here, "cow", "pig south"), (there, "pig", "cow north")):
            clients = [Client(broker, name, passwords[name]) for name in (own, *strangers.split())]
            # Nor with the name of one who may.
            clients.append(Client(broker, own, passwords[strangers.split()[0]]))
            refusals = [one.refusal is not None for one in clients]
            for one in clients:
                one.close()
            assert refusals == [False, True, True, True]


def test_a_broker_writes_nothing_that_passes_to_disk(tmp_path: Path) -> None:
    passwords = new_passwords(["north", "cow"])
    config = BrokerConfig(
        "barn", {"north": passwords["north"]}, {"cow": passwords["cow"]}, port=free_port()
    )
    with Broker(tmp_path / "site", config) as broker:
        cow = Client(broker, "cow", passwords["cow"])
        topic = "fleet/barn/gw/north/cow/delta"
        cow.client.publish(topic, b"the delta", qos=1, retain=True).wait_for_publish(60)
        cow.close()
        before = {one.name for one in broker.folder.iterdir()}
    after = list((tmp_path / "site").iterdir())
    assert {one.name for one in after} <= before
    assert not any(b"the delta" in one.read_bytes() for one in after)


# The API

CAMPAIGN = "0123456789abcdef"
LOOK, OPERATE, APPROVE, ADMINISTER = (
    {*ROLES},
    {"operator", "admin"},
    {"approver", "admin"},
    {"admin"},
)
DEVICES = {"devices": [{"device": "cow", "site": "north"}]}
START = {"campaign": {"name": "one", "model": "digits"}}
ACTIONS = ("pause", "resume", "stop", "roll-back")
WEIGHTS = base64.b64encode(b"weights").decode()
WRITES: list[tuple[str, str, Any, set[str]]] = [
    ("POST", "/v1/devices", DEVICES, OPERATE),
    ("PATCH", "/v1/devices/cow/labels", {"labels": {"room": "a"}}, OPERATE),
    ("POST", "/v1/devices/cow/retire", None, OPERATE),
    ("POST", "/v1/devices/cow/rotate", None, OPERATE),
    ("DELETE", "/v1/devices/cow", None, ADMINISTER),
    ("POST", "/v1/gateways", {"gateway": "north", "site": "north"}, ADMINISTER),
    (
        "POST",
        "/v1/models",
        {"model": "digits", "manifest": "{}", "weights": WEIGHTS},
        OPERATE,
    ),
    ("POST", "/v1/models/digits/versions", {"weights": WEIGHTS}, OPERATE),
    ("POST", "/v1/models/digits/versions/1/release", None, APPROVE),
    ("POST", "/v1/models/digits/rollback", None, APPROVE),
    ("POST", "/v1/campaigns", START, OPERATE),
    ("POST", "/v1/campaigns-plan", START, LOOK),
    *(
        ("POST", f"/v1/campaigns/{CAMPAIGN}/actions", {"action": action}, OPERATE)
        for action in ACTIONS
    ),
    ("POST", f"/v1/campaigns/{CAMPAIGN}/actions", {"action": "approve"}, APPROVE),
    ("POST", "/v1/tokens", {"who": "ada", "role": "viewer", "days": 1}, ADMINISTER),
    ("DELETE", "/v1/tokens/0123456789abcdef", None, ADMINISTER),
    (
        "POST",
        "/v1/webhooks",
        {"url": "https://example.com/", "events": ["state"]},
        ADMINISTER,
    ),
    ("DELETE", "/v1/webhooks/0123456789abcdef", None, ADMINISTER),
]


@dataclass
class Api:
    """The API over a store in a file, with a token for each role."""

    http: TestClient
    operations: Operations
    path: Path
    secrets: dict[str, str]

    def ask(self, who: str, method: str, path: str, body: Any = None, **headers: str) -> Any:
        token = self.secrets.get(who, who)
        headers["Authorization"] = f"Bearer {token}"
        return self.http.request(method, path, json=body, headers=headers)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    store = SqlStore(sqlite_url(tmp_path / "store.sqlite"))
    operations = Operations(store, "barn")
    secrets = {role: operations.tokens.issue(role, role, 3600.0)[1] for role in ROLES}
    with TestClient(make_app(operations, version="0")) as http:
        yield Api(http, operations, tmp_path / "store.sqlite", secrets)
    store.close()


def test_each_role_may_do_what_the_table_says_and_no_more(api: Api) -> None:
    for method, path, body, allowed in WRITES:
        for role in ROLES:
            status = api.ask(role, method, path, body).status_code
            assert status not in (401, 405), (method, path)
            assert (status == 403) == (role not in allowed), (role, method, path, status)
        assert api.ask("", method, path, body).status_code == 401
    for path, allowed in (("tokens", ADMINISTER), ("webhooks", ADMINISTER), ("devices", LOOK)):
        seen = {role for role in ROLES if api.ask(role, "GET", f"/v1/{path}").status_code == 200}
        assert seen == allowed


def test_the_table_of_writes_leaves_none_out(api: Api) -> None:
    said = api.http.get("/v1/openapi.json").json()["paths"]
    for path, methods in said.items():
        form = re.compile(re.sub(r"\{\w+\}", "[^/]+", path))
        for method in set(methods) & {"post", "put", "patch", "delete"}:
            assert any(
                known == method.upper() and form.fullmatch(at) for known, at, _, _ in WRITES
            ), (method, path)


def test_nobody_approves_what_they_have_started(api: Api) -> None:
    store = api.operations.store
    config = '{"name": "one", "model": "digits", "approval": true}'
    store.create_campaign(CAMPAIGN, config, {}, WeightsVersion(0, "0" * 64, b"", b""), "admin", "")
    store.claim(CAMPAIGN, "driver")
    store.set_state(CAMPAIGN, "driver", "waiting", "approval", "begin:0")
    path = f"/v1/campaigns/{CAMPAIGN}/actions"
    refused = api.ask("admin", "POST", path, {"action": "approve"})
    assert refused.status_code == 409
    assert "somebody else has to approve it" in refused.json()["error"]
    assert api.operations.stages.decisions(CAMPAIGN) == {}
    assert api.ask("approver", "POST", path, {"action": "approve"}).status_code == 200
    assert api.operations.stages.decisions(CAMPAIGN)["begin:0"].who == "approver"


def test_a_revoked_token_is_refused_at_the_next_request(api: Api) -> None:
    assert api.ask("viewer", "GET", "/v1/whoami").status_code == 200
    name = api.secrets["viewer"].split("_")[1]
    assert api.ask("admin", "DELETE", f"/v1/tokens/{name}").status_code == 204
    assert api.ask("viewer", "GET", "/v1/whoami").status_code == 401


def told_secrets(api: Api) -> dict[str, str]:
    """Everything that is told once, made with keys that make a repetition possible."""
    body = {"who": "ada", "role": "admin", "days": 1}
    token = api.ask("admin", "POST", "/v1/tokens", body, **{"Idempotency-Key": "1"})
    added = api.ask("operator", "POST", "/v1/devices", DEVICES, **{"Idempotency-Key": "2"})
    gateway = {"gateway": "north", "site": "north"}
    gateway = api.ask("admin", "POST", "/v1/gateways", gateway, **{"Idempotency-Key": "3"}).json()
    return {
        "token": token.json()["secret"],
        "device": added.json()["devices"][0]["password"],
        "gateway": gateway["password"],
    }


def test_what_was_told_once_is_not_told_again(api: Api) -> None:
    secrets = told_secrets(api)
    repeated = told_secrets(api)
    assert not set(secrets.values()) & set(repeated.values())
    for path in ("tokens", "devices", "devices/cow", "gateways", "audit", "webhooks"):
        text = api.ask("admin", "GET", f"/v1/{path}").text
        assert not [one for one in secrets.values() if one in text], path


def test_a_database_dump_holds_no_usable_password_or_token(api: Api) -> None:
    secrets = told_secrets(api)
    hook = {"url": "https://example.com/", "events": ["state"]}
    signing = api.ask("admin", "POST", "/v1/webhooks", hook).json()["secret"]
    with sqlite3.connect(api.path) as database:
        dump = "\n".join(database.iterdump())
    files = b"".join(one.read_bytes() for one in api.path.parent.iterdir())
    assert "cow" in dump
    assert signing in dump, "what signs has to be there: the page says so"
    for secret in (*secrets.values(), *api.secrets.values()):
        last = secret.split("_")[-1] if secret.startswith("tf_") else secret
        assert last not in dump
        assert last.encode() not in files
    # What is there instead opens nothing.
    name = api.secrets["admin"].split("_")[1]
    with sqlite3.connect(api.path) as database:
        (stored,) = database.execute("SELECT hash FROM tokens WHERE token = ?", [name]).fetchone()
    assert api.ask(f"tf_{name}_{stored}", "GET", "/v1/whoami").status_code == 401


def test_tokens_do_not_get_into_logs(api: Api) -> None:
    secret = api.secrets["admin"]
    try:
        raise ValueError(f"no good: {secret}")
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "token %s", (secret,), info)
    line = JsonLines().format(record)
    assert json.loads(line)["message"] == "token tf_…"
    assert secret.split("_")[2] not in line


def test_an_api_without_tls_listens_on_loopback_only() -> None:
    with pytest.raises(ValueError, match="in the clear"):
        ApiSettings(host="0.0.0.0")
    assert ApiSettings().host == "127.0.0.1"
    secured = ApiSettings(host="0.0.0.0", certificate=Path("a.crt"), key=Path("a.key"))
    assert secured.host == "0.0.0.0"


# Hosts


@pytest.mark.slow
def test_the_superlink_of_a_service_listens_on_loopback_only(tmp_path: Path) -> None:
    def answers(host: str, port: int) -> bool:
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError:
            return False
        return True

    with SuperLink(tmp_path / "flower") as link:
        assert answers("127.0.0.1", link.port)
        # Whatever else this machine is called, also without a network.
        assert not answers("127.0.0.2", link.port)
        assert not answers(socket.gethostbyname(socket.gethostname()), link.port) or (
            socket.gethostbyname(socket.gethostname()) == "127.0.0.1"
        )


def test_the_secrets_of_a_deployment_are_for_their_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    deployment.init(folder, "barn", ["north"], 1)
    secret = [folder / "admin.token", folder / "ca" / "ca.key"]
    secret += [*folder.glob("gateways/*.password"), *folder.glob("ca/*.key")]
    secret += [*folder.glob("brokers/*/passwords"), *folder.glob("brokers/*/own.json")]
    assert len(secret) > 5
    for path in secret:
        assert path.stat().st_mode & 0o077 == 0, path
    for name in ("coordinator", "gateways"):
        assert (folder / name).stat().st_mode & 0o077 == 0
