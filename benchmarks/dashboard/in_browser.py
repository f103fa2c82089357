"""Pages of the dashboard in Chromium: when they can be used, what they bring over the network."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from tests.fleet.dashboard.browser import chromium
from tests.fleet.dashboard.browser.chromium import Window

REPEATS = 5
SETTLE_MILLISECONDS = 4000
PATIENCE_MILLISECONDS = 300_000
_FIGURES = (
    ("usable", "median ms", 1),
    ("bytes", "kB", 1000),
    ("tried", "its dry run is told, ms", 1),
)
_MEASURED = """() => new Promise((done) => {
  const look = () => {
    const [page] = performance.getEntriesByType("navigation");
    const [paint] = performance.getEntriesByName("first-contentful-paint");
    if (!paint || !page.loadEventEnd) {
      setTimeout(look, 5);
      return;
    }
    const all = [page, ...performance.getEntriesByType("resource")];
    done({
      usable: Math.max(page.loadEventEnd, paint.startTime),
      bytes: all.reduce((sum, one) => sum + one.transferSize, 0),
    });
  };
  look();
})"""


def _load(one: Window, path: str) -> Mapping[str, float]:
    page = one.page
    page.goto(one.url + path)
    assert page.locator("main h1").count() == 1
    measured = dict(page.evaluate(_MEASURED))
    if page.locator("form[data-editor]").count():
        # Whoever goes on before its answer leaves the service at work.
        page.get_by_role("heading", name="What it would do now").wait_for(
            timeout=PATIENCE_MILLISECONDS
        )
        measured["tried"] = page.evaluate("performance.now()")
    return measured


def of_pages(token: str, address: str, pages: Mapping[str, str]) -> dict[str, float]:
    """Medians of each page: milliseconds from the wish for it until it is loaded and painted, and
    bytes, at first and with the style sheet and the script in the browser's cache."""
    figures: dict[str, float] = {}
    with chromium.started() as browser:
        for name, path in pages.items():
            cold, warm = [], []
            for number in range(REPEATS):
                with chromium.window(browser, address) as one:
                    one.be(token)
                    sign = "&" if "?" in path else "?"
                    cold.append(_load(one, f"{path}{sign}cold={number}"))
                    warm.append(_load(one, f"{path}{sign}warm={number}"))
                if "tried" in warm[0]:
                    break  # which takes the service many seconds each time
            for kind, these in (("first", cold), ("again", warm)):
                for what, unit, per in _FIGURES:
                    if what in these[0]:
                        value = statistics.median(one[what] for one in these) / per
                        figures[f"{name} in the browser, {kind}: {unit}"] = value
    return figures


def of_tabs(
    tokens: Sequence[str], address: str, path: str, measure: Callable[[], float]
) -> dict[str, float]:
    """What `measure` says while so many people have a page open, each in a window of their own."""
    with chromium.started() as browser, ExitStack() as stack:
        for token in tokens:
            one = stack.enter_context(chromium.window(browser, address))
            one.be(token)
            one.page.goto(address + path)
        one.page.wait_for_timeout(SETTLE_MILLISECONDS)
        return {f"{len(tokens)} tabs with {path}: share of a core": measure()}
