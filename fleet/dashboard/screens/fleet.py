"""The fleet: which devices there are, where, and how they are."""

from __future__ import annotations

from fleet.dashboard.page import Context, Page, Screens
from fleet.errors import ServiceError

screens = Screens("fleet")
DEVICES_ON_A_PAGE = 50


@screens.page("/fleet", "fleet.html", "Fleet")
def fleet(page: Page) -> Context:
    """Devices that match a filter."""
    wanted = page.query.get("filter", "")
    after = page.query.get("after", "")
    mistake, devices = "", None
    try:
        devices = page.api.devices(wanted, after, DEVICES_ON_A_PAGE)
    except ServiceError as error:
        if error.status != 422:
            raise
        mistake = str(error)
    return {"filter": wanted, "after": after, "mistake": mistake, "page": devices}
