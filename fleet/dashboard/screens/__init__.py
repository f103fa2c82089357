"""The screens: each module has a `Screens` with its pages and actions.

A screen is a function that asks the API and gives what its template is filled with:

    screens = Screens("campaigns")            # a section of the navigation

    @screens.page("/campaigns/{campaign}", "campaign.html", "Campaign {campaign}")
    def campaign(page: Page) -> Context:
        return {"one": page.api.campaign(page.path["campaign"])}

    @screens.action("/campaigns/{campaign}/stop")
    def stop(page: Page) -> GoTo | Show:
        page.api.act(page.path["campaign"], "stop")
        return GoTo(f"/campaigns/{page.path['campaign']}", "It will stop.")

Its template says `{% extends layout %}` and fills the block `main`; parts of it that change while
somebody looks have an `id` and `data-live`, rows a `data-key`. `ui` is `macros.html`, with what
pages share: buttons that know the role, badges, empty states; `icon(name)` draws one of
`icons.html`. What the API refuses becomes an error page by itself; what was typed must not be lost,
so a form catches `REFUSALS` and comes back with `beside_form`. A browser looks at every page: a new
one gets a line in tests/fleet/dashboard/browser/sights.py.

Two people of one role are shown the same, fetched once a second for both: a page's function knows
the role, the path and the query, and nothing of who asks. A form's key is the frame's.
"""

from fleet.dashboard.page import Action, Screen
from fleet.dashboard.screens import (
    audit,
    campaigns,
    devices,
    fleet,
    models,
    new_campaign,
    settings,
)

_MODULES = (
    fleet.screens,
    devices.screens,
    new_campaign.screens,  # its path before those that have a campaign in this place
    campaigns.screens,
    models.screens,
    audit.screens,
    settings.screens,
)

ALL: tuple[list[Screen], list[Action]] = (
    [one for module in _MODULES for one in module.pages],
    [one for module in _MODULES for one in module.actions],
)
