"""`tinyfleet tokens`, `audit` and `webhooks`."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path

from fleet.cli._output import console, print_json, table
from fleet.coordinator.settings import CoordinatorSettings
from fleet.service.accounts import first_admin
from fleet.service.client import Client
from fleet.service.schema import Role
from fleet.store import SqlStore

_FIRST_DAYS = 365


def _when(unix: float) -> str:
    return datetime.datetime.fromtimestamp(unix).isoformat(" ", "seconds")


def issue_token(client: Client, who: str, role: Role, days: float, *, as_json: bool) -> None:
    """A token for somebody, shown once."""
    made = client.issue_token(who, role, days)
    if as_json:
        print_json({"token": made.model_dump(mode="json")})
        return
    console().print(f"{made.who} is {made.role} until {_when(made.expires)}, by this token:")
    print(made.secret)


def first_token(config: Path, who: str, *, as_json: bool) -> None:
    """An administrator's token, into the store itself; refused where there is one that is good."""
    store = SqlStore(CoordinatorSettings.read(config).store_url())
    try:
        made, secret = first_admin(store, who, _FIRST_DAYS * 86_400, "tokens.first")
    finally:
        store.close()
    if as_json:
        print_json({"token": {"token": made.token, "who": who, "secret": secret}})
        return
    console().print(f"{who} is admin until {_when(made.expires)}, by this token:")
    print(secret)


def show_tokens(client: Client, *, as_json: bool) -> None:
    """All tokens, without their secrets."""
    found = client.tokens()
    if as_json:
        print_json({"tokens": [one.model_dump(mode="json") for one in found]})
        return
    rows = [
        [one.token, one.who, one.role, _when(one.expires), "revoked" if one.revoked else ""]
        for one in found
    ]
    console().print(table("Tokens", ["token", "who", "role", "expires", ""], rows))


def revoke_token(client: Client, token: str, *, as_json: bool) -> None:
    """It is no good from now on."""
    client.revoke_token(token)
    if as_json:
        print_json({"revoked": token})
    else:
        console().print(f"{token} is no good any more.")


def show_audit(client: Client, object: str, after: int, limit: int, *, as_json: bool) -> None:
    """Who did what."""
    page = client.audit(after, limit, object)
    if as_json:
        print_json(page.model_dump(mode="json"))
        return
    rows = [
        [
            one.number,
            _when(one.at),
            f"{one.who} ({one.role})",
            one.action,
            one.object,
            json.dumps(one.after)[:60] if one.after is not None else "",
            one.why,
        ]
        for one in page.audit
    ]
    columns = ["number", "at", "who", "did", "to", "after", "why"]
    console().print(table("Audit log", columns, rows))


def add_webhook(client: Client, url: str, events: Sequence[str], *, as_json: bool) -> None:
    """Send events to an address."""
    made = client.add_webhook(url, list(events))
    if as_json:
        print_json({"webhook": made.model_dump(mode="json")})
        return
    console().print(f"{', '.join(made.events)} go to {made.url}, signed with this secret:")
    print(made.secret)


def show_webhooks(client: Client, *, as_json: bool) -> None:
    """All webhooks."""
    found = client.webhooks()
    if as_json:
        print_json({"webhooks": [one.model_dump(mode="json") for one in found]})
        return
    rows = [[one.webhook, one.url, ", ".join(one.events), one.problem] for one in found]
    console().print(table("Webhooks", ["webhook", "to", "events", "problem"], rows))


def remove_webhook(client: Client, webhook: str, *, as_json: bool) -> None:
    """Send nothing there any more."""
    client.remove_webhook(webhook)
    if as_json:
        print_json({"removed": webhook})
    else:
        console().print(f"{webhook} gets nothing any more.")
