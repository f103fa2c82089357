"""Campaigns: the list, one that is looked at while it runs, and what is done with it."""

from __future__ import annotations

from typing import get_args

from fleet.dashboard import campaign_charts, campaign_words
from fleet.dashboard.errors import REFUSALS, beside_form
from fleet.dashboard.page import Context, GoTo, Page, Screens, Show
from fleet.errors import ConflictError, NotKnownError, ServiceError
from fleet.service.campaign_schema import CampaignStanding, CampaignState
from fleet.service.schema import Seen

screens = Screens("campaigns")
CAMPAIGNS_ON_A_PAGE = 50
SCORES = "Accuracy on devices' own held-out samples"


@screens.page("/campaigns", "campaigns.html", "Campaigns")
def campaigns(page: Page) -> Context:
    """A page of them, of one state where wanted."""
    states: tuple[CampaignState, ...] = get_args(CampaignState)
    state = next((one for one in states if one == page.query.get("state")), None)
    after = page.query.get("after", "")
    try:
        found = page.api.campaigns(after, CAMPAIGNS_ON_A_PAGE, state)
    except ServiceError as error:
        if error.status != 422:
            raise
        raise NotKnownError("there is no such page of campaigns") from None
    return {
        "page": found,
        "states": states,
        "state": state or "",
        "after": after,
        "words": campaign_words,
    }


@screens.page("/campaigns/{campaign}", "campaign.html", "Campaign {campaign}")
def campaign(page: Page) -> Context:
    """One of them, live."""
    one = page.api.standing(page.path["campaign"])
    now = "now" if one.scored_in is None else f"now, by round {one.scored_in}"
    scored = {"when the stage began": one.scored_before, now: one.scored_now}
    return {
        "one": one,
        "deeds": campaign_words.deeds(one),
        "words": campaign_words,
        "drawings": campaign_charts,
        "scored": scored,
        "chart": campaign_charts.scores(SCORES, scored),
    }


@screens.page("/campaigns/{campaign}/rounds/{round}", "round.html", "Round {round}")
def one_round(page: Page) -> Context:
    """A round in figures."""
    number = page.path["round"]
    if not number.isdecimal():
        raise NotKnownError(f"there is no round {number}")
    found = page.api.figures(page.path["campaign"], int(number))
    scored = {"before": found.before, "after": found.after}
    return {
        "campaign": page.path["campaign"],
        "one": found,
        "words": campaign_words,
        "scored": scored,
        "chart": campaign_charts.scores(SCORES, scored),
    }


@screens.page("/campaigns/{campaign}/confirm", "campaign_confirm.html", "Are you sure?")
def confirm(page: Page) -> Context:
    """What will happen, before it does."""
    one = page.api.standing(page.path["campaign"])
    deed = campaign_words.deed(one, page.query.get("do", ""))
    if deed is None:
        raise ConflictError(
            f"{page.query.get('do', '') or 'that'} can't be done now: {one.name} is {one.state}"
        )
    return _confirm(one, deed, "")


def _confirm(
    one: CampaignStanding, deed: campaign_words.Deed, mistake: str, why: str = ""
) -> Context:
    return {
        "one": one,
        "deed": deed,
        "seen": campaign_words.seen(one),
        "mistake": mistake,
        "why": why,
        "words": campaign_words,
    }


@screens.action("/campaigns/{campaign}/confirm")
def act(page: Page) -> GoTo | Show:
    """Do it, where the campaign still is as it was shown."""
    campaign, form = page.path["campaign"], page.form
    action = form.get("action", "")
    shown = Seen(
        state=form.get("state", ""), waiting=form.get("waiting", ""), wish=form.get("wish", "")
    )
    key = campaign_words.key_of(form.get("key", ""), campaign, action, form.get("why", ""))
    try:
        page.api.act(campaign, action, shown, key)
    except REFUSALS as error:
        mistake, status = beside_form(error)
        one = page.api.standing(campaign)
        deed = campaign_words.deed(one, action)
        if deed is None:
            raise
        context = _confirm(one, deed, mistake, form.get("why", ""))
        return Show("campaign_confirm.html", "Are you sure?", context, status)
    one = page.api.standing(campaign)
    done = {
        "approve": "It was approved.",
        "pause": "It is to pause.",
        "resume": "It goes on.",
        "stop": "It is to stop.",
        "roll-back": "Its devices are to go back.",
    }
    return GoTo(f"/campaigns/{campaign}", f"{one.name}: {done.get(action, 'done')}")
