"""Chance that a campaign's seed decides: the same again for whoever plans a round once more."""

from __future__ import annotations

import hashlib

DRAWS = 2**64


def draw(*parts: object) -> int:
    """A number below `DRAWS` that follows from `parts`, the first of which says what it is for."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
