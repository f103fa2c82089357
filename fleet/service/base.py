"""What every operation has: who asks, whether they may, one transaction, an audit entry."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from pydantic import BaseModel

from fleet.campaign import CampaignConfig, RoundKind
from fleet.campaign.who_sees import Setting, who_sees
from fleet.errors import AccessError
from fleet.service import schema
from fleet.service.roles import Permission, may
from fleet.store import (
    Audit,
    DeviceWork,
    Events,
    Gateways,
    Logins,
    Models,
    Registry,
    SqlStore,
    Stages,
    Timings,
    Tokens,
    Webhooks,
)

PAGE = 100
MOST_ON_A_PAGE = 1000


@dataclass(frozen=True)
class Actor:
    """Who asks, in which role, and the reason that they give.

    `keep` is told the answer within the transaction of what was done, and may write to the store.
    """

    who: str
    role: str
    why: str = ""
    keep: Callable[[BaseModel | None], None] = lambda answer: None


_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer", bound=BaseModel | None)
_Self = TypeVar("_Self", bound="Base")
_Method: TypeAlias = "Callable[Concatenate[_Self, Actor, _Arguments], _Answer]"


def changing(
    permission: Permission,
) -> Callable[[_Method[_Self, _Arguments, _Answer]], _Method[_Self, _Arguments, _Answer]]:
    """Of an operation that changes something: who may, and all of it or nothing, its audit entry
    included."""

    def decorated(
        method: _Method[_Self, _Arguments, _Answer],
    ) -> _Method[_Self, _Arguments, _Answer]:
        @functools.wraps(method)
        def whole(
            self: _Self, actor: Actor, /, *args: _Arguments.args, **options: _Arguments.kwargs
        ) -> _Answer:
            self._allow(actor, permission)
            with self.store.writing():
                answer = method(self, actor, *args, **options)
                actor.keep(answer)
            return answer

        return whole

    return decorated


class Base:
    """What operations of all kinds share: the parts of a store, roles and the audit log."""

    def __init__(
        self, store: SqlStore, fleet: str, settings: Mapping[str, Any] | None = None
    ) -> None:
        """`fleet` is its name in topics, `settings` what the service was told, without secrets."""
        self.store = store
        self.fleet = fleet
        self.settings = dict(settings or {})
        self.registry = Registry(store)
        self.device_work = DeviceWork(store)
        self.gateways = Gateways(store)
        self.logins = Logins(store)
        self.models = Models(store)
        self.stages = Stages(store)
        self.timings = Timings(store, {one.value: one.action for one in RoundKind})
        self.events = Events(store)
        self.tokens = Tokens(store)
        self.audit = Audit(store)
        self.webhooks = Webhooks(store)

    def sights(self, config: CampaignConfig) -> list[schema.SightView]:
        """Who could see what in a campaign, as the service is set up."""
        unmaskers = self.settings.get("unmaskers") or ()
        setting = Setting(
            is_signed=bool(self.settings.get("signing")),
            operators=tuple(str(one.get("operated_by", "")) for one in unmaskers),
        )
        return [schema.SightView(who=one.who, sees=one.sees) for one in who_sees(config, setting)]

    def _allow(self, actor: Actor, permission: Permission) -> None:
        if not may(actor.role, permission):
            raise AccessError(f"{actor.who} is {actor.role}, who may not {permission.value}")

    def _note(
        self, actor: Actor, action: str, object: str, before: Any = None, after: Any = None
    ) -> None:
        self.audit.add(actor.who, actor.role, action, object, before, after, actor.why)
