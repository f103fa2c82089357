"""The fleet: which devices there are, where, and how they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fleet.dashboard.formats import plural
from fleet.dashboard.page import Context, Page, Screens
from fleet.dashboard.session import url
from fleet.errors import ServiceError
from fleet.service.schema import DeviceSummary, DeviceView, GatewayView

screens = Screens("fleet")
DEVICES_ON_A_PAGE = 50
SITES_AT_ONCE = 8
SILENT_SECONDS = 120.0
"""After which a gateway is taken for away: one that has nothing to do is asked every 15 s, and
answers within 20."""

STATES: Mapping[str, tuple[str, str, str]] = {
    "online": ("online", "good", "online && !retired"),
    "offline": ("offline", "quiet", "!online && !retired"),
    "unheard": ("never heard of", "warning", "!has(online) && !retired"),
    "retired": ("retired", "gone", "retired"),
}
"""State → how it is called, its colour, and the filter that means it. Devices that sleep are
offline most of the time: that alone is no trouble."""

EXAMPLES = (
    ("online && battery_percent >= 30", "have power and can be reached"),
    ('board == "stm32f746" && labels.room in ["north", "south"]', "a board in some rooms"),
    ("seen_age_seconds > 86400", "silent for a day"),
    ('device.startsWith("cow-")', "by name"),
    ("!has(labels.room)", "without a label"),
    ("train_samples < 10", "with too few samples to train"),
)


@dataclass(frozen=True)
class Part:
    """Devices that have something in common: `link` leads to them."""

    name: str
    count: int
    share: float
    link: str


@dataclass(frozen=True)
class Site:
    """A site with its devices by state (name, count, colour) and its gateways."""

    name: str
    count: int
    link: str
    states: Sequence[tuple[str, int, str]]
    gateways: Sequence[GatewayView]
    problems: Sequence[str]


def state_of(one: DeviceView) -> str:
    """A key of `STATES`."""
    if one.retired:
        return "retired"
    return {None: "unheard", True: "online", False: "offline"}[one.online]


def is_silent(one: GatewayView) -> bool:
    """Whether a gateway hasn't been heard of for long."""
    return one.seen_age_seconds is None or one.seen_age_seconds > SILENT_SECONDS


@screens.page("/fleet", "fleet.html", "Fleet")
def fleet(page: Page) -> Context:
    """Devices that match a filter: counted, and a page of them."""
    wanted, after = page.query.get("filter", "").strip(), page.query.get("after", "")
    gateways = page.api.gateways()
    context = {
        "filter": wanted,
        "after": after,
        "examples": EXAMPLES,
        "states": STATES,
        "state_of": state_of,
        "is_silent": is_silent,
        "problems": page.api.ready().problems,
    }
    try:
        devices = page.api.devices(wanted, after, DEVICES_ON_A_PAGE)
        summary = page.api.summarize_devices(wanted)
        # What a filter leaves out and why, where there is one.
        preview = page.api.preview_devices(wanted) if wanted else None
    except ServiceError as error:
        if error.status != 422:
            raise
        return {**context, "mistake": str(error), "summary": None}
    return {
        **context,
        "mistake": "",
        "summary": summary,
        "reasons": preview.reasons if preview else {},
        "page": devices,
        "parts": _states(summary, wanted),
        "boards": _boards(summary, wanted),
        "versions": _versions(summary, wanted),
        "sites": _sites(summary, gateways, wanted),
        "sites_at_once": SITES_AT_ONCE,
    }


def _narrowed(wanted: str, clause: str) -> str:
    """A link to those of the devices that a filter means for which more is true."""
    both = clause
    if wanted:
        both = f"{f'({wanted})' if '||' in wanted else wanted} && {clause}"
    return url("/fleet", filter=both)


def _states(summary: DeviceSummary, wanted: str) -> list[tuple[str, int, str, str]]:
    return [
        (name, summary.states.get(state, 0), kind, _narrowed(wanted, clause))
        for state, (name, kind, clause) in STATES.items()
    ]


def _boards(summary: DeviceSummary, wanted: str) -> list[Part]:
    return _parts(
        [
            (one.board or "not known yet", one.count, _is("board", one.board))
            for one in summary.boards
        ],
        wanted,
    )


def _versions(summary: DeviceSummary, wanted: str) -> list[Part]:
    found = [
        (
            one.version or (one.current[:10] if one.current else "not known yet"),
            one.count,
            _is("current", one.current),
        )
        for one in summary.versions
    ]
    if summary.other_versions:
        found.append(("others", summary.other_versions, ""))
    return _parts(found, wanted)


def _is(field: str, value: str | None) -> str:
    clause = f"!has({field})" if value is None else f'{field} == "{value}"'
    return f"{clause} && !retired"


def _parts(found: Sequence[tuple[str, int, str]], wanted: str) -> list[Part]:
    total = sum(count for _, count, _ in found)
    return [
        Part(name, count, count / total, _narrowed(wanted, clause) if clause else "")
        for name, count, clause in found
    ]


def _sites(summary: DeviceSummary, gateways: Sequence[GatewayView], wanted: str) -> list[Site]:
    """Those with problems first, then those with most devices."""
    by_site: dict[str, list[GatewayView]] = {}
    for one in gateways:
        if not one.retired:
            by_site.setdefault(one.site, []).append(one)
    devices = {one.site: one.states for one in summary.sites}
    # A filter means devices: sites where it means none are of no interest then.
    names = list(devices) if wanted else [*devices, *(by_site.keys() - devices.keys())]
    found = []
    for name in names:
        counts = devices.get(name, {})
        states = [
            (called, counts[at], kind) for at, (called, kind, _) in STATES.items() if at in counts
        ]
        there = by_site.get(name, [])
        problems = [f"{one.gateway}: {one.problem}" for one in there if one.problem]
        problems += [
            f"{one.gateway} was never heard of"
            if one.last_seen is None
            else f"{one.gateway} is silent"
            for one in there
            if is_silent(one)
        ]
        if not there:
            problems.append("no gateway: " + plural(sum(counts.values()), "device") + " unreached")
        found.append(
            Site(
                name,
                sum(counts.values()),
                _narrowed(wanted, f'site == "{name}"'),
                states,
                there,
                problems,
            )
        )
    return sorted(found, key=lambda one: (not one.problems, -one.count, one.name))
