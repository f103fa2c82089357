"""Who else is told of events, and up to where they have been, in a store's database."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from fleet.errors import ConfigurationError, NotKnownError
from fleet.store.sql import SqlStore
from fleet.store.tables import events, webhooks

_KIND = re.compile(r"[a-z][a-z0-9-]{0,63}")
_LONGEST_URL = 2000


@dataclass(frozen=True)
class Webhook:
    """An address that events are sent to, without its secret.

    `events` are the kinds, all of them where it is empty; `cursor` is the number of the last event
    that was delivered. `failures` counts attempts since, `problem` is what the last one met, and
    until `not_before` (Unix time) there is no other.
    """

    webhook: str
    url: str
    events: tuple[str, ...]
    cursor: int
    failures: int = 0
    not_before: float = 0.0
    problem: str = ""


_KNOWN = tuple(column for column in webhooks.c if column.name != "secret")


class Webhooks:
    """The webhooks of a store.

    Their secrets are stored as they are: deliveries are signed with them. Who can read the database
    can sign as well.
    """

    def __init__(self, store: SqlStore) -> None:
        """Those of the same database."""
        self._store = store

    def add(self, url: str, events: Iterable[str] = ()) -> tuple[Webhook, str]:
        """A new one for what happens from now on, and its secret, which isn't shown again.

        Raises `ConfigurationError` where the address or a kind of event is none.
        """
        kinds = tuple(sorted(set(events)))
        _check(url, kinds)
        secret = secrets.token_hex(32)
        with self._store.writing() as connection:
            added = Webhook(secrets.token_hex(8), url, kinds, _last(connection))
            row = {**vars(added), "events": json.dumps(kinds), "secret": secret}
            connection.execute(sa.insert(webhooks), row)
        return added, secret

    def list(self) -> tuple[Webhook, ...]:
        """All, by address."""
        query = sa.select(*_KNOWN).order_by(webhooks.c.url, webhooks.c.webhook)
        with self._store.reading() as connection:
            return tuple(_webhook(row) for row in connection.execute(query))

    def remove(self, webhook: str) -> None:
        """Send it nothing more. Raises `NotKnownError` where there is none."""
        with self._store.writing() as connection:
            gone = connection.execute(sa.delete(webhooks).where(webhooks.c.webhook == webhook))
        if not gone.rowcount:
            raise NotKnownError(f"there is no webhook {webhook!r}: list the webhooks for their ids")

    def due(self, now: float) -> tuple[tuple[Webhook, str], ...]:
        """Those that may be sent something and have events before them, with their secrets.

        Those that work come first.
        """
        query = sa.select(webhooks.c.secret, *_KNOWN).where(webhooks.c.not_before <= now)
        query = query.order_by(webhooks.c.failures, webhooks.c.webhook)
        with self._store.reading() as connection:
            rows = connection.execute(query.where(webhooks.c.cursor < _last(connection)))
            return tuple((_webhook(row), row.secret) for row in rows)

    def delivered(self, webhook: str, cursor: int) -> bool:
        """It has all of its events up to this one. False where it was removed meanwhile."""
        return self._change(webhook, cursor=cursor, failures=0, not_before=0.0, problem="")

    def failed(self, webhook: str, problem: str, not_before: float) -> None:
        """An attempt has failed; there is none before this time."""
        self._change(
            webhook,
            failures=webhooks.c.failures + 1,
            problem=problem,
            not_before=not_before,
        )

    def _change(self, webhook: str, **values: Any) -> bool:
        with self._store.writing() as connection:
            changed = connection.execute(
                sa.update(webhooks).where(webhooks.c.webhook == webhook).values(values)
            )
            return bool(changed.rowcount)


def _last(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(sa.func.max(events.c.number))).scalar() or 0)


def _webhook(row: sa.Row[Any]) -> Webhook:
    said = {column.name: row._mapping[column.name] for column in _KNOWN}
    return Webhook(**{**said, "events": tuple(json.loads(row.events))})


def _check(url: str, kinds: tuple[str, ...]) -> None:
    problem = _problem(url)
    if problem:
        raise ConfigurationError(f"a webhook can't have the address {url[:200]!r}: {problem}")
    for kind in kinds:
        if not _KIND.fullmatch(kind):
            raise ConfigurationError(
                f"{kind[:80]!r} is no kind of event: one is small letters, digits and dashes"
            )


def _problem(url: str) -> str:
    """What is wrong with an address, with the remedy; nothing where it can be used."""
    if len(url) > _LONGEST_URL:
        return f"it has more than {_LONGEST_URL} characters"
    if not all("!" <= character <= "~" for character in url):
        return "write it in ASCII and without spaces (xn--… for names, %… for paths)"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f"{error}; write https://HOST/PATH"
    if parts.scheme not in ("https", "http") or not host or port == 0:
        return "write https://HOST/PATH, or http:// within a network of yours"
    if parts.username is not None or parts.password is not None:
        return "take out what stands before the @: the signature says who sends it"
    if parts.fragment:
        return "take out what stands behind the #: it isn't sent"
    return ""
