"""A new campaign: its text, what is wrong with it, and what it would do before it does it."""

from __future__ import annotations

from importlib.resources import files

import yaml
from pydantic import ValidationError

from fleet.dashboard.campaign_fields import parts_of
from fleet.dashboard.campaign_words import key_of
from fleet.dashboard.errors import REFUSALS, beside_form
from fleet.dashboard.page import Context, GoTo, Page, Screens, Show
from fleet.dashboard.session import url
from fleet.service.campaign_schema import CampaignPlan, CampaignReading

screens = Screens("campaigns")
STARTS = ("adapt", "personalize", "evaluate", "rollout")
NOTHING_READ = CampaignReading(campaign=None, mistakes=[])


@screens.page("/campaigns/new", "campaign_new.html", "New campaign")
def new_campaign(page: Page) -> Context:
    """Begun from a kind's template, or from another campaign's file."""
    clone = page.query.get("clone", "")
    kind = page.query.get("kind", "adapt")
    if clone:
        config = page.api.campaign(clone).config.as_file()
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    else:
        text = _start(page, kind if kind in STARTS else "adapt")
    # What it would do takes seconds where there are very many devices: the script asks for it.
    reading, problem = NOTHING_READ, ""
    try:
        reading = page.api.read_campaign(text)
    except ValidationError as error:
        problem, _ = beside_form(error)
    return {**_editor(page, text, reading, None, problem), "is_answer": False}


@screens.action("/campaigns/new")
def start(page: Page) -> GoTo | Show:
    """Try it, or start it; the text stays where it is wrong."""
    form = page.form
    text = form.get("text", "").replace("\r\n", "\n")
    reading = NOTHING_READ
    try:
        reading = page.api.read_campaign(text)
        if form.get("do") != "start" or reading.campaign is None:
            status = 422 if form.get("do") == "start" else 200
            return _show(page, text, reading, "", status)
        key = key_of(form.get("key", ""), text, form.get("why", ""))
        made = page.api.start_campaign(reading.campaign, key)
    except REFUSALS as error:
        return _show(page, text, reading, *beside_form(error))
    return GoTo(f"/campaigns/{made.campaign}", f"{made.name} was started.")


def _start(page: Page, kind: str) -> str:
    text = (files("fleet.dashboard") / "templates" / "starts" / f"{kind}.yaml").read_text("utf-8")
    models = page.api.models()
    released = [one for one in models[0].versions if one.state == "released"] if models else []
    version = released[-1].version if released else 1
    text = text.replace("{{ model }}", models[0].model if models else "NAME")
    return text.replace("{{ version }}", str(version))


def _editor(
    page: Page, text: str, reading: CampaignReading, plan: CampaignPlan | None, problem: str
) -> Context:
    return {
        "text": text,
        "mistakes": reading.mistakes,
        "plan": plan,
        "problem": problem,
        "why": page.form.get("why", ""),
        "parts": parts_of(page.api.campaign_schema()),
        "starts": STARTS,
        # Answers have the address of the page that they come from: what was typed is kept under it.
        "address": url(
            "/campaigns/new", clone=page.query.get("clone"), kind=page.query.get("kind")
        ),
    }


def _show(page: Page, text: str, reading: CampaignReading, problem: str, status: int) -> Show:
    """The editor with what is wrong, and what the text would do, as far as that can be told."""
    plan: CampaignPlan | None = None
    if reading.campaign is not None:
        try:
            plan = page.api.plan_campaign(reading.campaign)
        except REFUSALS as error:
            problem = problem or beside_form(error)[0]
    context = {**_editor(page, text, reading, plan, problem), "is_answer": True}
    return Show("campaign_new.html", "New campaign", context, status)
