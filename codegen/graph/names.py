"""Names that C can bear."""

from __future__ import annotations

import re


def identifier(name: str) -> str:
    """``name`` as part of a C identifier."""
    return re.sub(r"\W", "_", name)
