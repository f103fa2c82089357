"""Screens of models, of the audit log and of the settings."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from fleet.dashboard.screens.audit import changes
from tests.fleet.dashboard.conftest import Browser, Parsed, check_form, hidden, links
from tests.fleet.dashboard.story import ADA, MODEL, Story
from tests.fleet.service.conftest import Site

PAGES = (
    "/models",
    f"/models/{MODEL}",
    f"/models/{MODEL}?first=1&second=2",
    f"/models/{MODEL}/confirm?do=release&version=4",
    "/audit",
    "/audit?who=eve",
    "/settings",
)


@pytest.mark.parametrize("role", ["viewer", "admin"])
def test_every_screen_is_well_formed_for_every_role(
    browser: Callable[[str], Browser], story: Story, role: str
) -> None:
    for path in PAGES:
        check_form(browser(role).page(path))


# ---- models ------------------------------------------------------------------------------


def test_a_models_lineage_and_two_versions_on_the_same_devices_are_shown(
    browser: Callable[[str], Browser], story: Story, site: Site
) -> None:
    page = browser("viewer").page(f"/models/{MODEL}?first=1&second=2")
    drawn = [one["aria-label"] for one in page.all("svg") if one.get("class") == "lineage"]
    assert drawn == [
        "Versions: 1 released, 2 released from 1, 3 released from 2, 4 withdrawn from 3"
    ]
    told = site.client("viewer").compare(MODEL, 1, 2)
    assert told.devices == 24
    assert f"24 devices have scored both: {told.better} better with 2" in page.text
    assert not links(page, "/confirm")
    refused = [one for one in page.all("button") if "disabled" in one]
    assert {one["aria-describedby"] for one in refused} == {
        "refused-roll-back",
        "refused-release-4",
    }
    assert page.text.count("viewer may not approve or release") == 2
    wrong = browser("viewer").page(f"/models/{MODEL}?first=1&second=77")
    assert "has no version 77" in wrong.text


def test_a_version_is_released_by_those_who_may_and_the_newest_is_withdrawn_only_as_it_was_seen(
    browser: Callable[[str], Browser], story: Story, site: Site
) -> None:
    eve, path = browser("approver"), f"/models/{MODEL}/confirm"
    old = hidden(eve.page(f"{path}?do=roll-back&version=3"))
    page = eve.page(f"{path}?do=release&version=4")
    assert "digits:4 is withdrawn now. Campaigns that name no version begin with it" in page.text
    assert browser("operator").post(path, hidden(page)).status_code == 403
    answer = eve.post(path, {**hidden(page), "why": "after all"})
    assert answer.status_code == 303
    assert site.operations.models.version(MODEL).version == 4
    assert site.operations.audit.newest(1)[0].why == "after all"
    stale = eve.post(path, old)
    assert stale.status_code == 409
    assert "newest released version is digits:4, not digits:3 any more" in Parsed(stale.text).text
    assert site.operations.models.version(MODEL).version == 4
    new = hidden(eve.page(f"{path}?do=roll-back&version=4"))
    assert eve.post(path, new).status_code == 303
    assert site.operations.models.version(MODEL).version == 3
    assert eve.post(path, {"action": "x"}).status_code == 409


# ---- audit -------------------------------------------------------------------------------


def test_the_audit_log_goes_back_page_by_page_and_by_who_what_and_whom(
    browser: Callable[[str], Browser], story: Story, site: Site
) -> None:
    for number in range(120):
        site.operations.audit.add("ola", "admin", "x.do", f"device:d{number}", None, number, "")
    bob = browser("viewer")
    path, seen = "/audit?who=ola", []
    while path:
        page = bob.page(path)
        seen += [int(one) for one in re.findall(r"device:d(\d+)", page.text)]
        older = links(page, "before=")
        path = older[0].removeprefix("/ui") if older else ""
    assert seen == list(reversed(range(120)))
    assert "No such entry" in bob.page("/audit?who=nobody").text
    assert "who" in bob.page("/audit?who=%00").text
    assert bob.page("/audit?before=x").text.count("ola") >= 50


def test_what_changed_is_shown_field_by_field() -> None:
    assert changes({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": [1]}) == [
        ("b", "2", "3"),
        ("c", "", "[1]"),
    ]
    assert changes("candidate", "released") == [("", "candidate", "released")]
    assert changes(None, {"a": "x" * 100})[0][2] == "x" * 59 + "…"
    assert changes(None, None) == []


# ---- settings ----------------------------------------------------------------------------


def test_only_those_who_administer_see_tokens_webhooks_and_settings(
    browser: Callable[[str], Browser], story: Story
) -> None:
    page = browser("operator").page("/settings")
    assert "operator may not administer accounts" in page.text
    assert "dairy-gw" in page.text
    assert "tf_" not in page.text
    assert (
        browser("operator")
        .post("/settings/tokens", {"who": "x", "role": "admin", "days": "1"})
        .status_code
        == 403
    )


def test_a_tokens_secret_is_told_once_and_lets_somebody_in_until_it_is_revoked(
    browser: Callable[[str], Browser], story: Story, site: Site
) -> None:
    ann = browser("admin")
    form = {**hidden(ann.page("/settings")), "who": "lia", "role": "viewer", "days": "2"}
    answer = ann.post("/settings/tokens", form)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    secret = re.search(r"tf_[0-9a-f]{16}_[0-9a-f]{64}", answer.text)
    assert secret is not None
    again = ann.post("/settings/tokens", form)
    assert secret.group() not in again.text
    assert "It can't be told again" in Parsed(again.text).text
    lia = Browser(site, secret.group())
    assert lia.page("/campaigns")
    name = secret.group()[3:19]
    page = ann.page(f"/settings/tokens/{name}/remove")
    assert "lia (viewer) can't log in" in page.text
    assert ann.post(f"/settings/tokens/{name}/remove", hidden(page)).status_code == 303
    assert lia.get("/campaigns").status_code == 401
    assert ann.get(f"/settings/tokens/{name}/remove").status_code == 409


@pytest.mark.parametrize(
    "form",
    [
        {"who": "a b", "role": "viewer", "days": "2"},
        {"who": "ann", "role": "root", "days": "2"},
        {"who": "ann", "role": "viewer", "days": "nan"},
        {"who": "ann", "role": "viewer", "days": "-1"},
        {},
    ],
)
def test_a_token_that_makes_no_sense_is_put_right_where_it_was_typed(
    browser: Callable[[str], Browser], story: Story, site: Site, form: dict[str, str]
) -> None:
    before = len(site.operations.list_tokens(ADA).tokens)
    answer = browser("admin").post("/settings/tokens", form)
    assert answer.status_code == 422
    page = Parsed(answer.text)
    assert any(one.get("id") == "token-mistake" for one in page.all("p"))
    assert form.get("who", "") in [one.get("value") for one in page.all("input")]
    assert len(site.operations.list_tokens(ADA).tokens) == before


def test_webhooks_come_and_go(browser: Callable[[str], Browser], story: Story, site: Site) -> None:
    ann = browser("admin")
    assert ann.post("/settings/webhooks", {"url": "https://x.example"}).status_code == 422
    wrong = ann.post("/settings/webhooks", {"url": "ftp://x", "event-gate": "1"})
    assert wrong.status_code == 422
    form = {"url": "https://x.example/hook", "event-gate": "1", "key": "k"}
    answer = ann.post("/settings/webhooks", form)
    assert "What it sends is signed with it" in Parsed(answer.text).text
    made = site.operations.list_webhooks(ADA).webhooks[-1]
    assert (made.url, made.events) == ("https://x.example/hook", ["gate"])
    assert ann.post(f"/settings/webhooks/{made.webhook}/remove", {}).status_code == 303
    assert len(site.operations.list_webhooks(ADA).webhooks) == 1
