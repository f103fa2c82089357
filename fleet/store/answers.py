"""Whose answers make a masked round's sets, kept before anybody is asked to unmask them."""

from __future__ import annotations

import json
from collections.abc import Iterable

import sqlalchemy as sa

from fleet.errors import UnknownCampaignError
from fleet.store.sql import SqlStore
from fleet.store.tables import rounds


def keep_answering(
    store: SqlStore, campaign: str, driver: str, number: int, gateways: Iterable[str]
) -> tuple[str, ...]:
    """The gateways whose answers count in a masked round: these, or those that were kept first.

    A device is in one unmasked set of a round, ever. So a driver that goes on where one was killed
    asks for the same sets, whoever answers it by then. Raises `SupersededError` where ``driver``
    doesn't drive the campaign any more.
    """
    where = (rounds.c.campaign == campaign) & (rounds.c.number == number)
    with store.writing() as connection:
        store.check_driver(connection, campaign, driver)
        text = connection.execute(
            sa.select(rounds.c.plan).where(where).with_for_update()
        ).scalar_one_or_none()
        if text is None:
            raise UnknownCampaignError(f"campaign {campaign} has no round {number}")
        plan = json.loads(text)
        if plan["masks"]["gateways"] is None:
            plan["masks"]["gateways"] = sorted(gateways)
            connection.execute(sa.update(rounds).where(where).values(plan=json.dumps(plan)))
        return tuple(plan["masks"]["gateways"])
