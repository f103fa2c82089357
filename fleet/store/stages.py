"""Stages of campaigns in a store's database: who is in which, what gates said, what was decided."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa

from fleet.errors import StoreError
from fleet.store.base import ENDED_STATES
from fleet.store.sql import SqlStore
from fleet.store.tables import campaigns, decisions, members, stages

_AT_ONCE = 1000


@dataclass(frozen=True)
class Member:
    """A device of a campaign.

    `stage` is the first in which it takes part, `before` the weights (digest) that were current on
    it when it joined. After `failures` in a row it isn't asked before `not_before` (Unix time);
    `reason` is that of the last.
    """

    device: str
    stage: int
    before: str
    failures: int = 0
    reason: str = ""
    not_before: float = 0.0


@dataclass(frozen=True)
class StageRecord:
    """What the gates of a stage said."""

    stage: int
    outcome: str
    verdicts: tuple[Mapping[str, Any], ...]
    judged: float


@dataclass(frozen=True)
class JudgedStage:
    """What the gates of a stage of some campaign said, with the campaign's configuration."""

    campaign: str
    config: str
    stage: int
    outcome: str
    judged: float


@dataclass(frozen=True)
class Decision:
    """Somebody has decided what a campaign waited for (`what`: see `CampaignRecord.waiting`)."""

    what: str
    who: str
    at: float


class Stages:
    """The stages of all campaigns."""

    def __init__(self, store: SqlStore) -> None:
        """Those of the same database."""
        self._store = store

    def members(self, campaign: str) -> dict[str, Member]:
        """All devices that have joined, by name."""
        columns = [column for column in members.c if column.name != "campaign"]
        query = sa.select(*columns).where(members.c.campaign == campaign)
        with self._store.reading() as connection:
            return {row[0]: Member(*row) for row in connection.execute(query)}

    def joined(self, campaign: str) -> dict[int, int]:
        """How many devices take part from each stage on, of those that have joined."""
        query = sa.select(members.c.stage, sa.func.count()).where(members.c.campaign == campaign)
        with self._store.reading() as connection:
            rows = connection.execute(query.group_by(members.c.stage))
            return {stage: int(count) for stage, count in rows}

    def failing(self, campaign: str) -> dict[str, int]:
        """How many devices failed the last time that they were asked, by reason."""
        failed = (members.c.campaign == campaign) & (members.c.failures > 0)
        counted = sa.select(members.c.reason, sa.func.count()).where(failed)
        with self._store.reading() as connection:
            rows = connection.execute(counted.group_by(members.c.reason))
            return {reason: int(count) for reason, count in rows}

    def save_members(self, campaign: str, changed: Iterable[Member]) -> None:
        """Add them, or replace what is known of them."""
        rows = [{"campaign": campaign, **asdict(one)} for one in changed]
        names = [column.name for column in members.c if column.name not in ("campaign", "device")]
        with self._store.writing() as connection:
            for first in range(0, len(rows), _AT_ONCE):
                statement = self._store.replacing(members, *names)
                connection.execute(statement, rows[first : first + _AT_ONCE])

    def judged(self, campaign: str) -> dict[int, StageRecord]:
        """The stages whose gates have spoken, by number."""
        query = sa.select(
            stages.c.stage, stages.c.outcome, stages.c.verdicts, stages.c.judged
        ).where(stages.c.campaign == campaign)
        with self._store.reading() as connection:
            rows = connection.execute(query.order_by(stages.c.stage))
            return {
                row[0]: StageRecord(row[0], row[1], tuple(json.loads(row[2])), row[3])
                for row in rows
            }

    def judged_since(self, when: float) -> tuple[JudgedStage, ...]:
        """Of all campaigns that are under way, and of others those since `when` (Unix time)."""
        query = (
            sa.select(
                *(stages.c.campaign, campaigns.c.config),
                *(stages.c.stage, stages.c.outcome, stages.c.judged),
            )
            .join(campaigns, campaigns.c.id == stages.c.campaign)
            .where((stages.c.judged >= when) | campaigns.c.state.not_in(ENDED_STATES))
            .order_by(stages.c.campaign, stages.c.stage)
        )
        with self._store.reading() as connection:
            return tuple(JudgedStage(*row) for row in connection.execute(query))

    def save_judged(
        self, campaign: str, stage: int, outcome: str, verdicts: Sequence[Mapping[str, Any]]
    ) -> None:
        """What the gates said; the last word counts."""
        with self._store.writing() as connection:
            connection.execute(
                self._store.replacing(stages, "outcome", "verdicts", "judged"),
                {
                    "campaign": campaign,
                    "stage": stage,
                    "outcome": outcome,
                    "verdicts": json.dumps([dict(one) for one in verdicts]),
                    "judged": self._store.clock.wall(),
                },
            )

    def decide(self, campaign: str, what: str, who: str) -> None:
        """Somebody decides to go on. Raises `StoreError` where nobody has to, or not they."""
        with self._store.writing() as connection:
            record = self._store.locked(connection, campaign)
            if not what or record.waiting != what:
                raise StoreError(
                    f"campaign {campaign} waits for {record.waiting or 'nothing'}, not for {what}"
                )
            if what.startswith("begin:") and who == record.author:
                raise StoreError(
                    f"campaign {campaign} was made by {who}: somebody else has to approve it"
                )
            connection.execute(
                self._store.replacing(decisions, "who", "at"),
                {
                    "campaign": campaign,
                    "what": what,
                    "who": who,
                    "at": self._store.clock.wall(),
                },
            )

    def decisions(self, campaign: str) -> dict[str, Decision]:
        """What was decided, by what it was about."""
        query = sa.select(decisions.c.what, decisions.c.who, decisions.c.at).where(
            decisions.c.campaign == campaign
        )
        with self._store.reading() as connection:
            return {row[0]: Decision(*row) for row in connection.execute(query)}


def after_round(
    known: Mapping[str, Member],
    asked: Iterable[str],
    reported: Iterable[str],
    failed: Mapping[str, tuple[str, float]],
) -> list[Member]:
    """The members that a round has changed; `failed`: device → reason, and when to ask again."""
    there = set(reported)
    changed = []
    for device in asked:
        member = known.get(device)
        if member is None:
            continue
        if device in there:
            if member.failures:
                changed.append(replace(member, failures=0, reason="", not_before=0.0))
        elif device in failed:
            reason, at = failed[device]
            changed.append(
                replace(member, failures=member.failures + 1, reason=reason, not_before=at)
            )
    return changed
