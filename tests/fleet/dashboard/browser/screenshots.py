"""Pictures of the dashboard's pages, light and dark, at a desk and on a phone.

scripts/screenshots          those that docs/dashboard.md shows, into docs/images/dashboard
scripts/screenshots FOLDER   every page wholly, to be looked at
"""

from __future__ import annotations

import functools
import io
import itertools
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from PIL import Image
from playwright.sync_api import Browser, ViewportSize, expect

from tests.fleet.dashboard import story
from tests.fleet.dashboard.browser import chromium, served
from tests.fleet.dashboard.browser.served import Service
from tests.fleet.dashboard.browser.sights import SIGHTS, Sight

ROOT = Path(__file__).resolve().parents[4]
SHOWN = ROOT / "docs" / "images" / "dashboard"
THEMES = ("light", "dark")
DESK: ViewportSize = {"width": 1280, "height": 960}
PHONE: ViewportSize = {"width": 390, "height": 844}
TRIPPED = "campaign-tripped"
# Of a page as high as it is, what fits.
PICTURES = {
    "fleet": DESK,
    "device": DESK,
    "new-campaign": DESK,
    "model": DESK,
    "campaign-live": PHONE,
    TRIPPED: DESK,
}
QUALITY = 75


@contextmanager
def service(folder: Path) -> Iterator[Service]:
    """A service in the middle of the story, with the same names each time."""
    tell = functools.partial(story.fill, odd="range: a sum is too large")
    names = (uuid.UUID(int=0x5EED << 96 | number << 64) for number in itertools.count(1))
    with mock.patch.object(uuid, "uuid4", side_effect=names):
        told = served.told(folder / "told.sqlite", tell)
    one = Service(told.copied(folder))
    one.start()
    try:
        yield one
    finally:
        one.close()


def take(
    browser: Browser,
    of: Service,
    sight: Sight,
    viewport: ViewportSize,
    keep: Callable[[str, bytes], None],
    is_whole: bool,
) -> None:
    """A picture in each theme, which `keep` is given with the theme's name."""
    with chromium.window(browser, of.url, viewport=viewport, device_scale_factor=1.5) as one:
        if sight.role:
            one.be(of.told.tokens[sight.role])
        page = one.open(sight.path(of.story))
        sight.act(page)
        expect(page.locator("main h1").first).to_be_visible()
        for theme in THEMES:
            page.emulate_media(color_scheme=theme)
            keep(theme, page.screenshot(full_page=is_whole))


def _webp(folder: Path, name: str, theme: str, picture: bytes) -> None:
    image = Image.open(io.BytesIO(picture))
    image.save(folder / f"{name}-{theme}.webp", quality=QUALITY, method=6)


def _for_documentation(browser: Browser, of: Service) -> None:
    SHOWN.mkdir(parents=True, exist_ok=True)
    by_name = {sight.name: sight for sight in SIGHTS}
    by_name[TRIPPED] = by_name["campaign-live"]
    for name, viewport in PICTURES.items():
        if name == TRIPPED:
            of.story.trip("canary-2")
        keep = functools.partial(_webp, SHOWN, name)
        take(browser, of, by_name[name], viewport, keep, is_whole=False)


def _to_be_looked_at(browser: Browser, of: Service, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for sight in SIGHTS:
        for width, viewport in (("desk", DESK), ("phone", PHONE)):

            def keep(theme: str, picture: bytes, name: str = f"{sight.name}-{width}") -> None:
                (folder / f"{name}-{theme}.png").write_bytes(picture)

            take(browser, of, sight, viewport, keep, is_whole=True)


def main() -> int:
    if not chromium.found():
        print("there is no Chromium here; install the package chromium", file=sys.stderr)
        return 1
    with (
        tempfile.TemporaryDirectory() as folder,
        service(Path(folder)) as of,
        chromium.started() as browser,
    ):
        if sys.argv[1:]:
            _to_be_looked_at(browser, of, Path(sys.argv[1]))
        else:
            _for_documentation(browser, of)
    return 0


if __name__ == "__main__":
    sys.exit(main())
