"""The service itself: its health, what it was told, who may use it, where its events go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from fleet.dashboard.campaign_words import key_of
from fleet.dashboard.errors import REFUSALS, beside_form
from fleet.dashboard.page import Context, GoTo, Page, Screens, Show
from fleet.errors import ConflictError
from fleet.service.roles import Permission, may
from fleet.service.schema import Role, TokenView, WebhookView

screens = Screens("settings")
DEFAULT_DAYS = 90.0
EVENTS = ("state", "gate", "version", "campaign-ended")
"""That webhooks can be told of."""


@screens.page("/settings", "settings.html", "Settings")
def settings(page: Page) -> Context:
    """Health for everybody; the rest for those who administer."""
    return _all(page)


def _all(page: Page, mistakes: Mapping[str, str] | None = None) -> Context:
    administers = may(page.role, Permission.ADMINISTER)
    given = page.api.settings() if administers else None
    heard = {one.gateway: one.last_seen for one in page.api.gateways() if not one.retired}
    return {
        "ready": page.api.ready(),
        "fleet": page.fleet,
        "gateways": list(heard.items()),
        "settings": _flat(given.settings) if given else [],
        "tokens": list(reversed(page.api.tokens())) if administers else [],
        "webhooks": page.api.webhooks() if administers else [],
        "refusal": page.refusal(Permission.ADMINISTER),
        "roles": get_args(Role),
        "kinds": EVENTS,
        "form": page.form,
        "days": DEFAULT_DAYS,
        "mistakes": {"token": "", "webhook": "", **(mistakes or {})},
    }


def _flat(given: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in given.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{above}{name}.")
        elif value not in (None, ""):
            found.append((above + name, str(value)))
    return found


@screens.action("/settings/tokens")
def issue_token(page: Page) -> GoTo | Show:
    """A new token, whose secret is told on the answer's page and nowhere else."""
    form = page.form
    role = next((one for one in get_args(Role) if one == form.get("role")), None)
    try:
        days = float(form.get("days", ""))
    except ValueError:
        days = float("nan")
    if role is None or not 0 < days <= 3660:
        return _again(page, "token", "choose a role, and between 0 and 3660 days")
    key = key_of(
        form.get("key", ""), *(form.get(one, "") for one in ("who", "role", "days", "why"))
    )
    try:
        made = page.api.issue_token(form.get("who", "").strip(), role, days, key)
    except REFUSALS as error:
        return _again(page, "token", *beside_form(error))
    return _secret(f"Token of {made.who}", made.secret, f"{made.who} is {made.role} with it.")


@screens.action("/settings/webhooks")
def add_webhook(page: Page) -> GoTo | Show:
    """A new webhook, whose secret is told once as well."""
    wanted = [one for one in EVENTS if page.form.get(f"event-{one}")]
    if not wanted:
        return _again(page, "webhook", "choose at least one kind of event")
    address = page.form.get("url", "").strip()
    key = key_of(page.form.get("key", ""), address, *wanted, page.form.get("why", ""))
    try:
        made = page.api.add_webhook(address, wanted, key)
    except REFUSALS as error:
        return _again(page, "webhook", *beside_form(error))
    return _secret("Secret of the webhook", made.secret, "What it sends is signed with it.")


def _again(page: Page, part: str, mistake: str, status: int = 422) -> Show:
    return Show("settings.html", "Settings", _all(page, {part: mistake}), status)


def _secret(what: str, secret: str, text: str) -> Show:
    context = {"what": what, "secret": secret, "text": text, "is_hidden": secret == "(secret)"}
    return Show("secret.html", what, context)


@screens.page("/settings/{kind}/{name}/remove", "settings_remove.html", "Are you sure?")
def confirm(page: Page) -> Context:
    """What it means to revoke a token, or to remove a webhook."""
    kind, name = page.path["kind"], page.path["name"]
    known: list[TokenView] | list[WebhookView] = (
        page.api.tokens() if kind == "tokens" else page.api.webhooks()
    )
    found = next((one for one in known if _id(one) == name), None)
    if found is None or kind not in ("tokens", "webhooks"):
        raise ConflictError(f"there is no such entry any more: {kind} {name}")
    if isinstance(found, TokenView):
        if found.revoked:
            raise ConflictError(f"the token {name} of {found.who} was revoked already")
        said = f"{found.who} ({found.role}) can't log in with tf_{name}_… any more, at once."
    else:
        said = f"Nothing is sent to {found.url} any more."
    return {"kind": kind, "name": name, "said": said}


def _id(one: TokenView | WebhookView) -> str:
    return one.token if isinstance(one, TokenView) else one.webhook


@screens.action("/settings/{kind}/{name}/remove")
def remove(page: Page) -> GoTo | Show:
    """Revoke the token, or remove the webhook."""
    kind, name = page.path["kind"], page.path["name"]
    key = key_of(page.form.get("key", ""), kind, name, page.form.get("why", ""))
    if kind == "tokens":
        page.api.revoke_token(name, key)
        return GoTo("/settings", f"The token tf_{name}_… is revoked.")
    if kind == "webhooks":
        page.api.remove_webhook(name, key)
        return GoTo("/settings", "The webhook is removed.")
    raise ConflictError(f"there are no {kind} to remove")
