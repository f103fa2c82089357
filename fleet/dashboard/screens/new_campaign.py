"""A new campaign: its text, what is wrong with it, and what it would do before it does it."""

from __future__ import annotations

import secrets
from importlib.resources import files

import yaml
from pydantic import ValidationError

from fleet.dashboard.campaign_fields import parts_of
from fleet.dashboard.campaign_words import key_of
from fleet.dashboard.errors import first_mistake, status_of, told
from fleet.dashboard.page import Context, GoTo, Page, Screens, Show
from fleet.errors import (
    AccessError,
    ConflictError,
    FleetError,
    NotKnownError,
    ServiceError,
    UnknownTokenError,
)
from fleet.service.campaign_schema import CampaignPlan, CampaignReading, MistakeView

screens = Screens("campaigns")
STARTS = ("adapt", "personalize", "evaluate", "rollout")


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
    return {**_editor(page, text, _read(page, text), None, ""), "is_answer": False}


@screens.action("/campaigns/new")
def start(page: Page) -> GoTo | Show:
    """Try it, or start it; the text stays where it is wrong."""
    form = page.form
    text = form.get("text", "").replace("\r\n", "\n")
    reading, plan, problem = _look(page, text)
    if form.get("do") != "start" or reading.campaign is None:
        status = 422 if form.get("do") == "start" else 200
        return _show(page, text, reading, plan, problem, status)
    try:
        key = key_of(form.get("key", ""), text, form.get("why", ""))
        made = page.api.start_campaign(reading.campaign, key)
    except UnknownTokenError:
        raise
    except (AccessError, ConflictError, NotKnownError, ServiceError) as error:
        return _show(page, text, reading, plan, told(error), status_of(error))
    return GoTo(f"/campaigns/{made.campaign}", f"{made.name} was started.")


def _start(page: Page, kind: str) -> str:
    text = (files("fleet.dashboard") / "templates" / "starts" / f"{kind}.yaml").read_text("utf-8")
    models = page.api.models()
    released = [one for one in models[0].versions if one.state == "released"] if models else []
    version = released[-1].version if released else 1
    text = text.replace("{{ model }}", models[0].model if models else "NAME")
    return text.replace("{{ version }}", str(version))


def _read(page: Page, text: str) -> CampaignReading:
    try:
        return page.api.read_campaign(text)
    except ValidationError as error:
        mistake = MistakeView(field="", line=None, message=first_mistake(error))
        return CampaignReading(campaign=None, mistakes=[mistake])


def _look(page: Page, text: str) -> tuple[CampaignReading, CampaignPlan | None, str]:
    """What a text says, what it would do, and why that can't be told."""
    reading = _read(page, text)
    if reading.campaign is None:
        return reading, None, ""
    try:
        return reading, page.api.plan_campaign(reading.campaign), ""
    except UnknownTokenError:
        raise
    except FleetError as error:
        return reading, None, str(error)


def _editor(
    page: Page, text: str, reading: CampaignReading, plan: CampaignPlan | None, problem: str
) -> Context:
    return {
        "text": text,
        "mistakes": reading.mistakes,
        "plan": plan,
        "problem": problem,
        "key": secrets.token_hex(16),
        "why": page.form.get("why", ""),
        "parts": parts_of(page.api.campaign_schema()),
        "starts": STARTS,
    }


def _show(
    page: Page,
    text: str,
    reading: CampaignReading,
    plan: CampaignPlan | None,
    problem: str,
    status: int,
) -> Show:
    context = {**_editor(page, text, reading, plan, problem), "is_answer": True}
    return Show("campaign_new.html", "New campaign", context, status)
