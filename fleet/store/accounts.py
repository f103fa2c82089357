"""Who may do what, what they did, and what they asked for already, in a store's database."""

from __future__ import annotations

import hmac
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from fleet.errors import AccessError, ConfigurationError, ConflictError, NotKnownError
from fleet.security.tokens import new_token, secret_hash
from fleet.store.appending import append
from fleet.store.sql import SqlStore
from fleet.store.tables import audit, idempotency, tokens

ROLES = ("viewer", "operator", "approver", "admin")
"""What somebody may do: an admin everything, a viewer only look."""

_TOKEN = re.compile(r"tf_([0-9a-f]{16})_([0-9a-f]{64})")
_REMEDY = "ask an admin for another one"


@dataclass(frozen=True)
class Token:
    """A token without its secret; times are Unix times."""

    token: str
    who: str
    role: str
    created: float
    expires: float
    revoked: bool = False


_KNOWN = tuple(column for column in tokens.c if column.name != "hash")


class Tokens:
    """The tokens of a store, which has hashes of their secrets only."""

    def __init__(self, store: SqlStore) -> None:
        """Those of the same database."""
        self._store = store

    def issue(self, who: str, role: str, seconds: float) -> tuple[Token, str]:
        """A new token that lives for so long, and its text `tf_ID_SECRET`, which nobody can ask for
        again.
        """
        if not who:
            raise ConfigurationError("a token needs somebody whom it is for: say who")
        if role not in ROLES:
            raise ConfigurationError(f"there is no role {role!r}; choose one of {', '.join(ROLES)}")
        if not 0 < seconds < math.inf:
            raise ConfigurationError(
                f"a token can't live for {seconds} s: give it a time after which it ends"
            )
        with self._store.writing() as connection:
            return self._insert(connection, new_token(), who, role, seconds)

    def issue_first(self, who: str, role: str, seconds: float) -> tuple[Token, str]:
        """The same, where nobody has a token of this role that is good. Else `ConflictError`."""
        with self._store.writing() as connection:
            _one_by_one(connection)
            good = sa.select(tokens.c.who).where(
                tokens.c.role == role,
                ~tokens.c.revoked,
                tokens.c.expires > self._store.clock.wall(),
            )
            known = connection.execute(good.order_by(tokens.c.created)).scalar()
            if known is not None:
                raise ConflictError(
                    f"there is somebody who is {role} already: ask {known}, "
                    "`tinyfleet tokens issue` makes more"
                )
            return self.issue(who, role, seconds)

    def adopt_first(self, text: str, who: str, role: str, seconds: float) -> Token | None:
        """The token of this text, where there was never one; else None.

        Raises `ConfigurationError` where the text is no token's.
        """
        if _TOKEN.fullmatch(text) is None:
            raise ConfigurationError("the first token is none: a token is tf_ID_SECRET")
        with self._store.writing() as connection:
            _one_by_one(connection)
            if connection.execute(sa.select(tokens.c.token).limit(1)).first() is not None:
                return None
            return self._insert(connection, text, who, role, seconds)[0]

    def _insert(
        self, connection: sa.Connection, text: str, who: str, role: str, seconds: float
    ) -> tuple[Token, str]:
        now = self._store.clock.wall()
        _, name, secret = text.split("_")
        issued = Token(name, who, role, now, now + seconds)
        connection.execute(sa.insert(tokens), {**vars(issued), "hash": secret_hash(secret)})
        return issued, text

    def check(self, text: str) -> Token:
        """Whose token it is. Raises `AccessError`, which never says what the secret was."""
        parts = _TOKEN.fullmatch(text)
        if parts is None:
            raise AccessError(f"that is no token; a token is tf_ID_SECRET: {_REMEDY}")
        name, secret = parts.groups()
        query = sa.select(tokens.c.hash, *_KNOWN).where(tokens.c.token == name)
        with self._store.reading() as connection:
            row = connection.execute(query).first()
        # Who only knows a token's id learns nothing of it, nor how far a guess is right.
        if row is None or not hmac.compare_digest(row[0], secret_hash(secret)):
            raise AccessError(f"nobody has issued this token (tf_{name}_…): {_REMEDY}")
        found = Token(*row[1:])
        if found.revoked:
            raise AccessError(f"the token tf_{name}_… of {found.who} was revoked: {_REMEDY}")
        if found.expires <= self._store.clock.wall():
            raise AccessError(f"the token tf_{name}_… of {found.who} has expired: {_REMEDY}")
        return found

    def list(self) -> tuple[Token, ...]:
        """All, oldest first, with those that are valid no more."""
        with self._store.reading() as connection:
            rows = connection.execute(sa.select(*_KNOWN).order_by(tokens.c.created, tokens.c.token))
            return tuple(Token(*row) for row in rows)

    def revoke(self, token: str) -> None:
        """Let nobody in with it any more. Raises `NotKnownError` where there is none."""
        with self._store.writing() as connection:
            self._revoke(connection, token)

    def _revoke(self, connection: sa.Connection, token: str) -> Token:
        """Revoke it; returns what it was before."""
        query = sa.select(*_KNOWN).where(tokens.c.token == token)
        row = connection.execute(query.with_for_update()).first()
        if row is None:
            raise NotKnownError(f"there is no token {token!r}: list the tokens for their ids")
        connection.execute(sa.update(tokens).where(tokens.c.token == token).values(revoked=True))
        return Token(*row)


def _one_by_one(connection: sa.Connection) -> None:
    """Of two that want to be the first at once, one is."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("LOCK TABLE tokens IN EXCLUSIVE MODE"))


# What was done

HIDDEN = "(secret)"
"""What the audit log has instead of a secret."""

_SECRET = re.compile(r"(?:^|[^a-z])(?:password|secret|token|hash)(?:$|[^a-z])")


def without_secrets(value: Any) -> Any:
    """A JSON value without passwords, secrets, tokens and hashes.

    Hidden is what a key names so, alone or as a word of a longer name, and a token's text anywhere.
    """
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if _SECRET.search(str(key).lower()) else without_secrets(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return _TOKEN.sub(HIDDEN, value) if isinstance(value, str) else value


@dataclass(frozen=True)
class AuditEntry:
    """What somebody did: `before` and `after` are JSON values of the `object` that it was done to.

    `role` is what they had then; `number` only grows.
    """

    number: int
    at: float
    who: str
    role: str
    action: str
    object: str
    before: Any
    after: Any
    why: str


class Audit:
    """The audit log of a store. The database refuses to change or delete what is in it."""

    def __init__(self, store: SqlStore) -> None:
        """That of the same database."""
        self._store = store

    def add(
        self, who: str, role: str, action: str, object: str, before: Any, after: Any, why: str
    ) -> None:
        """Somebody has done something. Secrets are left out (`without_secrets`)."""
        row = {
            "at": self._store.clock.wall(),
            "who": who,
            "role": role,
            "action": action,
            "object": object,
            "before": json.dumps(without_secrets(before)),
            "after": json.dumps(without_secrets(after)),
            "why": without_secrets(why),
        }
        with self._store.writing() as connection:
            append(connection, audit, row)

    def page(
        self, after: int = 0, limit: int = 100, object: str = "", who: str = "", action: str = ""
    ) -> tuple[AuditEntry, ...]:
        """Entries behind the number `after`, oldest first; of one object, person or action only."""
        query = _matching(object, who, action).where(audit.c.number > after)
        return self._entries(query.order_by(audit.c.number).limit(limit))

    def newest(
        self,
        limit: int = 100,
        before: int | None = None,
        object: str = "",
        who: str = "",
        action: str = "",
    ) -> tuple[AuditEntry, ...]:
        """The same newest first, those in front of the number `before`."""
        query = _matching(object, who, action)
        if before is not None:
            query = query.where(audit.c.number < before)
        return self._entries(query.order_by(audit.c.number.desc()).limit(limit))

    def _entries(self, query: sa.Select[Any]) -> tuple[AuditEntry, ...]:
        with self._store.reading() as connection:
            return tuple(
                AuditEntry(
                    **{
                        **row._mapping,
                        "before": json.loads(row.before),
                        "after": json.loads(row.after),
                    }
                )
                for row in connection.execute(query)
            )


def _matching(object: str, who: str, action: str) -> sa.Select[Any]:
    query = sa.select(audit)
    for column, wanted in ((audit.c.object, object), (audit.c.who, who), (audit.c.action, action)):
        if wanted:
            query = query.where(column == wanted)
    return query


# What was asked for already

WORKING_SECONDS = 60.0
"""So long a request may be worked on. After that whoever did it is taken to have died."""


@dataclass(frozen=True)
class Remembered:
    """How a request was answered: an HTTP status and the body's text."""

    status: int
    body: str


class Idempotency:
    """Requests that are done once, however often they are sent: by who sends them and their key.

    Answers are stored as they are: `finish` one that shows a secret with a body that doesn't.
    """

    def __init__(self, store: SqlStore) -> None:
        """Those of the same database."""
        self._store = store

    def begin(self, who: str, key: str, request_digest: str) -> Remembered | None:
        """None where it is to be done, by the caller and nobody else; else how it was answered.

        Raises `ConflictError` where the key came with another request, or is being worked on.
        """
        now = self._store.clock.wall()
        row = {
            "who": who,
            "key": key,
            "request": request_digest,
            "status": 0,
            "body": "",
            "at": now,
        }
        taken = self._store.inserting_new(idempotency).returning(idempotency.c.key)
        query = sa.select(*(idempotency.c[name] for name in ("request", "status", "body", "at")))
        with self._store.writing() as connection:
            known = None
            # Between the two statements it may be forgotten; then it is new again.
            while known is None:
                if connection.execute(taken, row).first() is not None:
                    return None
                known = connection.execute(query.where(*_is(who, key)).with_for_update()).first()
            request, status, body, at = known
            if request != request_digest:
                raise ConflictError(
                    f"the key {key!r} was used for another request: send this one with a new key"
                )
            if status:
                return Remembered(status, body)
            if now - at < WORKING_SECONDS:
                raise ConflictError(
                    f"the request with the key {key!r} is still being worked on: "
                    f"ask again in {WORKING_SECONDS:.0f} s"
                )
            connection.execute(sa.update(idempotency).where(*_is(who, key)).values(at=now))
            return None

    def finish(self, who: str, key: str, status: int, body: str) -> None:
        """How it was answered. Raises `ConflictError` where somebody else has answered it already,
        or has given it up: what was done in the same transaction is done a second time.
        """
        with self._store.writing() as connection:
            answered = connection.execute(
                sa.update(idempotency)
                .where(*_is(who, key), idempotency.c.status == 0)
                .values(status=status, body=body)
            )
            if not answered.rowcount:
                raise ConflictError(
                    f"the request with the key {key!r} took too long and was begun again: "
                    "send it again to be told how it was answered"
                )

    def drop(self, who: str, key: str) -> None:
        """It wasn't done, and may be tried again with the same key; an answer stays."""
        with self._store.writing() as connection:
            connection.execute(
                sa.delete(idempotency).where(*_is(who, key), idempotency.c.status == 0)
            )

    def forget_before(self, unix: float) -> int:
        """Forget what was begun before; returns how many."""
        with self._store.writing() as connection:
            gone = connection.execute(sa.delete(idempotency).where(idempotency.c.at < unix))
            return gone.rowcount


def _is(who: str, key: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return idempotency.c.who == who, idempotency.c.key == key
