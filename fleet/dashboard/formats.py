"""How figures and times are written on pages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from markupsafe import Markup, escape

UNKNOWN = "\N{EN DASH}"


def number(value: float | None, digits: int = 0) -> str:
    """With commas between thousands."""
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def loss(value: float) -> str:
    """To thousandths, as devices tell it."""
    return f"{value:.3f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1."""
    return UNKNOWN if share is None else f"{100 * share:.{digits}f} %"


def points(change: float | None) -> str:
    """A change of a share, in points of a hundred."""
    return UNKNOWN if change is None else f"{100 * change:+.1f} points"


def size(count: float | None) -> str:
    """Bytes, in the unit that fits."""
    return UNKNOWN if count is None else _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def energy(millijoules: float | None) -> str:
    """In the unit that fits."""
    if millijoules is None:
        return UNKNOWN
    return _scaled(millijoules, ("mJ", "J", "kJ", "MJ"))


def _scaled(value: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        text = f"{value:.3g}" if value % 1 else f"{value:.0f}"
        if abs(float(text)) < 1000:
            return f"{text} {unit}"
        value /= 1000
    return f"{value:,.1f} {units[-1]}"


def duration(seconds: float | None) -> str:
    """How long something takes, in the unit that fits."""
    if seconds is None:
        return UNKNOWN
    for unit_seconds, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_seconds:
            return f"{seconds / unit_seconds:.1f} {name}".replace(".0 ", " ")
    return f"{seconds:.3g} s"


def when(unix: float | None, never: str = "never") -> Markup:
    """A point in time. How long ago that is the script says, so that pages don't change by it."""
    if not unix:  # 0 is how gateways say that a device has said nothing yet
        return Markup('<span class="muted">{}</span>').format(never)
    exactly = datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        moment(unix), exactly, clock(unix)
    )


def moment(unix: float) -> str:
    """A point in time as the script reads it."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def clock(unix: float) -> str:
    """A point in time that may lie ahead."""
    return datetime.fromtimestamp(unix, UTC).strftime("%d %b %Y %H:%M UTC")


def short(digest: str | None) -> Markup:
    """A digest, as much of it as people compare."""
    if not digest:
        return Markup(UNKNOWN)
    return Markup('<code title="{}">{}</code>').format(digest, digest[:10])


def plural(count: float, one: str, many: str = "") -> str:
    """`3 devices`, `1 device`."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def ticked(text: str) -> Markup:
    """Text whose parts between backticks are code."""
    parts = [escape(one) for one in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(one) if place % 2 else one
        for place, one in enumerate(parts)
    )


def lines(text: str) -> Markup:
    """Text with its line breaks."""
    return Markup("<br>").join(escape(line) for line in text.splitlines())


FILTERS = {
    "number": number,
    "loss": loss,
    "percent": percent,
    "points": points,
    "size": size,
    "energy": energy,
    "duration": duration,
    "when": when,
    "moment": moment,
    "clock": clock,
    "short": short,
    "plural": plural,
    "lines": lines,
    "ticked": ticked,
}
