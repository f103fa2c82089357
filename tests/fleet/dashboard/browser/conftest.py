"""A browser for all of the tests here, and services for it to look at.

No longer than for these: while Playwright runs, a thread can have no other event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.fleet.dashboard import story
from tests.fleet.dashboard.browser import chromium, served
from tests.fleet.dashboard.browser.chromium import Window
from tests.fleet.dashboard.browser.served import Service, Told

DEVICES = 24
"""Few rows: axe looks at every one."""


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if not chromium.found():
        pytest.skip("there is no Chromium here; install the package chromium to run this test")
    with chromium.started() as one:
        yield one


@pytest.fixture(scope="package")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    tell = partial(story.fill, devices=DEVICES)
    return served.told(tmp_path_factory.mktemp("story") / "store.sqlite", tell)


@pytest.fixture
def service(told: Told, tmp_path: Path) -> Iterator[Service]:
    """A service of this test's own, in the middle of the story."""
    one = Service(told.copied(tmp_path))
    one.start()
    yield one
    one.close()


@pytest.fixture
def windows(browser: Browser) -> Iterator[Callable[..., Window]]:
    """Opens windows on a service, by role; whoever is nobody isn't logged in.

    No page may have fetched anything from elsewhere, nor have complained in the console.
    """
    opened: list[Window] = []
    with ExitStack() as stack:

        def new(service: Service, role: str = "", **options: Any) -> Window:
            one = stack.enter_context(chromium.window(browser, service.url, **options))
            if role:
                one.be(service.told.tokens[role])
            opened.append(one)
            return one

        yield new
    for one in opened:
        assert one.elsewhere == []
        assert one.complaints == []
