"""Every page of the dashboard as somebody may see it: what tests and screenshots look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote

from playwright.sync_api import Page, expect

from fleet.store import Tokens
from tests.fleet.dashboard.story import Story

Address: TypeAlias = Callable[[Story], str]


@dataclass(frozen=True)
class Sight:
    """A page at an address of a route (as the application has it), after `act`."""

    name: str
    route: str
    address: Address | None = None
    """The route itself where it says none."""
    role: str = "operator"
    status: int = 200
    act: Callable[[Page], None] = lambda page: None

    def path(self, of: Story) -> str:
        """Below /ui."""
        return self.address(of) if self.address else self.route


def _open_all(page: Page) -> None:
    """All that is folded away."""
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")


def _help(page: Page) -> None:
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()


def _tried(page: Page) -> None:
    expect(page.get_by_text("What it would do now")).to_be_visible()


def _with_a_mistake(page: Page) -> None:
    field = page.get_by_label("Campaign, as YAML")
    field.fill(field.input_value().replace("epochs: 1", "epochs: many") + "tempo: 3\n")
    expect(page.get_by_text("2 mistakes")).to_be_visible()


def _new_token(page: Page) -> None:
    page.get_by_label("Who").fill("zoe")
    page.get_by_role("button", name="Issue a token").click()
    expect(page.get_by_role("heading", name="Token of zoe")).to_be_visible()


def fleet(text: str) -> Address:
    """The fleet with a filter."""
    return lambda story: f"/fleet?filter={quote(text)}"


def campaign(name: str, more: str = "") -> Address:
    """A campaign of the story."""
    return lambda story: f"/campaigns/{story.campaigns[name]}{more}"


def device(number: int) -> Address:
    """A device of the story."""
    return lambda story: f"/devices/{story.names[number]}"


def _a_token(story: Story) -> str:
    tokens = Tokens(story.operations.store).list()
    return f"/settings/tokens/{next(one.token for one in tokens if one.who == 'bob')}/remove"


CAMPAIGN, CONFIRM = "/campaigns/{campaign}", "/campaigns/{campaign}/confirm"
DEVICE, MODEL = "/devices/{device}", "/models/{model}"
SIGHTS = (
    Sight("login", "/login", role=""),
    Sight("not-there", "/nothing", status=404),
    Sight("help", "/fleet", act=_help),
    Sight("fleet", "/fleet"),
    Sight("fleet-filtered", "/fleet", fleet('online && board == "stm32f746"'), act=_open_all),
    Sight("fleet-none-matches", "/fleet", fleet("battery_percent > 100")),
    Sight("fleet-mistake", "/fleet", fleet("battery_percent >")),
    Sight("device", DEVICE, device(0)),
    Sight("device-may-not", DEVICE, device(3), role="viewer", act=_open_all),
    Sight("campaigns", "/campaigns"),
    Sight("campaigns-of-a-state", "/campaigns", lambda story: "/campaigns?state=undecided"),
    Sight("campaign-live", CAMPAIGN, campaign("canary-2")),
    Sight("campaign-may-not", CAMPAIGN, campaign("canary-2"), role="viewer"),
    Sight("campaign-waits", CAMPAIGN, campaign("few-cows"), role="approver"),
    Sight("campaign-rolled-back", CAMPAIGN, campaign("bad-labels")),
    Sight("campaign-finished", CAMPAIGN, campaign("pens")),
    Sight("campaign-not-begun", CAMPAIGN, campaign("spring")),
    Sight("round", "/campaigns/{campaign}/rounds/{round}", campaign("canary-2", "/rounds/2")),
    Sight("confirm", CONFIRM, campaign("canary-2", "/confirm?do=stop")),
    Sight("confirm-too-late", CONFIRM, campaign("pens", "/confirm?do=stop"), status=409),
    Sight("new-campaign", "/campaigns/new", act=_tried),
    Sight("new-campaign-mistake", "/campaigns/new", act=_with_a_mistake),
    Sight("new-campaign-may-not", "/campaigns/new", role="viewer", act=_open_all),
    Sight("models", "/models"),
    Sight("model", MODEL, lambda story: "/models/digits?first=2&second=3"),
    Sight(
        "release",
        "/models/{model}/confirm",
        lambda story: "/models/digits/confirm?do=roll-back&version=3",
        role="approver",
    ),
    Sight("audit", "/audit", lambda story: "/audit?who=ole"),
    Sight("settings", "/settings"),
    Sight("settings-admin", "/settings", role="admin"),
    Sight("settings-secret", "/settings", role="admin", act=_new_token),
    Sight("settings-remove", "/settings/{kind}/{name}/remove", _a_token, role="admin"),
)
