"""What docs/design/threats.md says of stolen secrets, where no other test has it."""

from __future__ import annotations

import ast
import re
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.coordinator.settings import ApiSettings
from fleet.coordinator.superlink import SuperLink
from fleet.gateway.broker import Broker, BrokerConfig, new_passwords
from fleet.ports import free_port
from fleet.store import SqlStore, sqlite_url
from tests.fleet.coordinator import small_model
from tests.fleet.gateway.broker_client import Client
from tests.fleet.service.conftest import Site, campaign, make_site

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "design" / "threats.md").read_text("utf-8")

# The page


KEYS_PAGE = (ROOT / "docs" / "howto" / "keys.md").read_text("utf-8")


def named_tests() -> list[str]:
    return sorted(set(re.findall(r"`(tests/[\w/]+\.py::test_\w+)`", PAGE + KEYS_PAGE)))


def test_every_claim_of_the_page_names_a_test() -> None:
    claims = [line for line in PAGE.splitlines() if line.startswith("* ")]
    assert len(claims) > 30
    assert [one for one in claims if not re.search(r"`tests/[\w/]+\.py::test_\w+`$", one)] == []
    assert all(re.match(r"\* can(?:'t)? ", one) for one in claims)


@pytest.mark.parametrize("named", named_tests())
def test_the_tests_that_the_pages_name_exist(named: str) -> None:
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


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    one = make_site(SqlStore(sqlite_url(tmp_path / "store.sqlite")))
    yield one
    one.http.close()
    one.store.close()


def test_an_approval_by_whoever_has_started_it_is_refused_as_a_conflict(site: Site) -> None:
    of = site.client().start_campaign(campaign(approval=True)).campaign
    site.store.set_state(of, "", "waiting", "approval", "begin:0")
    path = f"/v1/campaigns/{of}/actions"
    refused = site.ask("admin", "POST", path, json={"action": "approve"})
    assert refused.status_code == 409
    assert "somebody else has to approve it" in refused.json()["error"]
    assert site.operations.stages.decisions(of) == {}
    assert site.ask("approver", "POST", path, json={"action": "approve"}).status_code == 200
    assert site.operations.stages.decisions(of)["begin:0"].who == "approver-ann"


def test_a_revoked_token_is_refused_at_the_next_request(site: Site) -> None:
    assert site.ask("viewer", "GET", "/v1/whoami").status_code == 200
    name = site.tokens["viewer"].split("_")[1]
    assert site.ask("admin", "DELETE", f"/v1/tokens/{name}").status_code == 204
    assert site.ask("viewer", "GET", "/v1/whoami").status_code == 401


def told_secrets(site: Site) -> set[str]:
    """Everything that is told once, asked for with keys that make a repetition possible."""

    def told(role: str, path: str, body: Any) -> Any:
        return site.ask(role, "POST", path, json=body, headers={"Idempotency-Key": path}).json()

    devices = [{"device": "cow", "site": "home"}]
    hook = {"url": "https://example.com/", "events": ["state"]}
    return {
        told("admin", "/v1/tokens", {"who": "ada", "role": "admin", "days": 1})["secret"],
        told("operator", "/v1/devices", {"devices": devices})["devices"][0]["password"],
        told("admin", "/v1/gateways", {"gateway": "north", "site": "home"})["password"],
        told("admin", "/v1/webhooks", hook)["secret"],
    }


def test_what_was_told_once_is_not_told_again(site: Site) -> None:
    secrets = told_secrets(site)
    assert len(secrets) == 4
    assert not secrets & told_secrets(site)
    for path in ("tokens", "devices", "devices/cow", "gateways", "audit", "webhooks"):
        text = site.ask("admin", "GET", f"/v1/{path}").text
        assert not [one for one in secrets if one in text], path


def test_whoever_reads_the_database_can_sign_webhooks_and_has_no_token(
    site: Site, tmp_path: Path
) -> None:
    hook = {"url": "https://example.com/", "events": ["state"]}
    signing = site.ask("admin", "POST", "/v1/webhooks", json=hook).json()["secret"]
    with sqlite3.connect(tmp_path / "store.sqlite") as database:
        dump = "\n".join(database.iterdump())
        name = site.tokens["admin"].split("_")[1]
        (kept,) = database.execute("SELECT hash FROM tokens WHERE token = ?", [name]).fetchone()
    assert signing in dump
    assert small_model.blob().hex().upper() in dump
    assert '{"line": "a"}' in dump
    # What is there instead of a token opens nothing.
    headers = {"Authorization": f"Bearer tf_{name}_{kept}"}
    assert site.http.get("/v1/whoami", headers=headers).status_code == 401


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
        assert not answers("127.0.0.2", link.port)
        try:
            named = socket.gethostbyname(socket.gethostname())
        except OSError as error:
            pytest.skip(f"this machine's name has no address ({error}): only loopback was tried")
        # Whatever else this machine is called, also without a network.
        assert named == "127.0.0.1" or not answers(named, link.port)
