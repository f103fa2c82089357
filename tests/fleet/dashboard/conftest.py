"""The dashboard over the real API, and browsers of every role."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from fleet.dashboard import mount
from fleet.service.operations import Operations
from fleet.store import SqlStore, Tokens
from tests.fleet.dashboard.story import Story, fill
from tests.fleet.service.conftest import (
    DAY,
    Site,
    new_database,
    new_site,
    postgres_server,
)

__all__ = ["new_database", "new_site", "postgres_server"]

FROM_US = {"Sec-Fetch-Site": "same-origin"}
LIVE = {"X-Tinyfleet-Live": "1"}
_VOID = frozenset({"meta", "link", "input", "br", "hr", "img", "wbr"})
_ADDRESSED = ("href", "action", "src")


class Parsed(HTMLParser):
    """A page, read strictly: elements are closed in order, ids are there once, labels and
    descriptions lead to something, nothing is inline that the policy forbids."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.ids: set[str] = set()
        self.addresses: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._wanted: set[str] = set()
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"
        assert self._wanted <= self.ids, f"nothing has the id {self._wanted - self.ids}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._add(tag, attrs)
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._add(tag, attrs)

    def _add(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        values = {name: value or "" for name, value in attrs}
        assert "style" not in values
        assert not any(name.startswith("on") for name in names)
        assert tag != "style"
        assert tag != "script" or "src" in values
        if "id" in values:
            assert values["id"] not in self.ids, f"twice: {values['id']}"
            self.ids.add(values["id"])
        for name in ("for", "aria-labelledby", "aria-describedby"):
            self._wanted |= set(values.get(name, "").split())
        self.addresses += [values[name] for name in _ADDRESSED if name in values]
        self.elements.append((tag, values))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1:] == [tag], f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """What is read, with single blanks."""
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of all elements of a kind."""
        return [values for name, values in self.elements if name == tag]


def hidden(page: Parsed) -> dict[str, str]:
    """What a form sends that nobody fills in."""
    return {one["name"]: one["value"] for one in page.all("input") if one.get("type") == "hidden"}


def links(page: Parsed, to: str) -> list[str]:
    return [one["href"] for one in page.all("a") if to in one.get("href", "")]


def check_form(page: Parsed) -> None:
    """Whoever can't see a page is told as much: labels, one heading of all, heads of columns."""
    labelled = {one["for"] for one in page.all("label") if "for" in one}
    for one in [*page.all("input"), *page.all("textarea"), *page.all("select")]:
        assert one.get("type") in ("hidden", "checkbox") or one.get("id") in labelled, one
    assert len(page.all("h1")) == 1
    assert all("scope" in one for one in page.all("th"))


class Browser:
    """Somebody who has logged in with a token."""

    def __init__(self, site: Site, token: str) -> None:
        self.site = site
        self.token = token
        self.http = TestClient(
            site.app, base_url="http://service", follow_redirects=False, cookies={}
        )
        self.http.cookies.set("tinyfleet_token", token, path="/ui")

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.http.get(f"/ui{path}", headers=headers)

    def page(self, path: str, status: int = 200) -> Parsed:
        """A page, read strictly."""
        answer = self.get(path)
        assert answer.status_code == status, answer.text
        return Parsed(answer.text)

    def live(self, path: str, tag: str = "") -> httpx.Response:
        """What the script asks for."""
        return self.http.get(
            f"/ui{path}", headers={**LIVE, **({"If-None-Match": tag} if tag else {})}
        )

    def post(self, path: str, form: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
        return self.http.post(f"/ui{path}", data=form or {}, headers=headers or FROM_US)


@pytest.fixture
def site(new_site: Callable[..., Site]) -> Site:
    made = new_site("memory")
    mount(made.app, keep_seconds=0.0)
    return made


@pytest.fixture
def browser(site: Site) -> Callable[[str], Browser]:
    return lambda role: Browser(site, site.tokens[role])


@pytest.fixture(scope="session")
def told() -> Iterator[Story]:
    """A fleet in the middle of its life, told once."""
    store = SqlStore()
    yield fill(Operations(store, "fleet"), devices=24)
    store.close()


@pytest.fixture
def story(told: Story, site: Site) -> Story:
    """A copy of it, which is the site's own."""
    _driver(told.operations.store).backup(_driver(site.store))
    for role in site.tokens:
        site.tokens[role] = Tokens(site.store).issue(f"{role}-ann", role, DAY)[1]
    return replace(told, operations=site.operations)


def _driver(store: SqlStore) -> sqlite3.Connection:
    made: Any = store._engine.raw_connection().driver_connection
    assert isinstance(made, sqlite3.Connection)
    return made
