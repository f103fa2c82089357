"""Templates, and what all pages have in common."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from fleet.dashboard import charts, session
from fleet.dashboard.assets import Assets
from fleet.dashboard.errors import REMEDIES
from fleet.dashboard.formats import FILTERS
from fleet.dashboard.page import Context
from fleet.service.roles import Permission
from fleet.service.schema import WhoAmI

SECTIONS = (
    ("fleet", "Fleet", "f"),
    ("campaigns", "Campaigns", "c"),
    ("models", "Models", "m"),
    ("audit", "Audit", "a"),
    ("settings", "Settings", "s"),
)
"""Of the navigation: path, name, and the key that leads there after `g`."""


@dataclass(frozen=True)
class Frame:
    """What is around a screen: `who` is None where nobody is logged in."""

    title: str
    who: WhoAmI | None
    section: str
    refusal: Callable[[Permission], str]
    address: str
    theme: str
    notice: str = ""
    key: str = ""
    """Of this page's forms, for `key_of`: another one each time that it is asked for."""


@functools.cache
def _environment() -> Environment:
    """Compiled templates, the same for all dashboards of a process."""
    environment = Environment(
        loader=PackageLoader("fleet.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(FILTERS)
    environment.globals.update(
        sections=SECTIONS,
        themes=session.THEMES,
        url=session.url,
        may=Permission,
        remedies=REMEDIES,
        plot=charts,
    )
    return environment


class Renderer:
    """Fills templates. What they print is escaped, what they don't know is an error."""

    def __init__(self, assets: Assets, *, version: str, build: str) -> None:
        """`build` is what a page compares with to notice an upgrade."""
        self._common = {"assets": assets, "service_version": version, "build": build}

    def page(self, template: str, frame: Frame, context: Context) -> str:
        """A whole page."""
        return self._render(template, "frame.html", frame, context)

    def live(self, template: str, frame: Frame, context: Context) -> str:
        """What of a page changes while it is looked at: its block `main`.

        The same for all of a role: it has nothing of who looks.
        """
        return self._render(template, "live.html", frame, context)

    def _render(self, template: str, layout: str, frame: Frame, context: Context) -> str:
        found = _environment().get_template(template)
        return found.render(layout=layout, frame=frame, now=time.time(), **self._common, **context)
