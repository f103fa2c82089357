"""Pages that are looked at: what is asked for again, who is let go, what says that it is old."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import httpx
import pytest

from fleet.dashboard import mount
from fleet.dashboard.app import PAGES_AT_ONCE, Dashboard
from fleet.dashboard.shared import MOST_PAGES, Shared
from fleet.errors import StoreAwayError
from fleet.service.operations import Actor
from fleet.service.schema import DeviceSummary
from fleet.store import Tokens
from tests.fleet.dashboard.conftest import FROM_US, Browser, Parsed
from tests.fleet.service.conftest import DAY, Site, seen
from tests.patience import PATIENCE_SECONDS

Browsers = Callable[[str], Browser]


def service_of(site: Site) -> httpx.AsyncClient:
    """For many requests at once: all of them are answered on this event loop, as in a service."""
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(site.app), base_url="http://service", timeout=None
    )


async def look(client: httpx.AsyncClient, token: str, path: str) -> httpx.Response:
    return await client.get(f"/ui{path}", headers={"Cookie": f"tinyfleet_token={token}"})


async def at_once(site: Site, wanted: Sequence[tuple[str, str]]) -> list[httpx.Response]:
    """The answers to those who look, each with a token at a path."""
    found: list[httpx.Response] = []
    async with service_of(site) as client:

        async def one(token: str, path: str) -> None:
            found.append(await look(client, token, path))

        with anyio.fail_after(PATIENCE_SECONDS):
            async with anyio.create_task_group() as group:
                for token, path in wanted:
                    group.start_soon(one, token, path)
    return found


@pytest.mark.parametrize(
    "path", ["/fleet", "/devices/d0", "/fleet?filter=online", "/fleet?filter=("]
)
def test_a_page_that_nothing_happened_to_is_not_sent_again(browser: Browsers, path: str) -> None:
    someone = browser("viewer")
    first = someone.live(path)
    assert first.status_code == 200
    assert "<html" not in first.text
    again = someone.live(path, first.headers["ETag"])
    assert (again.status_code, again.content) == (304, b"")


def test_what_has_changed_is_in_the_parts_that_are_live(site: Site, browser: Browsers) -> None:
    someone = browser("viewer")
    tag = someone.live("/devices/d0").headers["ETag"]
    ops = site.operations
    ops.registry.observe({"d0": seen(ops, 0, battery_percent=7)})
    answer = someone.live("/devices/d0", tag)
    assert answer.status_code == 200
    fresh, whole = Parsed(answer.text), Parsed(someone.get("/devices/d0").text)
    assert "7 %" in fresh.text
    live = [one["id"] for tag, one in fresh.elements if "data-live" in one]
    assert live
    assert live == [one["id"] for tag, one in whole.elements if "data-live" in one]


def test_live_parts_tell_nothing_of_who_looks(site: Site) -> None:
    """They are made once for all of a role."""
    people = [
        Browser(site, Tokens(site.store).issue(name, "viewer", DAY)[1]) for name in ("ann", "bob")
    ]
    for path in ("/fleet", "/devices/d0"):
        first, second = (one.live(path) for one in people)
        assert first.headers["ETag"] == second.headers["ETag"]
        assert first.text == second.text
        assert "ann" not in first.text


def test_roles_do_not_share_what_they_see(site: Site, browser: Browsers) -> None:
    viewer, operator = browser("viewer"), browser("operator")
    assert viewer.live("/devices/d0").text != operator.live("/devices/d0").text


def test_a_token_that_is_revoked_ends_the_watching(site: Site) -> None:
    token, text = Tokens(site.store).issue("bob", "viewer", DAY)
    someone = Browser(site, text)
    tag = someone.live("/fleet").headers["ETag"]
    Tokens(site.store).revoke(token.token)
    answer = someone.live("/fleet", tag)
    assert answer.status_code == 401
    assert "was revoked" in answer.text
    assert "ETag" not in answer.headers
    someone.http.cookies.clear()
    assert someone.live("/fleet").status_code == 401, "the script isn't led to another page"


def test_a_page_of_before_an_upgrade_can_tell(site: Site, browser: Browsers) -> None:
    someone = browser("viewer")
    page = someone.get("/fleet")
    build = Parsed(page.text).all("html")[0]["data-build"]
    assert build.startswith("1.2.3+")
    assert someone.live("/fleet").headers["X-Tinyfleet-Version"] == build
    upgraded = Dashboard(site.app, "1.3.0")
    assert upgraded.build != build
    assert upgraded.build.startswith("1.3.0+")


def test_a_service_that_is_away_is_told_of_and_asked_again(
    site: Site, browser: Browsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise StoreAwayError("the store doesn't answer; it is tried again")

    someone = browser("viewer")
    with monkeypatch.context() as patched:
        patched.setattr(site.operations.tokens, "check", away)
        page = someone.page("/fleet", 503)
        assert "the store doesn't answer" in page.text
        assert {"http-equiv": "refresh", "content": "5"} in page.all("meta")
        answer = someone.live("/fleet")
        assert (answer.status_code, answer.text) == (
            503,
            "the store doesn't answer; it is tried again",
        )
    assert someone.live("/fleet").status_code == 200


def test_the_api_is_asked_once_for_all_who_look_at_a_page(
    new_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = new_site("sqlite")
    mount(site.app, keep_seconds=3600)
    asked: list[str] = []
    summarize = site.operations.summarize_devices

    def counted(actor: Actor, of: str) -> DeviceSummary:
        asked.append(of)
        return summarize(actor, of)

    monkeypatch.setattr(site.operations, "summarize_devices", counted)
    people = [Browser(site, Tokens(site.store).issue(f"p{n}", "viewer", DAY)[1]) for n in range(5)]
    answers = anyio.run(at_once, site, [(one.token, "/fleet") for one in people])
    assert [one.status_code for one in answers] == [200] * 5
    assert people[0].get("/fleet").status_code == 200
    assert asked == [""]
    people[0].live("/fleet?filter=online")
    Browser(site, site.tokens["operator"]).live("/fleet")
    assert asked == ["", "online", ""]
    # Whoever changes something sees it at once.
    Browser(site, site.tokens["operator"]).post("/devices/d0/retire")
    people[0].live("/fleet")
    assert asked == ["", "online", "", ""]


def test_more_pages_at_once_than_the_api_has_threads_are_all_answered(site: Site) -> None:
    """Pages wait for the API: were its threads theirs, all would wait for ever."""
    wanted = [(site.tokens["viewer"], f"/devices/d0?{number}") for number in range(60)]
    assert [one.status_code for one in anyio.run(at_once, site, wanted)] == [200] * 60


def test_who_waits_for_a_page_that_another_fetches_keeps_nobody_out(
    new_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a page that is slow keep anybody from logging in."""
    site = new_site("memory")
    mount(site.app, keep_seconds=3600)
    goes_on = threading.Event()
    asked: list[str] = []
    summarize = site.operations.summarize_devices

    def slow(actor: Actor, of: str) -> DeviceSummary:
        asked.append(of)
        assert goes_on.wait(PATIENCE_SECONDS)
        return summarize(actor, of)

    monkeypatch.setattr(site.operations, "summarize_devices", slow)
    token = site.tokens["viewer"]
    others = [f"/fleet?{number}" for number in range(PAGES_AT_ONCE - 2)]

    async def ask() -> None:
        async with service_of(site) as client, anyio.create_task_group() as group:
            for path in ["/fleet"] * 2 * PAGES_AT_ONCE + others:
                group.start_soon(look, client, token, path)
            try:
                with anyio.fail_after(PATIENCE_SECONDS):
                    while len(asked) < len(others) + 1:
                        await anyio.sleep(0.01)
                    # All slots but one are taken by pages that are slow, none by those who wait.
                    assert (await look(client, token, "/audit")).status_code == 200
                    group.start_soon(look, client, token, "/fleet?last")
                    while len(asked) < PAGES_AT_ONCE:
                        await anyio.sleep(0.01)
                    answer = await client.post(
                        "/ui/login", data={"token": token, "next": "/ui/fleet"}, headers=FROM_US
                    )
                    assert answer.headers["Location"] == "/ui/fleet"
                    assert (await look(client, token, "/nowhere")).status_code == 404
            finally:
                goes_on.set()

    anyio.run(ask)
    assert len(asked) == PAGES_AT_ONCE


def test_what_is_kept_grows_old_and_is_bounded() -> None:
    now = [0.0]
    shared: Shared[int] = Shared(1.0, lambda: now[0])
    numbers = itertools.count()

    async def find() -> int:
        return next(numbers)

    def get(key: str) -> int:
        return anyio.run(shared.get, key, find)

    assert [get("a"), get("a"), get("b")] == [0, 0, 1]
    now[0] = 0.99
    assert get("a") == 0
    now[0] = 1.0
    assert get("a") == 2
    for number in range(MOST_PAGES):
        get(str(number))
    assert get("a") == 3 + MOST_PAGES


def test_what_fails_is_tried_again() -> None:
    shared: Shared[int] = Shared()
    found = iter([0, 2])

    async def find() -> int:
        return 4 // next(found)

    with pytest.raises(ZeroDivisionError):
        anyio.run(shared.get, "a", find)
    assert anyio.run(shared.get, "a", find) == 2
