"""What is old enough to be deleted, a batch at a time, in a store's database.

The audit log is never touched, and neither are campaigns, their rounds, and versions of models.
"""

from __future__ import annotations

import sqlalchemy as sa

from fleet.store.base import ENDED_STATES
from fleet.store.sql import SqlStore
from fleet.store.tables import (
    campaigns,
    events,
    members,
    registry,
    reports,
    rounds,
    versions,
    weights,
)

_ROUNDS_AT_ONCE = 50
_RELEASE = "release"
_HAS_ENDED = campaigns.c.state.in_(ENDED_STATES)


class Retention:
    """Deletes what is older than a time (Unix), each batch in a transaction of its own."""

    def __init__(self, store: SqlStore) -> None:
        """Of the same database."""
        self._store = store

    def delete_reports(self, before: float, limit: int) -> int:
        """What devices reported in rounds that ended before; gates of campaigns that go on need
        theirs."""
        there = sa.exists().where(
            reports.c.campaign == rounds.c.campaign, reports.c.round == rounds.c.number
        )
        old = (
            sa.select(rounds.c.campaign, rounds.c.number)
            .join(campaigns, campaigns.c.id == rounds.c.campaign)
            .where(rounds.c.ended < before, _HAS_ENDED, there)
            .order_by(rounds.c.ended)
            .limit(_ROUNDS_AT_ONCE)
        )
        with self._store.reading() as connection:
            found = connection.execute(old).all()
        deleted = 0
        with self._store.writing() as connection:
            for campaign, number in found:
                mine = (reports.c.campaign == campaign, reports.c.round == number)
                some = sa.select(reports.c.device).where(*mine).limit(limit - deleted)
                gone = connection.execute(
                    sa.delete(reports).where(*mine, reports.c.device.in_(some))
                )
                deleted += gone.rowcount
                if deleted >= limit:
                    break
        return deleted

    def delete_events(self, before: float, limit: int) -> int:
        """Events, from the oldest on; the newest stays, so that its number isn't given again."""
        oldest = sa.select(events.c.number, events.c.at).order_by(events.c.number).limit(limit)
        newest = sa.select(sa.func.max(events.c.number)).scalar_subquery()
        with self._store.reading() as connection:
            old = [number for number, at in connection.execute(oldest) if at < before]
        if not old:
            return 0
        with self._store.writing() as connection:
            gone = connection.execute(
                sa.delete(events).where(
                    events.c.number <= old[-1], events.c.at < before, events.c.number < newest
                )
            )
            return gone.rowcount

    def delete_weights(self, before: float, limit: int) -> int:
        """What training rounds made, of campaigns that ended before, where it was only a step.

        A campaign's first and last weights stay, and all that a device has or had, that were
        released to one, or that a version is: rolling back goes by their digests.
        """
        same = weights.alias()
        last = (
            sa.select(sa.func.max(same.c.version))
            .where(same.c.campaign == weights.c.campaign)
            .scalar_subquery()
        )
        # Each of these is read once, not once for each weights.
        needed = (
            sa.select(versions.c.sha256),
            sa.select(registry.c.current).where(registry.c.current.is_not(None)),
            sa.select(registry.c.candidate).where(registry.c.candidate.is_not(None)),
            sa.select(members.c.before),
        )
        of_campaign = rounds.c.campaign == weights.c.campaign
        # Without a digest it can't be told what was released.
        said = rounds.c.weights.in_((weights.c.sha256, ""))
        was_released = sa.exists().where(of_campaign, rounds.c.kind == _RELEASE, said)
        is_young = rounds.c.ended.is_(None) | (rounds.c.ended >= before)
        old = (
            sa.select(weights.c.campaign, weights.c.version)
            .join(campaigns, campaigns.c.id == weights.c.campaign)
            .where(_HAS_ENDED, campaigns.c.created < before)
            .where(weights.c.version > 0, weights.c.version < last)
            .where(~sa.exists().where(of_campaign, is_young), ~was_released)
            .where(*(weights.c.sha256.not_in(one) for one in needed))
            .order_by(campaigns.c.position, weights.c.version)
            .limit(limit)
        )
        with self._store.reading() as connection:
            found = connection.execute(old).all()
        with self._store.writing() as connection:
            for campaign, version in found:
                connection.execute(
                    sa.delete(weights).where(
                        weights.c.campaign == campaign, weights.c.version == version
                    )
                )
        return len(found)
