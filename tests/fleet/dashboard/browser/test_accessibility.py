"""Every page, light and dark, at a desk and on a phone: what axe finds, and whether it fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, ViewportSize

from fleet.dashboard.screens import ALL
from fleet.service.operations import Operations
from tests.fleet.dashboard.browser import served
from tests.fleet.dashboard.browser.chromium import DESK, PHONE, Window
from tests.fleet.dashboard.browser.served import Service, Told
from tests.fleet.dashboard.browser.sights import SIGHTS, Sight
from tests.fleet.dashboard.story import Story

Windows = Callable[..., Window]
Looks = Sequence[tuple[str, str, ViewportSize]]
_AXE = Axe()
_DESK, _PHONE = ("desk", DESK), ("phone", PHONE)
# Each theme and each width; with --long each theme at each width.
LOOKS = [
    pytest.param([("light", *_DESK), ("dark", *_PHONE)], id="light desk, dark phone"),
    pytest.param(
        [("dark", *_DESK), ("light", *_PHONE)], id="dark desk, light phone", marks=pytest.mark.long
    ),
]


@pytest.fixture(scope="package")
def looked_at(told: Told, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that nobody changes anything of."""
    one = Service(told.copied(tmp_path_factory.mktemp("looked_at")))
    one.start()
    yield one
    one.close()


@pytest.fixture(scope="package")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on its first day."""

    def nothing(operations: Operations) -> Story:
        return Story(operations, 0)

    folder = tmp_path_factory.mktemp("empty")
    one = Service(served.told(folder / "told.sqlite", nothing).copied(folder))
    one.start()
    yield one
    one.close()


def _findings(page: Page) -> list[str]:
    """What axe finds, with what it is about."""
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    return [
        f"{one['impact']} {one['id']} {' '.join(node['target'])}: {node['failureSummary']}"
        for one in found
        for node in one["nodes"]
    ]


def _looks_well(one: Window, looks: Looks) -> None:
    page, found = one.page, []
    page.evaluate(_AXE.axe_script)
    for theme, width, viewport in looks:
        page.set_viewport_size(viewport)
        page.emulate_media(color_scheme=theme)
        found += [f"{theme} {width}: {finding}" for finding in _findings(page)]
        if one.is_too_wide:
            found.append(f"{width}: it has to be scrolled sideways")
    assert not found, "\n".join(found)


def test_every_page_is_looked_at() -> None:
    routes = {screen.path for screen in ALL[0]} | {"/login"}
    assert routes <= {sight.route for sight in SIGHTS}


@pytest.mark.parametrize("looks", LOOKS)
@pytest.mark.parametrize("sight", SIGHTS, ids=lambda sight: sight.name)
def test_axe_finds_nothing_and_no_page_is_too_wide(
    looked_at: Service, windows: Windows, sight: Sight, looks: Looks
) -> None:
    one = windows(looked_at, sight.role)
    answer = one.page.goto(f"{looked_at.url}/ui{sight.path(looked_at.story)}")
    assert answer is not None
    assert answer.status == sight.status
    sight.act(one.page)
    _looks_well(one, looks)


@pytest.mark.parametrize("looks", LOOKS)
@pytest.mark.parametrize("route", sorted(one.path for one in ALL[0] if "{" not in one.path))
def test_axe_finds_nothing_on_a_page_that_has_nothing_yet(
    empty: Service, windows: Windows, route: str, looks: Looks
) -> None:
    one = windows(empty, "admin")
    one.open(route)
    assert not one.failures
    _looks_well(one, looks)
