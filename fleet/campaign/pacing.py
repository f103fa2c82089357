"""When the tasks of a round go out, where not all at once. Pure functions.

Devices of a site stand in one queue, in the order of the moments that they have drawn. Where the
site's traffic has a limit, a task goes out when the limit has let its own bytes pass behind those
of the devices before it: so no stretch of time has more than the limit lets through, and the next
round may begin as soon as this one has ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from fleet.campaign.config import CampaignConfig, TaskPace
from fleet.campaign.draws import DRAWS, draw
from fleet.errors import CampaignError
from fleet.protocol.fields import MAX_DELAY_SECONDS
from fleet.protocol.manifest import Manifest

HOUR = 3600.0


class Load(NamedTuple):
    """What a device's part in a round brings to its site's link."""

    device: str
    site: str
    bytes: int


def site_name(gateway: str, site: str | None) -> str:
    """Whose link a gateway uses: its site's, or its own where the site isn't known."""
    return f"gateway {gateway}" if site is None else f"site {site}"


def task_bytes(config: CampaignConfig, manifest: Manifest, plan: str, *, trains: bool) -> int:
    """Weights down, and for a round that trains the delta up, as large as it is taken to be."""
    bits = manifest.plan(plan).delta_values * config.delta_bits_per_value if trains else 0.0
    return manifest.weights.bytes + math.ceil(bits / 8)


def delays(config: CampaignConfig, number: int, loads: Iterable[Load]) -> dict[str, float]:
    """Seconds from the start of round `number` to each device's task.

    Raises `CampaignError` where a site's limit would hold a task back for longer than gateways do.
    """
    pace = config.pace
    drawn = sorted((draw("tinyfleet-delay", config.seed, number, one.device), one) for one in loads)
    free_at: dict[str, float] = {}
    found = {}
    for chance, one in drawn:
        at = pace.spread_seconds * chance / DRAWS
        if pace.site_bytes_per_hour is not None:
            at = max(at, free_at.get(one.site, 0.0)) + _seconds(pace, one.bytes)
            free_at[one.site] = at
        found[one.device] = math.ceil(1000 * at) / 1000
    for site, at in free_at.items():
        check_delay(pace, site, at)
    return found


def check_delay(pace: TaskPace, site: str, seconds: float) -> None:
    """Raises `CampaignError` where the last task of a site would go out later than gateways do."""
    if seconds > MAX_DELAY_SECONDS:
        raise CampaignError(
            f"pace: at {pace.site_bytes_per_hour:,} bytes an hour the last device of {site} would "
            f"get its task {seconds / 86_400:,.1f} days after its round's start, and "
            f"{MAX_DELAY_SECONDS // 86_400} are the most; raise site_bytes_per_hour, or ask fewer "
            f"devices"
        )


def longest_delay(pace: TaskPace, loads: Iterable[Load], asked: int) -> float:
    """How late the last task can go out, whichever `asked` of the devices are drawn."""
    queues = (sum(sorted(queue, reverse=True)[:asked]) for queue in _by_site(loads).values())
    return pace.spread_seconds + _seconds(pace, max(queues, default=0))


def likely_delay(pace: TaskPace, loads: Iterable[Load], share: float) -> float:
    """How late the last task goes out where each site has this share of its devices drawn.

    Raises `CampaignError` as `delays` does.
    """
    last = pace.spread_seconds
    for site, queue in _by_site(loads).items():
        at = _seconds(pace, share * sum(queue))
        check_delay(pace, site, at)
        last = max(last, at)
    return last


def _by_site(loads: Iterable[Load]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for one in loads:
        found.setdefault(one.site, []).append(one.bytes)
    return found


def _seconds(pace: TaskPace, count: float) -> float:
    return 0.0 if pace.site_bytes_per_hour is None else HOUR * count / pace.site_bytes_per_hour
