"""Pages that are looked at: what is asked for again, who is let go, what says that it is old."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest

from fleet.dashboard import mount
from fleet.dashboard.app import Dashboard
from fleet.dashboard.shared import MOST_PAGES, Shared
from fleet.errors import StoreAwayError
from fleet.service.operations import Actor
from fleet.service.schema import DeviceSummary
from fleet.store import Tokens
from tests.fleet.dashboard.conftest import Browser, Parsed
from tests.fleet.service.conftest import DAY, Site, seen
from tests.patience import PATIENCE_SECONDS

Browsers = Callable[[str], Browser]


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
    threads = [threading.Thread(target=one.live, args=("/fleet",)) for one in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
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
    cookies = {"tinyfleet_token": site.tokens["viewer"]}

    async def ask() -> list[int]:
        found: list[int] = []
        transport = httpx.ASGITransport(site.app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://service", cookies=cookies
        ) as client:

            async def one(number: int) -> None:
                found.append((await client.get(f"/ui/devices/d0?{number}")).status_code)

            with anyio.fail_after(PATIENCE_SECONDS):
                async with anyio.create_task_group() as group:
                    for number in range(60):
                        group.start_soon(one, number)
        return found

    assert anyio.run(ask) == [200] * 60


def test_what_is_kept_grows_old_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    shared: Shared[int] = Shared(1.0, lambda: now[0])
    numbers = itertools.count()

    def get(key: str) -> int:
        return shared.get(key, lambda: next(numbers))

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
    with pytest.raises(ZeroDivisionError):
        shared.get("a", lambda: 1 // 0)
    assert shared.get("a", lambda: 2) == 2
