"""An operator's day with campaigns, in a browser: write, try, start, approve, watch, roll back."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from fleet.store import Audit
from tests.fleet.dashboard.browser.chromium import PHONE, Window
from tests.fleet.dashboard.browser.served import PEOPLE, Service

Windows = Callable[..., Window]
TEXT = "Campaign, as YAML"
WRONG = """\
name: hooves
model: digits
rounds: many
stages:
  - name: canary
    devices: 6
    gates:
      - {gate: score, mesure: mean, most_drop: 0.05}
"""
RIGHT = WRONG.replace("many", "2").replace("mesure", "measure") + "approval: true\n"


def _heading(page: Page, name: str) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_text(name)


def test_a_campaign_is_written_tried_started_and_approved_by_somebody_else(
    service: Service, windows: Windows
) -> None:
    page = windows(service, "operator").open("/campaigns")
    page.get_by_role("link", name="New campaign").click()
    field = page.get_by_label(TEXT)
    field.fill(WRONG)
    mistakes = page.locator(".mistakes li")
    expect(mistakes).to_have_count(2)
    page.get_by_role("button", name="line 8").click()
    expect(field).to_be_focused()
    chosen = field.evaluate("(one) => one.value.slice(one.selectionStart, one.selectionEnd)")
    assert chosen == WRONG.splitlines()[7]
    field.fill(RIGHT)
    expect(mistakes).to_have_count(0)
    told = page.locator("#checked")
    expect(told).to_contain_text("What it would do now")
    expect(told).to_contain_text(f"{service.story.devices} devices match")
    page.get_by_label("Reason").fill("sore hooves")
    page.get_by_role("button", name="Start it").click()
    _heading(page, "hooves")
    expect(page.get_by_text("hooves was started.")).to_be_visible()
    expect(page.get_by_role("button", name="Approve")).to_have_count(0)

    made = page.url.rpartition("/")[2]
    service.story.campaigns["hooves"] = made
    service.store.claim(made, "driver")
    service.story.say("hooves", "waiting", "approval of the campaign", "begin:0")
    refused = page.get_by_role("button", name="Approve")
    expect(refused).to_be_disabled()  # without a reload
    expect(page.get_by_text("operator may not approve or release")).to_be_visible()

    other = windows(service, "approver").open(f"/campaigns/{made}")
    other.get_by_role("link", name="Approve…").click()
    _heading(other, "Approve hooves?")
    other.get_by_label("Reason").fill("the dairy agreed")
    other.get_by_role("button", name="Approve").click()
    expect(other.get_by_text("hooves: It was approved.")).to_be_visible()
    service.story.say("hooves", "running", "waits for its devices")
    expect(refused).to_have_count(0)
    entries = Audit(service.store).newest(object=f"campaign:{made}")
    assert [(one.who, one.action, one.why) for one in entries] == [
        (PEOPLE["approver"], "campaigns.approve", "the dairy agreed"),
        (PEOPLE["operator"], "campaigns.start", "sore hooves"),
    ]


def test_what_was_typed_outlives_a_session_that_ends(service: Service, windows: Windows) -> None:
    one = windows(service, "operator")
    page = one.open("/campaigns/new")
    page.get_by_label(TEXT).fill(RIGHT)
    page.context.clear_cookies()
    page.get_by_role("button", name="Start it").click()
    _heading(page, "Log in")
    page.get_by_label("Token").fill(service.told.tokens["operator"])
    page.get_by_role("button", name="Log in").click()
    one.open("/campaigns/new")
    expect(page.get_by_label(TEXT)).to_have_value(RIGHT)


def test_what_was_typed_outlives_a_start_that_fails_and_goes_with_one_that_does_not(
    service: Service, windows: Windows
) -> None:
    one = windows(service, "operator")
    page = one.open("/campaigns/new?kind=evaluate")
    field, start = page.get_by_label(TEXT), page.get_by_role("button", name="Start it")
    field.fill(WRONG)
    start.click()
    expect(page.locator(".mistakes li").first).to_be_visible()
    one.open(f"/campaigns/{service.story.campaigns['pens']}")
    one.open("/campaigns/new?kind=evaluate")
    expect(field).to_have_value(WRONG)
    field.fill(RIGHT)
    page.get_by_role("button", name="Try it").click()
    expect(page.locator("#checked")).to_contain_text("What it would do now")
    start.click()
    _heading(page, "hooves")
    one.open("/campaigns/new?kind=evaluate")
    expect(field).to_have_value(re.compile("kind: evaluate"))
    expect(page.locator("#kept")).to_be_hidden()


def test_a_gate_trips_before_ones_eyes_and_the_devices_are_rolled_back(
    service: Service, windows: Windows
) -> None:
    made = service.story.campaigns["canary-2"]
    one = windows(service, "operator")
    page = one.open(f"/campaigns/{made}")
    page.evaluate("window.isStillTheSamePage = true")
    badge = page.locator(".head .badge").first
    expect(badge).to_have_text("running")
    link = page.get_by_role("link", name="Clone…")
    link.focus()
    page.locator("details", has_text="As a table").first.evaluate("(one) => (one.open = true)")
    service.story.trip("canary-2")
    expect(badge).to_have_text("rolling-back")
    canary = page.get_by_role("listitem").filter(has=page.get_by_role("heading", name="canary"))
    expect(canary).to_contain_text("fail")
    expect(canary).to_contain_text("is the limit")
    expect(canary.get_by_role("img").first).to_have_accessible_name(re.compile("the limit is"))
    expect(page.locator("#said")).to_contain_text("canary-2 is rolling-back")
    assert page.evaluate("window.isStillTheSamePage")
    expect(link).to_be_focused()
    assert page.locator("details", has_text="As a table").first.evaluate("(one) => one.open")
    expect(page.get_by_role("link", name="Stop…")).to_have_count(0)

    page.get_by_role("link", name="Campaigns").first.click()
    service.story.say("canary-2", "rolled-back", "1 devices couldn't be reached: cow-00003")
    row = page.get_by_role("row").filter(has_text="canary-2")
    expect(row).to_contain_text("rolled-back")
    expect(row).to_contain_text("cow-00003")


def test_a_running_campaign_is_rolled_back_by_hand_and_its_reason_is_kept(
    service: Service, windows: Windows
) -> None:
    made = service.story.campaigns["canary-2"]
    page = windows(service, "operator", viewport=PHONE).open(f"/campaigns/{made}")
    page.get_by_role("link", name="Roll back…").click()
    expect(page.get_by_role("main")).to_contain_text("gets back what it had before")
    page.get_by_label("Reason").fill("cows fell ill")
    page.get_by_role("button", name="Roll back").click()
    _heading(page, "canary-2")
    expect(page.get_by_role("link", name="Roll back…")).to_have_count(0)
    assert service.store.campaign(made).wish == "roll-back"
    assert Audit(service.store).newest(object=f"campaign:{made}")[0].why == "cows fell ill"


def test_whoever_decides_on_what_has_changed_meanwhile_is_asked_again(
    service: Service, windows: Windows
) -> None:
    made = service.story.campaigns["canary-2"]
    page = windows(service, "operator").open(f"/campaigns/{made}/confirm?do=pause")
    service.story.trip("canary-2")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("alert")).to_contain_text("rolling-back")
    assert service.store.campaign(made).wish == ""


@pytest.mark.parametrize("action", ["stop", "roll-back"])
def test_a_viewer_sees_why_they_may_not_and_can_do_nothing(
    service: Service, windows: Windows, action: str
) -> None:
    made = service.story.campaigns["canary-2"]
    one = windows(service, "viewer")
    page = one.open(f"/campaigns/{made}")
    button = page.get_by_role("button", name=action.replace("-", " ").capitalize())
    expect(button).to_be_disabled()
    expect(button).to_have_accessible_description(
        "viewer may not operate the fleet; operator or admin may"
    )
    one.open(f"/campaigns/{made}/confirm?do={action}")
    page.locator("main form button").evaluate("(one) => (one.disabled = false)")
    page.locator("main form button").click()
    expect(page.get_by_role("alert")).to_contain_text("may not")
    assert service.store.campaign(made).wish == ""
    assert any("403" in failure for failure in one.failures)


def test_a_campaign_is_started_and_stopped_by_keyboard_alone(
    service: Service, windows: Windows
) -> None:
    one = windows(service, "operator")
    page = one.open("/fleet")

    def tab_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if one.focused.startswith(name):
                assert one.shows_focus, name
                return
        raise AssertionError(f"no tab leads to {name}")

    page.keyboard.press("g")
    page.keyboard.press("c")
    _heading(page, "Campaigns")
    tab_to("New campaign")
    page.keyboard.press("Enter")
    _heading(page, "New campaign")
    tab_to(TEXT)
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(RIGHT)
    tab_to("Reason")  # Tab leaves the editor
    page.keyboard.type("by hand")
    tab_to("Start it")
    page.keyboard.press("Enter")
    _heading(page, "hooves")
    tab_to("Stop…")
    page.keyboard.press("Enter")
    _heading(page, "Stop hooves?")
    tab_to("Stop")
    page.keyboard.press("Enter")
    _heading(page, "hooves")
    expect(page.get_by_role("main")).to_contain_text("It is to stop.")
