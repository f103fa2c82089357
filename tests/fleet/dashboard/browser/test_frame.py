"""What all pages have in common, in a browser: who is let in, what is told when it goes wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from fleet.store import Tokens
from tests.fleet.dashboard.browser.chromium import PHONE, Window
from tests.fleet.dashboard.browser.served import PEOPLE, Service

Windows = Callable[..., Window]


def test_somebody_with_a_token_is_led_to_the_page_they_wanted(
    service: Service, windows: Windows
) -> None:
    one = windows(service)
    page = one.open("/fleet?filter=online")
    expect(page).to_have_title("Log in · tinyfleet")
    assert one.focused == "Token of the API"
    page.keyboard.type("tf_wrong")
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("that is no token")
    assert one.focused == "Token of the API"
    page.keyboard.type(service.told.tokens["operator"])
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{service.url}/ui/fleet?filter=online")
    expect(page.get_by_role("banner")).to_contain_text(PEOPLE["operator"])
    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_title("Log in · tinyfleet")
    page.go_back()
    expect(page).to_have_title("Log in · tinyfleet")
    assert one.failures == [one.failures[0]]
    assert "401" in one.failures[0]


def test_a_session_that_ends_is_told_on_the_open_page_and_leads_back_to_it(
    service: Service, windows: Windows
) -> None:
    tokens = Tokens(service.store)
    token, text = tokens.issue("bob", "viewer", 86_400)
    one = windows(service)
    one.be(text)
    page = one.open("/fleet?filter=online")
    tokens.revoke(token.token)
    one.look_again()
    banner = page.locator("#banner")
    expect(banner).to_contain_text("Your session has ended")
    expect(banner).to_contain_text("was revoked")
    expect(page.get_by_role("heading", name="Fleet", exact=True)).to_be_visible()
    page.get_by_role("link", name="Log in again").click()
    page.get_by_label("Token").fill(service.told.tokens["viewer"])
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(f"{service.url}/ui/fleet?filter=online")


def test_a_page_outlives_a_service_that_goes_away_and_notices_that_it_is_back(
    service: Service, windows: Windows
) -> None:
    one = windows(service, "viewer")
    page = one.open("/fleet")
    service.stop()
    one.look_again()
    banner = page.locator("#banner")
    expect(banner).to_contain_text("The service doesn't answer.")
    expect(banner).to_contain_text("s old")
    service.start()
    expect(banner).to_be_hidden()  # by itself
    assert not [one for one in one.failures if "CONNECTION_REFUSED" not in one]


def test_a_page_of_an_older_version_says_so_and_loads_the_new_one(
    service: Service, windows: Windows
) -> None:
    one = windows(service, "viewer")
    page = one.open("/fleet?filter=online")
    field = page.get_by_label("Filter", exact=True)
    field.fill("batt")
    service.stop()
    service.start("2.0.0")
    one.look_again()
    expect(page.locator("#banner")).to_contain_text("The service was upgraded")
    expect(field).to_have_value("batt")
    page.get_by_role("link", name="Load it anew").click()
    expect(page.get_by_text("tinyfleet 2.0.0")).to_be_visible()
    expect(page.locator("#banner")).to_be_hidden()


def test_a_theme_is_remembered_and_needs_no_reload(service: Service, windows: Windows) -> None:
    one = windows(service, "viewer", color_scheme="dark")

    def ground() -> str:
        return str(one.page.evaluate("getComputedStyle(document.body).backgroundColor"))

    page = one.open("/fleet")
    dark = ground()
    page.get_by_role("button", name="Theme: system; change").click()
    expect(page.get_by_role("button", name="Theme: light; change")).to_be_visible()
    light = ground()
    assert light != dark
    one.open("/audit")
    assert ground() == light
    page.get_by_role("button", name="Theme: light; change").click()
    page.emulate_media(color_scheme="light")
    assert ground() == dark
    assert len([address for address in one.asked if address.endswith("/theme")]) == 0


def test_sections_the_filter_and_help_are_a_key_away(service: Service, windows: Windows) -> None:
    one = windows(service, "viewer")
    page = one.open("/fleet")
    for key, title in (("c", "Campaigns"), ("m", "Models"), ("a", "Audit"), ("f", "Fleet")):
        page.keyboard.press("g")
        page.keyboard.press(key)
        expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
        page.wait_for_load_state()  # its script, which knows the keys, comes after its heading
    page.keyboard.press("/")
    assert one.focused == "Filter"
    page.keyboard.type("/?gc")  # are only typed there
    expect(page.get_by_label("Filter", exact=True)).to_have_value("/?gc")


def test_help_keeps_the_focus_until_it_is_closed(service: Service, windows: Windows) -> None:
    one = windows(service, "viewer")
    page = one.open("/fleet")
    button = page.get_by_role("button", name="Help and shortcuts")
    button.focus()
    page.keyboard.press("Enter")
    help_ = page.get_by_role("dialog")
    expect(help_).to_be_visible()
    for _ in range(4):
        page.keyboard.press("Tab")
        # Out of the page, to the browser's own buttons, one may go.
        assert page.evaluate(
            "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        )
    page.keyboard.press("Escape")
    expect(help_).to_be_hidden()
    expect(button).to_be_focused()


def test_whoever_tabs_comes_to_the_content_first_and_sees_where_they_are(
    service: Service, windows: Windows
) -> None:
    one = windows(service, "operator")
    page = one.open("/fleet")
    page.keyboard.press("Tab")
    assert one.focused == "Skip to the content"
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.reload()
    seen = []
    for _ in range(14):
        page.keyboard.press("Tab")
        assert one.shows_focus, one.focused
        seen.append(one.focused)
    frame = ["Help and shortcuts", "Log out", "Fleet", "Campaigns", "Models", "Audit", "Settings"]
    assert [name for name in seen if name in frame] == frame


@pytest.mark.parametrize(("path", "status"), [("/nothing", 404), ("/devices/no-such-cow", 404)])
def test_what_is_not_there_is_told_with_a_way_back(
    service: Service, windows: Windows, path: str, status: int
) -> None:
    one = windows(service, "viewer", viewport=PHONE)
    page = one.open(path)
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_text(str(status), exact=True)).to_be_visible()
    assert not one.is_too_wide
    page.get_by_role("main").get_by_role("link", name="Fleet").click()
    expect(page.get_by_role("heading", name="Fleet", exact=True)).to_be_visible()
