"""Mistakes of forms and requests, as pydantic finds them, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MOST_LINES = 20


def told(errors: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong, a line for each mistake."""
    lines = []
    for one in errors[:_MOST_LINES]:
        where = ".".join(str(part) for part in one["loc"] if part != "body") or "the body"
        lines.append(f"{where}: {str(one['msg']).removeprefix('Value error, ')}")
    return "\n".join(lines)
