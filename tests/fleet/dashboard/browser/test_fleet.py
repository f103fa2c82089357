"""The fleet and its devices in a browser."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import expect

from tests.fleet.dashboard.browser.chromium import Window
from tests.fleet.dashboard.browser.served import Service

Windows = Callable[..., Window]


def test_a_filter_is_previewed_while_it_is_typed_and_leads_to_a_device(
    service: Service, windows: Windows
) -> None:
    one = windows(service, "viewer")
    page = one.open("/fleet")
    field = page.get_by_label("Filter", exact=True)
    means = page.locator("#filter-means")
    field.press_sequentially("device ==")
    expect(means).to_contain_text("the filter is no CEL")
    expect(field).to_have_attribute("aria-invalid", "true")
    field.press_sequentially(' "cow-00005"')
    expect(means).to_contain_text("1 device matches")
    expect(field).not_to_have_attribute("aria-invalid", "true")
    expect(field).to_be_focused()
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(1)
    assert "filter=" in page.url  # it can be sent to somebody
    page.reload()
    expect(rows).to_have_count(1)
    page.get_by_role("link", name="cow-00005").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("cow-00005")


def test_a_page_that_is_looked_at_follows_and_leaves_what_one_does_alone(
    service: Service, windows: Windows
) -> None:
    one = windows(service, "operator")
    page = one.open(f"/devices/{service.story.names[0]}")
    herd = page.get_by_label("herd")
    herd.fill("half a wo")
    page.get_by_text("Retire it").click()
    seen = service.story.seen(0).model_copy(update={"battery_percent": 7})
    service.story.operations.registry.observe({service.story.names[0]: seen})
    one.look_again()
    expect(page.locator("#facts")).to_contain_text("7 %")
    expect(herd).to_have_value("half a wo")
    expect(page.get_by_role("button", name="Retire cow-00000")).to_be_visible()
    herd.fill("bulls")
    page.get_by_label("Reason").first.fill("moved")
    page.get_by_role("button", name="Save labels").click()
    expect(page.get_by_text("The labels are changed.")).to_be_visible()
    expect(herd).to_have_value("bulls")
    page.reload()
    expect(page.get_by_text("The labels are changed.")).to_have_count(0)


def test_a_store_that_is_away_is_told_on_a_page_that_tries_again(
    service: Service, windows: Windows
) -> None:
    one = windows(service, "viewer")
    page = one.open("/fleet")
    hidden = service.told.path.with_suffix(".away")
    service.store.close()
    service.told.path.rename(hidden)
    service.told.path.mkdir()  # what can't be opened as a file
    page.reload()
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_text("503", exact=True)).to_be_visible()
    service.told.path.rmdir()
    hidden.rename(service.told.path)
    expect(page.get_by_role("heading", name="Fleet", exact=True)).to_be_visible()
