"""How long devices took for what they were asked for, by the newest reports in a store's database.

Asked before campaigns begin, over a store that may have millions of reports: only the newest are
looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import sqlalchemy as sa

from fleet.store.sql import SqlStore
from fleet.store.tables import campaigns, registry, reports, rounds

ENOUGH_ROUNDS, ENOUGH_REPORTS = 20, 20_000
"""For each action rounds are looked at, the newest first and each as a whole, until there are so
many, or so many reports."""

LOOKED_AT = 1000
"""Rounds, with those that brought no reports."""


@dataclass(frozen=True)
class Timing:
    """How long devices of a board took for an action with an update plan: the median of `reports`.

    `seconds` are those from task to delta, as in a report.
    """

    plan: str
    board: str
    action: str
    reports: int
    seconds: float


class Timings:
    """What was measured of models in past campaigns."""

    def __init__(self, store: SqlStore, actions: Mapping[str, str]) -> None:
        """Those of the same database; `actions`: what devices are told in rounds of each kind."""
        self._store = store
        self._actions = dict(actions)

    def of_model(self, model: str) -> tuple[Timing, ...]:
        """What devices that are in the registry took, by plan, board and action.

        Of rounds that train only those count that did.
        """
        seconds: dict[tuple[str, str, str], list[float]] = {}
        seen_rounds, seen_reports = Counter[str](), Counter[str]()
        with self._store.reading() as connection:
            for campaign, number, kind in connection.execute(self._rounds(model)).all():
                action = self._actions[kind]
                enough = (
                    seen_rounds[action] >= ENOUGH_ROUNDS or seen_reports[action] >= ENOUGH_REPORTS
                )
                if enough:
                    continue
                found = connection.execute(self._reports(campaign, number, action)).all()
                for plan, board, one in found:
                    seconds.setdefault((plan, board, action), []).append(one)
                seen_rounds[action] += bool(found)
                seen_reports[action] += len(found)
        return tuple(Timing(*key, len(of), median(of)) for key, of in sorted(seconds.items()))

    def _rounds(self, model: str) -> sa.Select[Any]:
        """Rounds of a model's campaigns, the newest first; of what is large in them nothing."""
        return (
            sa.select(rounds.c.campaign, rounds.c.number, rounds.c.kind)
            .join(campaigns, campaigns.c.id == rounds.c.campaign)
            .where(
                campaigns.c.base.startswith(f"{model}:", autoescape=True),
                rounds.c.kind.in_(self._actions),
            )
            .order_by(campaigns.c.position.desc(), rounds.c.number.desc())
            .limit(LOOKED_AT)
        )

    def _reports(self, campaign: str, number: int, action: str) -> sa.Select[Any]:
        query = (
            sa.select(reports.c.plan, registry.c.board, reports.c.seconds)
            .join(registry, registry.c.device == reports.c.device)
            .where(
                reports.c.campaign == campaign,
                reports.c.round == number,
                reports.c.plan.is_not(None),
                reports.c.seconds.is_not(None),
                registry.c.board.is_not(None),
            )
        )
        return query.where(reports.c.train_steps > 0) if action == "train" else query
