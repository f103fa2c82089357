"""A filter of devices as a database evaluates it.

SQL's NULL is the filter's *neither true nor false*, with the same rules for NOT, AND and OR.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from fleet.registry import filters
from fleet.store.tables import registry

_COMPARISONS = {
    "==": sa.ColumnElement.__eq__,
    "!=": sa.ColumnElement.__ne__,
    "<": sa.ColumnElement.__lt__,
    "<=": sa.ColumnElement.__le__,
    ">": sa.ColumnElement.__gt__,
    ">=": sa.ColumnElement.__ge__,
}


def where(condition: filters.Condition, now: float) -> sa.ColumnElement[bool]:
    """The condition over `tables.registry`; `now` (Unix time) is what ages count to."""
    match condition:
        case filters.Compare(value, comparison, constant):
            return _COMPARISONS[comparison](_column(value, now), constant)
        case filters.OneOf(value, constants):
            column = _column(value, now)
            # `x IN ()` would be false where x isn't known.
            return column.in_(constants) if constants else sa.and_(column.is_(None), sa.null())
        case filters.TextTest(value, "startsWith", text):
            return sa.func.substr(_column(value, now), 1, len(text)) == text
        case filters.TextTest(value, "endsWith", text):
            column = _column(value, now)
            return sa.func.substr(column, sa.func.length(column) - len(text) + 1) == text
        case filters.TextTest(value, "contains", text):
            column = _column(value, now)
            # LIKE doesn't see cases in SQLite.
            return sa.func.replace(column, text, "") != column if text else column == column
        case filters.Known(value):
            return _column(value, now).is_not(None)
        case filters.Constant(is_true):
            return sa.true() if is_true else sa.false()
        case filters.Not(of):
            return sa.not_(where(of, now))
        case filters.All(parts):
            return sa.and_(*(where(part, now) for part in parts))
        case filters.AnyOf(parts):
            return sa.or_(*(where(part, now) for part in parts))
    raise AssertionError(f"{type(condition).__name__} has no translation")


def _column(value: filters.Value, now: float) -> sa.ColumnElement[Any]:
    column: sa.ColumnElement[Any]
    if value.label:
        column = registry.c.labels[value.label].as_string()
    elif value.name == "seen_age_seconds":
        column = sa.literal(now) - registry.c.last_seen
    else:
        column = registry.c[value.name]
    return column
