"""One device: what is known of it, and what may be done with it."""

from __future__ import annotations

from fleet.dashboard.page import Context, Page, Screens

screens = Screens("fleet")


@screens.page("/devices/{device}", "device.html", "{device}")
def device(page: Page) -> Context:
    """A device with its history."""
    name = page.path["device"]
    return {"device": page.api.device(name), "history": page.api.device_history(name)}
