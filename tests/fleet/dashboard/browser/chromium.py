"""Chromium as Debian packages it, driven by Playwright, which downloads nothing here."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Page,
    ViewportSize,
    expect,
    sync_playwright,
)

from tests.patience import PATIENCE_SECONDS

DESK: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 360, "height": 780}
"""The smallest that pages are made for."""
NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_PATIENCE_MILLISECONDS = 1000 * PATIENCE_SECONDS
_ANSWERED_BADLY = "Failed to load resource"


def found() -> str:
    """The path of a Chromium; empty where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), "")


@contextlib.contextmanager
def started() -> Iterator[Browser]:
    """A headless Chromium with a profile of its own.

    While it runs, no other event loop can be run in this thread.
    """
    expect.set_options(timeout=_PATIENCE_MILLISECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found(), args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Window:
    """A browser of somebody's: its own cookies, one page, and a record of what went wrong."""

    page: Page
    url: str
    asked: list[str] = field(default_factory=list)
    """Every address that was asked for."""
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console, such as those about the content security policy."""
    failures: list[str] = field(default_factory=list)
    """Answers that were errors and requests without an answer, as the console tells them."""

    def __post_init__(self) -> None:
        """Listen."""
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            of = self.failures if message.text.startswith(_ANSWERED_BADLY) else self.complaints
            of.append(f"{message.text} {message.location.get('url', '')}")

    def be(self, token: str) -> None:
        """Be logged in with this token."""
        cookie = {"name": "tinyfleet_token", "value": token, "domain": "127.0.0.1", "path": "/ui"}
        self.page.context.add_cookies([{**cookie, "httpOnly": True, "sameSite": "Strict"}])

    def open(self, path: str) -> Page:
        """A page of the dashboard."""
        self.page.goto(f"{self.url}/ui{path}")
        return self.page

    def look_again(self) -> None:
        """Come back to the page from another one: it asks for news at once."""
        self.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    @property
    def focused(self) -> str:
        """What has the focus, as it is called."""
        return str(
            self.page.evaluate(
                """() => {
                  const one = document.activeElement;
                  const label = one.labels?.[0]?.textContent ?? one.getAttribute("aria-label");
                  return (label || one.textContent).trim().replace(/\\s+/g, " ");
                }"""
            )
        )

    @property
    def shows_focus(self) -> bool:
        """Whether one sees what has the focus: by its outline, or by that of what it is in."""
        return bool(
            self.page.evaluate(
                """() => {
                  const one = document.activeElement;
                  return [one, one.parentElement].some((of) => {
                    const style = getComputedStyle(of);
                    return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
                  });
                }"""
            )
        )

    @property
    def elsewhere(self) -> list[str]:
        """What was asked for that isn't the service's."""
        return [one for one in self.asked if not one.startswith(f"{self.url}/")]

    @property
    def is_too_wide(self) -> bool:
        """Whether one has to scroll the whole page sideways."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))


@contextlib.contextmanager
def window(browser: Browser, url: str, **options: Any) -> Iterator[Window]:
    """A window on a service, without motion."""
    options = {"viewport": DESK, "reduced_motion": "reduce", **options}
    context = browser.new_context(**options)
    context.set_default_timeout(_PATIENCE_MILLISECONDS)
    try:
        yield Window(context.new_page(), url)
    finally:
        context.close()
