"""Pieces of generated C text: names, comments, tables."""

from __future__ import annotations

import re
from collections.abc import Iterable

from codegen.graph.ir import Op
from codegen.graph.names import identifier


def comment(text: str) -> str:
    """``text`` without what would end a comment."""
    return re.sub(r"[^\w .-]", "_", text)


def layer_name(op: Op) -> str:
    """The constant struct of an operation."""
    return f"layer_{identifier(op.name)}"


def rows(values: Iterable[object], per_line: int) -> str:
    """The entries of a table, so many per line."""
    items = [str(value) for value in values]
    lines = [
        "    " + ", ".join(items[i : i + per_line]) + "," for i in range(0, len(items), per_line)
    ]
    return "\n".join(lines)


def channels_name(index: int, layer: str) -> str:
    """The table of the channels of ``layer`` that plan ``index`` trains."""
    return f"plan_{index}_channels_{identifier(layer)}"
