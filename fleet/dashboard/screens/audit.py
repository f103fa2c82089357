"""The audit log, newest first."""

from __future__ import annotations

import json
from typing import Any

from fleet.dashboard.page import Context, Page, Screens
from fleet.errors import ServiceError
from fleet.service.schema import AuditPage

screens = Screens("audit")
ENTRIES_ON_A_PAGE = 50
_LONGEST_SHOWN = 60
_PAGES = {
    "campaign": "/campaigns/{}",
    "device": "/devices/{}",
    "model": "/models/{}",
    "version": "/models/{}",
}
"""Where an object is looked at, by its kind."""


@screens.page("/audit", "audit.html", "Audit")
def audit(page: Page) -> Context:
    """A page of entries, of one person, action or object where wanted."""
    wanted = {name: page.query.get(name, "").strip() for name in ("who", "action", "object")}
    before = page.query.get("before", "")
    mistake, found = "", AuditPage(audit=[])
    try:
        number = int(before) if before.isdecimal() and len(before) < 19 else None
        found = page.api.newest_audit(number, ENTRIES_ON_A_PAGE, **wanted)
    except ServiceError as error:
        if error.status != 422:
            raise
        mistake = str(error)
    return {
        "wanted": wanted,
        "page": found,
        "mistake": mistake,
        "before": before,
        "actions": sorted({one.action for one in found.audit}),
        "changes": changes,
        "place": place,
    }


def place(object: str) -> str:
    """The page of an object; empty where there is none."""
    kind, _, name = object.partition(":")
    path = _PAGES.get(kind, "")
    return path.format(name.partition(":")[0]) if path and name else ""


def changes(before: Any, after: Any) -> list[tuple[str, str, str]]:
    """What an action has changed: field, before, after; without fields the values themselves."""
    if isinstance(before, dict | None) and isinstance(after, dict | None):
        old, new = before or {}, after or {}
        names = [*old, *(name for name in new if name not in old)]
        return [
            (str(name), _text(old.get(name)), _text(new.get(name)))
            for name in names
            if old.get(name) != new.get(name)
        ]
    return [("", _text(before), _text(after))] if before != after else []


def _text(value: Any) -> str:
    if value in (None, ""):
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
