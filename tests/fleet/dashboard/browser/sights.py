"""Every page of the dashboard as somebody may see it: what tests and screenshots look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

from playwright.sync_api import Page, expect

from tests.fleet.dashboard.story import Story


@dataclass(frozen=True)
class Sight:
    """A page at an address of a route (as the application has it), after `act`."""

    name: str
    route: str
    address: Callable[[Story], str] | None = None
    """The route itself where it says none."""
    role: str = "operator"
    status: int = 200
    act: Callable[[Page], None] = lambda page: None
    picture: str = ""
    """What a picture of it shows, where the documentation has one."""

    def path(self, of: Story) -> str:
        """Below /ui."""
        return self.address(of) if self.address else self.route


def _open_all(page: Page) -> None:
    """All that is folded away."""
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")


def _help(page: Page) -> None:
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()


def filtered(text: str) -> Callable[[Story], str]:
    """The fleet with a filter."""
    return lambda story: f"/fleet?filter={quote(text)}"


SIGHTS = (
    Sight("login", "/login", role="", picture="The log in: a field for a token of the API"),
    Sight("not-there", "/nothing", status=404),
    Sight("help", "/fleet", act=_help),
    Sight("fleet", "/fleet", picture="The fleet: a filter, counts, sites as cards and a table"),
    Sight("fleet-filtered", "/fleet", filtered('online && board == "stm32f746"'), act=_open_all),
    Sight("fleet-none-matches", "/fleet", filtered("battery_percent > 100")),
    Sight("fleet-mistake", "/fleet", filtered("battery_percent >")),
    Sight("device", "/devices/{device}", lambda story: f"/devices/{story.names[0]}", picture="x"),
    Sight(
        "device-may-not",
        "/devices/{device}",
        lambda story: f"/devices/{story.names[3]}",
        role="viewer",
        act=_open_all,
    ),
    Sight("device-gone", "/devices/{device}", lambda story: "/devices/no-such-cow", status=404),
)
