"""Forms that are refused keep what was typed, and what is sent twice is done once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from fleet.dashboard import mount
from fleet.dashboard.errors import beside_form
from fleet.errors import ServiceError, StoreAwayError
from fleet.service.client import Client
from fleet.service.schema import TokenToIssue
from tests.fleet.dashboard.conftest import Browser, Parsed, hidden
from tests.fleet.dashboard.story import ADA, MODEL, Story
from tests.fleet.service.conftest import Site

Browsers = Callable[[str], Browser]
TEXT = "name: mine\nmodel: digits\nrounds: 2\n"

FORMS: Mapping[str, tuple[str, str, dict[str, str]]] = {
    "label_device": (
        "/devices/cow-00001",
        "/devices/cow-00001/labels",
        {"new_name": "room", "new_value": "dairy"},
    ),
    "issue_token": (
        "/settings",
        "/settings/tokens",
        {"who": "lia", "role": "approver", "days": "7"},
    ),
    "add_webhook": (
        "/settings",
        "/settings/webhooks",
        {"url": "https://x.example/hook", "event-version": "1"},
    ),
    "release": (
        f"/models/{MODEL}/confirm?do=release&version=4",
        f"/models/{MODEL}/confirm",
        {"version": "4"},
    ),
    "act": ("/campaigns/{campaign}/confirm?do=stop", "/campaigns/{campaign}/confirm", {}),
    "start_campaign": ("/campaigns/new", "/campaigns/new", {"text": TEXT, "do": "start"}),
}
"""What the client is asked by it → its page, where it goes, what is filled in."""


def _form(story: Story, ann: Browser, asked: str) -> tuple[str, dict[str, str]]:
    """Where a form goes and what it sends."""
    page, to, filled = FORMS[asked]
    made = story.campaigns["canary-2"]
    sent = hidden(ann.page(page.format(campaign=made)))
    form = {**sent, **filled, "why": "it is time \N{HONEYBEE}"}
    return to.format(campaign=made), form


def _holds(answer: httpx.Response, form: Mapping[str, str]) -> None:
    """What was typed stands in the form that comes back."""
    page = Parsed(answer.text)
    typed = [one for one in page.all("input") if one.get("type") != "hidden"]
    for name in form.keys() - hidden(page).keys():
        value = form[name]
        if name == "role":
            assert f"<option selected>{value}</option>" in answer.text
        elif name == "text":
            assert value in "".join(page.texts)
        elif name != "do":
            found = [one for one in typed if (one["name"], one["value"]) == (name, value)]
            assert any(one.get("type") != "checkbox" or "checked" in one for one in found), name


@pytest.mark.parametrize("asked", FORMS)
@pytest.mark.parametrize("status", [429, None])
def test_what_was_typed_stays_where_the_service_has_no_time(
    browser: Browsers,
    story: Story,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    status: int | None,
) -> None:
    def busy(*_: Any, **__: Any) -> Any:
        raise ServiceError("it has no time", status)

    ann = browser("admin")
    to, form = _form(story, ann, asked)
    with monkeypatch.context() as patched:
        patched.setattr(Client, asked, busy)
        answer = ann.post(to, form)
    assert answer.status_code == (status or 503)
    page = Parsed(answer.text)
    assert "it has no time" in page.text
    _holds(answer, form)
    # It may have been done all the same: with the same key it isn't done again.
    keys = [one["value"] for one in page.all("input") if one.get("name") == "key"]
    assert set(keys) <= {form.get("key")}


@pytest.mark.parametrize("asked", FORMS)
def test_what_was_sent_while_the_service_was_away_is_sent_again_from_its_error_page(
    browser: Browsers, story: Story, site: Site, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    def away(*_: Any) -> None:
        raise StoreAwayError("the store doesn't answer; it is tried again")

    ann = browser("admin")
    to, form = _form(story, ann, asked)
    before = site.operations.audit.newest(1)
    with monkeypatch.context() as patched:
        patched.setattr(site.operations.tokens, "check", away)
        answer = ann.post(to, form)
    assert answer.status_code == 503
    page = Parsed(answer.text)
    assert "the store doesn't answer" in page.text
    assert hidden(page).items() >= form.items()
    assert f"/ui{to}" in page.addresses
    assert site.operations.audit.newest(1) == before
    assert ann.post(to, hidden(page)).status_code in (200, 303)
    assert site.operations.audit.newest(1)[0].why == form["why"]


def test_a_page_of_nonsense_is_not_offered_once_more(browser: Browsers, story: Story) -> None:
    answer = browser("admin").post(f"/models/{MODEL}/confirm", {"action": "x", "why": "so"})
    assert answer.status_code == 409
    assert "Send it again" not in answer.text


def test_a_label_that_is_wrong_leaves_its_form_as_it_was_filled(
    browser: Browsers, site: Site
) -> None:
    form = {"label.line": "kept", "new_name": "line", "new_value": "x" * 201, "why": "so"}
    answer = browser("operator").post("/devices/d0/labels", form)
    assert answer.status_code == 422
    _holds(answer, form)
    assert site.client().device("d0").labels == {"line": "a"}


def test_all_mistakes_of_a_form_are_told_a_line_for_each() -> None:
    with pytest.raises(ValidationError) as found:
        TokenToIssue(who="a b", role="admin", days=-1)
    told, status = beside_form(found.value)
    assert [line.partition(": ")[0] for line in told.splitlines()] == ["who", "days"]
    assert status == 422


def test_everybody_has_a_key_of_their_own_on_a_page_that_is_shared(
    new_site: Callable[..., Site],
) -> None:
    site = new_site("memory")
    mount(site.app, keep_seconds=3600)
    people = [Browser(site, site.tokens["admin"]) for _ in range(2)]
    keys = [hidden(one.page("/settings"))["key"] for one in people]
    assert len(set(keys)) == 2
    form = {"who": "lia", "role": "viewer", "days": "7"}
    for one, key in zip(people, keys, strict=True):
        answer = one.post("/settings/tokens", {**form, "key": key})
        assert "It is told this once" in Parsed(answer.text).text
    live = [one.live("/settings") for one in people]
    assert live[0].text == live[1].text


def test_a_second_press_removes_nothing_twice(browser: Browsers, story: Story, site: Site) -> None:
    ann = browser("admin")
    (made,) = site.operations.list_webhooks(ADA).webhooks
    path = f"/settings/webhooks/{made.webhook}/remove"
    form = hidden(ann.page(path))
    assert [ann.post(path, form).status_code for _ in range(2)] == [303, 303]
    assert site.operations.list_webhooks(ADA).webhooks == []
    assert len(site.operations.audit.newest(9, action="webhooks.remove")) == 1
