"""What a page about a campaign shows of its rounds: little, whatever the number of devices.

A round's plan and result name every device. So what onlookers want of them is kept beside them,
when they are written.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from fleet.store.database import Database
from fleet.store.tables import figures, reports, rounds

MOST_NAMED = 20
"""Devices, gateways and reasons of a round that are named; of more there is the number."""
BINS = 20
"""Of a distribution of accuracies, each five points wide; the last one holds 100 % as well."""
QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Distribution:
    """Accuracies of devices on their own held-out samples.

    `counts` has the devices in each of `BINS` equal parts of 0 to 1. `quantiles` are those of
    `QUANTILES`: the lowest accuracy that at least such a share of the devices doesn't exceed.
    """

    devices: int
    mean: float
    quantiles: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, answers: Iterable[tuple[int, int, int]]) -> Distribution | None:
        """Of (right answers, held-out samples, devices with so many of each); None of nobody."""
        known = sorted(
            (right / samples, min(BINS - 1, right * BINS // samples), devices)
            for right, samples, devices in answers
            if samples > 0
        )
        total = sum(devices for _, _, devices in known)
        if not total:
            return None
        counts = [0] * BINS
        quantiles: list[float] = []
        below = 0
        for accuracy, part, devices in known:
            counts[part] += devices
            below += devices
            while len(quantiles) < len(QUANTILES) and below >= QUANTILES[len(quantiles)] * total:
                quantiles.append(accuracy)
        mean = math.fsum(accuracy * devices for accuracy, _, devices in known) / total
        return cls(total, mean, tuple(quantiles), tuple(counts))


@dataclass(frozen=True)
class RoundGlance:
    """A round without its plan and its result; times are Unix times.

    `figures` are those that `planned`, `ended` and whoever drives it have told.
    """

    number: int
    kind: str
    state: str
    asked: int
    wanted: int
    accepted: int
    began: float
    ended: float | None
    figures: Mapping[str, Any]


_GLANCE = tuple(
    rounds.c[name]
    for name in ("number", "kind", "state", "asked", "wanted", "accepted", "began", "ended")
)


class RoundGlances:
    """The rounds of a store's campaigns, for onlookers."""

    def __init__(self, store: Database) -> None:
        """Those of the same database."""
        self._store = store

    def one(self, campaign: str, number: int) -> RoundGlance | None:
        """One round; None where there is none."""
        found = self._find(campaign, rounds.c.number == number, 1)
        return found[0] if found else None

    def newest(self, campaign: str, limit: int = MOST_NAMED) -> tuple[RoundGlance, ...]:
        """The newest rounds, newest first."""
        return self._find(campaign, sa.true(), limit)

    def last_of_kinds(
        self, campaign: str, first: int, last: int, kinds: Collection[str]
    ) -> RoundGlance | None:
        """The newest of the rounds `first` to `last` that is of such a kind and is done."""
        where = rounds.c.number.between(first, last) & rounds.c.kind.in_(kinds)
        found = self._find(campaign, where & (rounds.c.state == "done"), 1)
        return found[0] if found else None

    def _find(
        self, campaign: str, where: sa.ColumnElement[bool], limit: int
    ) -> tuple[RoundGlance, ...]:
        query = (
            sa.select(*_GLANCE, figures.c.text)
            .join(
                figures,
                (figures.c.campaign == rounds.c.campaign) & (figures.c.round == rounds.c.number),
                isouter=True,
            )
            .where(rounds.c.campaign == campaign, where)
            .order_by(rounds.c.number.desc())
            .limit(limit)
        )
        with self._store.reading() as connection:
            return tuple(_glance(row) for row in connection.execute(query).mappings())

    def newest_of(self, campaigns: Collection[str]) -> dict[str, RoundGlance]:
        """The newest round of each of these campaigns, without its figures."""
        of, number = rounds.c.campaign, sa.func.max(rounds.c.number).label("number")
        newest = sa.select(of, number).where(of.in_(campaigns)).group_by(of).subquery()
        query = sa.select(of, *_GLANCE).join(
            newest, (newest.c.campaign == of) & (newest.c.number == rounds.c.number)
        )
        with self._store.reading() as connection:
            rows = connection.execute(query).mappings()
            return {str(row["campaign"]): _glance(row) for row in rows}


def _glance(row: sa.RowMapping) -> RoundGlance:
    text = row.get("text") or "{}"
    return RoundGlance(
        **{column.name: row[column.name] for column in _GLANCE}, figures=json.loads(text)
    )


# What is kept of a round, for the parts of this package


def keep(connection: sa.Connection, statement: Any, campaign: str, number: int, told: Any) -> None:
    """Keep figures of a round; `statement` is an INSERT that replaces the text."""
    row = {"campaign": campaign, "round": number, "text": json.dumps(told)}
    connection.execute(statement, row)


def kept(connection: sa.Connection, campaign: str, number: int) -> dict[str, Any]:
    """What is kept of a round."""
    where = (figures.c.campaign == campaign) & (figures.c.round == number)
    text = connection.execute(sa.select(figures.c.text).where(where)).scalar()
    return dict(json.loads(text or "{}"))


def planned(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a round that begins."""
    assignments = plan.get("assignments", ())
    asked = Counter(str(one.get("gateway", "")) for one in assignments)
    return {
        "stage": int(plan.get("stage", 0)),
        "longest_delay": max(
            (float(one.get("delay_seconds", 0.0)) for one in assignments), default=0.0
        ),
        "gateways": dict(asked.most_common(MOST_NAMED)),
        "skipped": of_a_kind(plan.get("skipped", {}).values()),
    }


def ended(
    connection: sa.Connection, campaign: str, number: int, result: Mapping[str, Any]
) -> dict[str, Any]:
    """What is told of a round that has ended; its reports are in the database."""
    failed = result.get("failed", {})
    missing = result.get("missing", ())
    return {
        "late": int(result.get("late", 0)),
        "duplicate": int(result.get("duplicate", 0)),
        "refused": _most(result.get("refused", {})),
        "declined": _most(result.get("declined", {})),
        "not_started": of_a_kind(result.get("not_started", {}).values()),
        "failed": of_a_kind(failed.values()),
        "lost": dict(list(result.get("lost", {}).items())[:MOST_NAMED]),
        "missing": len(missing),
        "open": [{"device": one, "reason": failed.get(one, "")} for one in missing[:MOST_NAMED]],
        "bytes_up": int(result.get("payload_bytes", 0)),
        "sets": _sets(result),
        "before": _scores(connection, campaign, number, "correct_before"),
        "after": _scores(connection, campaign, number, "correct_after"),
        "alone": _scores(connection, campaign, number, "correct_local"),
        "kept": dict(result.get("kept", {})),
    }


def _sets(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The sets of a masked round; None of others."""
    sets = result.get("sets")
    if sets is None:
        return None
    counted = [one for one in sets if one["counted"]]
    differ = [one["differs_by"] for one in counted if one["differs_by"] is not None]
    return {
        "sets": len(sets),
        "counted": len(counted),
        "devices": sum(int(one["devices"]) for one in counted),
        "smallest": min((int(one["devices"]) for one in counted), default=0),
        "not_counted": _most(Counter(str(one["why"]) for one in sets if one["why"])),
        "differs_by": min(differ, default=None),
        "rule": str(result.get("rule", "")),
    }


def of_a_kind(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason is given, the most frequent first.

    Without the figures of its device, so that those of a kind are counted together.
    """
    kinds: Counter[str] = Counter()
    for reason, count in Counter(reasons).items():
        kinds[_without_figures(reason)] += count
    return _most(kinds)


def _most(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(Counter(counts).most_common(MOST_NAMED))


def _without_figures(reason: str) -> str:
    words = ["…" if any(letter.isdigit() for letter in word) else word for word in reason.split()]
    return " ".join(words)


def _scores(
    connection: sa.Connection, campaign: str, number: int, column: str
) -> dict[str, Any] | None:
    right = reports.c[column]
    query = (
        sa.select(right, reports.c.held_out, sa.func.count())
        .where(
            reports.c.campaign == campaign,
            reports.c.round == number,
            reports.c.held_out > 0,
            right.is_not(None),
        )
        .group_by(right, reports.c.held_out)
    )
    found = Distribution.of((row[0], row[1], row[2]) for row in connection.execute(query))
    return None if found is None else vars(found)
