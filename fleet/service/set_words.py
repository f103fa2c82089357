"""The sets of a masked round in words, for command line and dashboard."""

from __future__ import annotations

from fleet.service.campaign_schema import SetFigures

NEAR = 5
"""Sets that differ by fewer devices say much of them."""


def in_words(of: SetFigures) -> str:
    """What was unmasked, what wasn't and why, and what two rounds beside each other give away."""
    said = f"{of.counted} of {of.sets} sets were unmasked"
    if of.counted:
        said += f", of {of.devices} devices, the smallest of {of.smallest}; {of.rule or 'one sum'}"
    if of.not_counted:
        whys = ", ".join(f"{why} {count}" for why, count in of.not_counted.items())
        said += f"; counted nothing: {whys}"
    if of.differs_by is not None:
        said += f". A set and the nearest one of the round before differ by {of.differs_by} devices"
        if 0 < of.differs_by < NEAR:
            said += ", so both sums together say something of these few"
    return said + "."
