"""Models: what was made from what, which versions are released, and how two of them compare."""

from __future__ import annotations

from fleet.dashboard import campaign_charts
from fleet.dashboard.campaign_words import key_of
from fleet.dashboard.errors import REFUSALS, beside_form
from fleet.dashboard.page import Context, GoTo, Page, Screens, Show
from fleet.errors import ConflictError, NotKnownError, ServiceError
from fleet.service.roles import Permission
from fleet.service.schema import Comparison, ModelView, VersionView

screens = Screens("models")


@screens.page("/models", "models.html", "Models")
def models(page: Page) -> Context:
    """All of them."""
    return {"models": page.api.models()}


@screens.page("/models/{model}", "model.html", "{model}")
def model(page: Page) -> Context:
    """One, with two of its versions compared where wanted."""
    one = page.api.model(page.path["model"])
    first, second = _number(page, "first"), _number(page, "second")
    compared: Comparison | None = None
    mistake = ""
    if first and second:
        try:
            compared = page.api.compare(one.model, first, second)
        except (NotKnownError, ServiceError) as error:
            if getattr(error, "status", 404) not in (404, 422):
                raise
            mistake = str(error)
    released = _released(one)
    scored = {}
    if compared is not None:
        scored = {
            f"version {compared.first}": compared.scores_first,
            f"version {compared.second}": compared.scores_second,
        }
    return {
        "one": one,
        "newest": list(reversed(one.versions)),
        "released": released,
        "first": first or (one.versions[-2].version if len(one.versions) > 1 else 1),
        "second": second or (one.versions[-1].version if one.versions else 1),
        "compared": compared,
        "mistake": mistake,
        "drawings": campaign_charts,
        "scored": scored,
        "chart": campaign_charts.scores("Accuracy of the devices that have scored both", scored),
    }


def _number(page: Page, name: str) -> int | None:
    text = page.query.get(name, "")
    return int(text) if text.isdecimal() and 0 < int(text) < 1 << 31 else None


def _released(one: ModelView) -> list[VersionView]:
    """Newest first."""
    return [of for of in reversed(one.versions) if of.state == "released"]


@screens.page("/models/{model}/confirm", "model_confirm.html", "Are you sure?")
def confirm(page: Page) -> Context:
    """What releasing or withdrawing a version will do."""
    one = page.api.model(page.path["model"])
    return _confirm(one, page.query.get("do", ""), _number(page, "version"), "", "")


def _confirm(one: ModelView, action: str, number: int | None, mistake: str, reason: str) -> Context:
    version = next((of for of in one.versions if of.version == number), None)
    released = _released(one)
    told: list[str] = []
    if action == "release" and version is not None:
        told = [
            f"{one.model}:{version.version} is {version.state} now. Campaigns that name no version "
            + (
                "begin with it from now on."
                if not released or version.version > released[0].version
                else f"still begin with the newest released one, {released[0].version}."
            ),
            "Rollouts may bring it to devices. No device gets it by this alone.",
        ]
    elif action == "roll-back" and version is not None and len(released) > 1:
        told = [
            f"{one.model}:{released[0].version} is withdrawn. Campaigns that name no version begin "
            f"with {released[1].version} from then on.",
            "Devices keep what they have: roll the campaign back that brought it, or roll another "
            "version out.",
        ]
    if not told or version is None:
        raise ConflictError(f"that can't be done with {one.model} as it stands")
    return {
        "one": one,
        "action": action,
        "chosen": version,
        "consequences": told,
        "mistake": mistake,
        "why": reason,
        "may_release": Permission.APPROVE,
    }


@screens.action("/models/{model}/confirm")
def act(page: Page) -> GoTo | Show:
    """Release a version, or withdraw the newest released one."""
    name, form = page.path["model"], page.form
    text = form.get("version", "")
    number = int(text) if text.isdecimal() and len(text) < 10 else 0
    action, reason = form.get("action", ""), form.get("why", "")
    key = key_of(form.get("key", ""), name, action, text, reason)
    try:
        if action == "release":
            made = page.api.release(name, number, key)
            return GoTo(f"/models/{name}", f"{name}:{made.version} is released.")
        if action == "roll-back" and number:
            made = page.api.rollback_model(name, number, key)
            said = f"{name}:{number} is withdrawn; the newest released one is {made.version}."
            return GoTo(f"/models/{name}", said)
    except REFUSALS as error:
        mistake, status = beside_form(error)
        context = _confirm(page.api.model(name), action, number, mistake, reason)
        return Show("model_confirm.html", "Are you sure?", context, status)
    raise ConflictError(f"there is nothing to do that is called {action!r}")
