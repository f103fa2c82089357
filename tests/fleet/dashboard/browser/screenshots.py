"""Pictures of every page, light and dark, for desk and phone.

python -m tests.fleet.dashboard.browser.screenshots FOLDER [NAME ...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.fleet.dashboard import story
from tests.fleet.dashboard.browser import chromium, served
from tests.fleet.dashboard.browser.sights import SIGHTS

WIDTHS = {"desk": chromium.DESK, "phone": chromium.PHONE}


def main() -> int:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, chromium.started() as browser:
        told = served.told(Path(temporary) / "told.sqlite", story.fill)
        service = served.Service(told.copied(Path(temporary)))
        service.start()
        try:
            for sight in SIGHTS:
                if names and sight.name not in names:
                    continue
                for width, viewport in WIDTHS.items():
                    with chromium.window(browser, service.url, viewport=viewport) as one:
                        if sight.role:
                            one.be(told.tokens[sight.role])
                        one.open(sight.path(told.story))
                        sight.act(one.page)
                        for theme in ("light", "dark"):
                            one.page.emulate_media(color_scheme=theme)
                            path = folder / f"{sight.name}-{width}-{theme}.png"
                            one.page.screenshot(path=path, full_page=True)
        finally:
            service.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
