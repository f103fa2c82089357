"""What can be done with tokens, webhooks, events and the audit log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from fleet.service import schema
from fleet.service.base import MOST_ON_A_PAGE, PAGE, Actor, Base, changing
from fleet.service.roles import Permission
from fleet.store import Audit, AuditEntry, SqlStore, Token, Tokens


def first_admin(store: SqlStore, who: str, seconds: float, action: str) -> tuple[Token, str]:
    """An administrator's token, into the store itself, by whoever has the machine.

    Raises `ConflictError` where somebody has one that is good.
    """
    with store.writing():
        token, secret = Tokens(store).issue_first(who, "admin", seconds)
        after = {"who": who, "role": "admin"}
        Audit(store).add(who, "", action, f"token:{token.token}", None, after, "")
    return token, secret


class AccountOperations(Base):
    """What can be done with tokens, webhooks, events and the audit log."""

    @changing(Permission.ADMINISTER)
    def issue_token(self, actor: Actor, wanted: schema.TokenToIssue) -> schema.NewToken:
        """A token for somebody."""
        token, secret = self.tokens.issue(wanted.who, wanted.role, wanted.days * 86_400)
        self._note(
            actor,
            "tokens.issue",
            f"token:{token.token}",
            None,
            {"who": wanted.who, "role": wanted.role},
        )
        return schema.NewToken(**_token(token), secret=secret)

    def list_tokens(self, actor: Actor) -> schema.TokenList:
        """All tokens, without their secrets."""
        self._allow(actor, Permission.ADMINISTER)
        return schema.TokenList(
            tokens=[schema.TokenView(**_token(one)) for one in self.tokens.list()]
        )

    @changing(Permission.ADMINISTER)
    def revoke_token(self, actor: Actor, token: str) -> None:
        """It is no good from now on."""
        self.tokens.revoke(token)
        self._note(actor, "tokens.revoke", f"token:{token}", {"revoked": False}, {"revoked": True})

    def audit_page(
        self,
        actor: Actor,
        after: int = 0,
        limit: int = PAGE,
        object: str = "",
        who: str = "",
        action: str = "",
    ) -> schema.AuditPage:
        """Who did what, oldest first."""
        self._allow(actor, Permission.READ)
        limit = min(limit, MOST_ON_A_PAGE)
        return _audit_page(self.audit.page(after, limit, object, who, action), limit)

    def newest_audit_page(
        self,
        actor: Actor,
        before: int | None = None,
        limit: int = PAGE,
        object: str = "",
        who: str = "",
        action: str = "",
    ) -> schema.AuditPage:
        """The same newest first, in front of the entry `before`."""
        self._allow(actor, Permission.READ)
        limit = min(limit, MOST_ON_A_PAGE)
        return _audit_page(self.audit.newest(limit, before, object, who, action), limit)

    def told_settings(self, actor: Actor) -> Mapping[str, Any]:
        """What the service was told."""
        self._allow(actor, Permission.ADMINISTER)
        return self.settings

    def last_event(self, actor: Actor) -> int:
        """The number of the newest event."""
        self._allow(actor, Permission.READ)
        return self.events.last()

    def events_after(self, actor: Actor, number: int, campaign: str = "") -> list[schema.EventView]:
        """The next events behind a number, oldest first."""
        self._allow(actor, Permission.READ)
        return [
            schema.EventView.model_validate(one, from_attributes=True)
            for one in self.events.after(number, campaign)
        ]

    @changing(Permission.ADMINISTER)
    def add_webhook(self, actor: Actor, wanted: schema.WebhookToAdd) -> schema.NewWebhook:
        """Send events of these kinds to an address."""
        webhook, secret = self.webhooks.add(wanted.url, wanted.events)
        kinds = list(webhook.events)
        self._note(
            actor,
            "webhooks.add",
            f"webhook:{webhook.webhook}",
            None,
            # Receivers have secrets in paths, and viewers read the log.
            {"host": "{0.scheme}://{0.netloc}".format(urlsplit(wanted.url)), "events": kinds},
        )
        return schema.NewWebhook(**_webhook(webhook), secret=secret)

    def list_webhooks(self, actor: Actor) -> schema.WebhookList:
        """All webhooks, without their secrets."""
        self._allow(actor, Permission.ADMINISTER)
        return schema.WebhookList(
            webhooks=[schema.WebhookView(**_webhook(one)) for one in self.webhooks.list()]
        )

    @changing(Permission.ADMINISTER)
    def remove_webhook(self, actor: Actor, webhook: str) -> None:
        """Send nothing there any more."""
        self.webhooks.remove(webhook)
        self._note(actor, "webhooks.remove", f"webhook:{webhook}")


def _audit_page(page: Sequence[AuditEntry], limit: int) -> schema.AuditPage:
    return schema.AuditPage(
        audit=[schema.AuditView.model_validate(one, from_attributes=True) for one in page],
        next=page[-1].number if len(page) == limit else None,
    )


def _token(one: Any) -> Mapping[str, Any]:
    names = ("token", "who", "role", "created", "expires", "revoked")
    return {name: getattr(one, name) for name in names}


def _webhook(one: Any) -> Mapping[str, Any]:
    values = {name: getattr(one, name) for name in ("webhook", "url", "failures", "problem")}
    return {**values, "events": list(one.events)}
