"""What is asked on the gateway's socket, and its answers (docs/specification/gateway.md).

Each operation has three parts: reading the request, a step on the logic's thread that takes no
longer whatever the number of devices, and making the answer, which is again the caller's time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fleet.errors import GatewayError
from fleet.gateway.access import AccessBook, read_entries
from fleet.gateway.actions import Action
from fleet.gateway.core import Core, Work
from fleet.gateway.devices import DeviceView
from fleet.gateway.frames import MAX_WAIT_SECONDS, SOCKET_VERSION
from fleet.gateway.instant import Instant
from fleet.gateway.refusals import DUPLICATE, LATE
from fleet.gateway.requests import StartRequest
from fleet.gateway.rounds import Report, Round, RoundKey, RoundState
from fleet.protocol import NO_DIGEST, ResetCause, charge_of, number_name, reason_name, state_name
from fleet.protocol.fields import ROUND

OPERATIONS = ("hello", "start", "collect", "cancel", "watch", "access", "trace")
MAX_WATCHED = 1000
PAGE = 500
"""Devices and rounds in a ``hello``, and reports in a ``collect``, at most."""
MAX_CURSOR = (1 << 63) - 1
_LONGEST_TRACEPARENT = 256


@dataclass(frozen=True)
class Question:
    """A request that has been read."""

    work: Work
    """For the logic's thread; its value is for ``answer``."""
    answer: Callable[[Any], dict[str, Any]]
    is_due: Callable[[], bool] = lambda: True
    """What it waits for, for ``wait_seconds``, before ``work``; any thread may ask."""
    wait_seconds: float = 0.0


def read_request(
    core: Core,
    operation: str,
    request: dict[str, Any],
    access: AccessBook | None = None,
    trace: Callable[[RoundKey, str], None] | None = None,
) -> Question:
    """What is asked; GatewayError names what is wrong with it.

    `access` is the book of the broker's users, where this gateway keeps one; `trace` is told where
    spans of a round belong, where this gateway writes some.
    """
    match operation:
        case "hello":
            cursor = _cursor(operation, request)
            return Question(
                lambda now: ([], _look_around(core, cursor, now)),
                lambda around: _hello(around, access),
            )
        case "start":
            start = StartRequest.parse(request)
            _ = start.content  # the caller's time, not the logic's
            return Question(
                lambda now: (core.logic.start(start, now), _state(core, start.key)), _started
            )
        case "cancel":
            key = _round_key(operation, request)
            return Question(
                lambda now: (core.logic.cancel(key, now), _state(core, key)), _cancelled
            )
        case "collect":
            key = _round_key(operation, request)
            after = _cursor(operation, request)
            part = request.get("part")
            if part is None:
                return Question(lambda now: ([], _look_at(core, key, after)), _collect)
            if type(part) is not int or not 0 <= part <= MAX_CURSOR:
                raise GatewayError(f"collect: part must be a number from 0 on, not {part!r}")
            return Question(lambda now: _take(core, key, after, part), _collect)
        case "watch":
            keys, arrivals = _watched(request), _arrivals(request)
            return Question(
                lambda now: ([], (_ended(core, keys), _arrived(core, arrivals))),
                _watch,
                lambda: (
                    _ended(core, keys) > 0
                    or any(core.logic.arrived(one) >= wanted for one, wanted in arrivals.items())
                ),
                _wait_seconds(request),
            )
        case "access":
            return _access(request, access)
        case "trace":
            return _trace(request, trace)
    raise GatewayError(f"no operation {operation!r}; there are {', '.join(OPERATIONS)}")


def _round_key(operation: str, request: dict[str, Any]) -> RoundKey:
    campaign, number = request.get("campaign"), request.get("round")
    try:
        raw = bytes.fromhex(campaign) if isinstance(campaign, str) else b""
    except ValueError:
        raw = b""
    if len(raw) != 8:
        raise GatewayError(f"{operation}: campaign must be 16 hex digits, not {campaign!r}")
    if type(number) is not int or not ROUND.least <= number <= ROUND.most:
        raise GatewayError(f"{operation}: round must be a number from 0 on, not {number!r}")
    return RoundKey(raw, number)


def _watched(request: dict[str, Any]) -> tuple[RoundKey, ...]:
    rounds = request.get("rounds")
    if not isinstance(rounds, list) or not 1 <= len(rounds) <= MAX_WATCHED:
        raise GatewayError(f"watch: rounds must be a list of 1 … {MAX_WATCHED} [campaign, round]")
    for one in rounds:
        if not isinstance(one, list) or len(one) != 2:
            raise GatewayError(f"watch: {one!r} isn't [campaign, round]")
    return tuple(
        _round_key("watch", {"campaign": campaign, "round": number}) for campaign, number in rounds
    )


def _arrivals(request: dict[str, Any]) -> dict[bytes, int]:
    wanted = request.get("arrivals", {})
    if not isinstance(wanted, dict) or len(wanted) > MAX_WATCHED:
        raise GatewayError(f"watch: arrivals must be a map of at most {MAX_WATCHED} campaigns")
    for number in wanted.values():
        if type(number) is not int or number < 1:
            raise GatewayError(f"watch: arrivals must be numbers from 1 on, not {number!r}")
    return {
        _round_key("watch", {"campaign": campaign, "round": 0}).campaign: number
        for campaign, number in wanted.items()
    }


def _wait_seconds(request: dict[str, Any]) -> float:
    wait = request.get("wait_seconds", 0)
    if type(wait) not in (int, float) or not 0 <= wait <= MAX_WAIT_SECONDS:
        raise GatewayError(f"watch: wait_seconds must be 0 … {MAX_WAIT_SECONDS:g}, not {wait!r}")
    return float(wait)


def _cursor(operation: str, request: dict[str, Any]) -> int:
    cursor = request.get("cursor", 0)
    if type(cursor) is not int or not 0 <= cursor <= MAX_CURSOR:
        raise GatewayError(
            f"{operation}: cursor must be 0 or what the last reply gave, not {cursor!r}"
        )
    return cursor


# ---- start and cancel ----------------------------------------------------------------


class _State(NamedTuple):
    state: RoundState
    refused: dict[str, str]


def _state(core: Core, key: RoundKey) -> _State:
    found = core.logic.rounds.get(key)
    return _State(found.state, dict(found.refused)) if found else _State(RoundState.UNKNOWN, {})


def _started(of: _State) -> dict[str, Any]:
    return {"state": str(of.state), "devices": of.refused}


def _cancelled(of: _State) -> dict[str, Any]:
    return {"state": str(of.state)}


# ---- access --------------------------------------------------------------------------


def _access(request: dict[str, Any], access: AccessBook | None) -> Question:
    cursor = _cursor("access", request)
    if access is None:
        return Question(_nothing, lambda _: {"cursor": cursor, "is_kept": False})
    page = read_entries(request.get("entries"))
    # Files are written in the caller's time: the logic has no part in this.
    return Question(_nothing, lambda _: {"cursor": access.apply(page, cursor), "is_kept": True})


def _trace(request: dict[str, Any], trace: Callable[[RoundKey, str], None] | None) -> Question:
    key, text = _round_key("trace", request), request.get("traceparent")
    if not isinstance(text, str) or len(text) > _LONGEST_TRACEPARENT:
        raise GatewayError("trace: traceparent must be a text as W3C's Trace Context has it")
    if trace is not None:
        trace(key, text)
    return Question(_nothing, lambda _: {"is_kept": trace is not None})


def _nothing(now: Instant) -> tuple[list[Action], None]:
    return [], None


# ---- hello ---------------------------------------------------------------------------


class _Around(NamedTuple):
    gateway: str
    fleet: str
    devices: list[DeviceView]
    rounds: list[tuple[RoundKey, str, dict[str, int]]]
    strays: dict[str, int]
    explanations: list[dict[str, Any]]
    cursor: int
    more: bool


def _look_around(core: Core, cursor: int, now: Instant) -> _Around:
    logic = core.logic
    page = logic.changes.since(cursor, PAGE)
    names = [key for key in page.keys if isinstance(key, str)]
    rounds = [logic.rounds[key] for key in page.keys if isinstance(key, RoundKey)]
    return _Around(
        core.settings.gateway,
        core.settings.fleet,
        list(logic.devices.views(names, now)),
        [(found.key, str(found.state), dict(found.counters)) for found in rounds],
        dict(logic.strays),
        core.store.explanations(None),
        page.cursor,
        page.more,
    )


def _hello(around: _Around, access: AccessBook | None) -> dict[str, Any]:
    kept = {} if access is None else {"access_cursor": access.cursor}
    return {
        **kept,
        "version": SOCKET_VERSION,
        "gateway": around.gateway,
        "fleet": around.fleet,
        "devices": [_device(view) for view in around.devices],
        "rounds": [
            {
                "campaign": key.campaign.hex(),
                "round": key.round,
                "state": state,
                **_not_counted_in(counters),
            }
            for key, state, counters in around.rounds
        ],
        "refused": around.strays,
        "explanations": around.explanations,
        "cursor": around.cursor,
        "more": around.more,
    }


def _device(view: DeviceView) -> dict[str, Any]:
    announce = view.announce
    percent, charging = charge_of((view.status or announce).battery)
    candidate = announce.candidate
    return {
        "device": view.name,
        "board": announce.board,
        "bundle": announce.bundle.hex(),
        "current": announce.current.hex(),
        "candidate": "" if candidate == NO_DIGEST else candidate.hex(),
        "lease": view.lease,
        "free_sram_bytes": announce.free_sram_bytes,
        "battery_percent": percent,
        "charging": charging,
        "link_bits_per_second": announce.link_bits_per_second,
        "train_samples": announce.train_samples,
        "held_out_samples": announce.held_out_samples,
        "reset_cause": number_name(ResetCause, announce.reset_cause),
        "fault_code": announce.fault_code,
        "keyring": announce.keyring,
        "online": view.online,
        "state": state_name(view.state),
        "stale": view.stale,
        "last_seen": view.last_seen,
        "seen_age_seconds": view.seen_age_seconds,
    }


# ---- watch ---------------------------------------------------------------------------


def _ended(core: Core, keys: tuple[RoundKey, ...]) -> int:
    return sum(core.logic.state(key) is not RoundState.RUNNING for key in keys)


def _arrived(core: Core, wanted: dict[bytes, int]) -> dict[str, int]:
    return {campaign.hex(): core.logic.arrived(campaign) for campaign in wanted}


def _watch(found: tuple[int, dict[str, int]]) -> dict[str, Any]:
    ended, arrived = found
    return {"ended": ended, **({"arrived": arrived} if arrived else {})}


# ---- collect -------------------------------------------------------------------------


class _Standing(NamedTuple):
    state: RoundState
    accepted: int
    declined: dict[int, int]
    counters: dict[str, int]
    reports: list[Report]
    explanations: list[dict[str, Any]]
    declined_by: dict[str, int]
    sums: dict[str, list[dict[str, Any]]] | None
    cursor: int
    more: bool
    part: int | None = None
    through: int = 0


def _look_at(core: Core, key: RoundKey, after: int, part: int | None = None) -> _Standing:
    found = core.logic.rounds.get(key)
    if found is None:
        return _Standing(RoundState.UNKNOWN, 0, {}, {}, [], [], {}, None, 0, False)
    tally = found.tally
    reports = core.store.reports(key, after, PAGE)
    # Reports are numbered from 1 without gaps.
    cursor = min(after, tally.accepted) + len(reports)
    more = cursor < tally.accepted
    return _Standing(
        found.state,
        tally.accepted,
        dict(tally.declined),
        dict(found.counters),
        reports,
        core.store.explanations(key),
        core.store.declined(key, PAGE) if _is_last_page(found, more) else {},
        core.store.sums(key, part) if _has_sums(found, more, part) else None,
        cursor,
        more,
        part,
        tally.accepted if part == found.part else found.closed_through,
    )


def _take(core: Core, key: RoundKey, after: int, part: int) -> tuple[list[Action], _Standing]:
    """A part, which is closed where it is told for the first time."""
    standing = _look_at(core, key, after, part)
    return core.logic.close_part(key, part), standing


def _is_last_page(found: Round, more: bool) -> bool:
    return found.state is RoundState.CLOSED and not more


def _has_sums(found: Round, more: bool, part: int | None) -> bool:
    """Parts that follow each other are told by number, and before the round's end, too."""
    if found.spec.fold.by_arrival:
        return part is not None and found.state is not RoundState.CANCELLED and not more
    return _is_last_page(found, more)


def _collect(standing: _Standing) -> dict[str, Any]:
    reply: dict[str, Any] = {
        "state": str(standing.state),
        "accepted": standing.accepted,
        **_not_counted_in(standing.counters),
        "declined": {reason_name(reason): n for reason, n in standing.declined.items()},
        "reports": [_report(one) for one in standing.reports],
        "explanations": standing.explanations,
        "cursor": standing.cursor,
        "more": standing.more,
    }
    if standing.state is RoundState.CLOSED and not standing.more:
        reply["declined_by"] = {
            device: reason_name(reason) for device, reason in standing.declined_by.items()
        }
    if standing.sums is not None:
        reply["sums"] = standing.sums
        if standing.part is not None:
            reply |= {"part": standing.part, "through": standing.through}
    return reply


def _report(one: Report) -> dict[str, Any]:
    return {
        "device": one.device,
        "plan": one.plan.hex(),
        "status": "accepted",
        "train_samples": one.train_samples,
        "train_steps": one.train_steps,
        "held_out": one.held_out_samples,
        "correct_before": one.correct_before,
        "correct_after": one.correct_after,
        "correct_local": one.correct_local,
        "kept": one.kept,
        "loss_before": one.loss_before_thousandths / 1000,
        "loss_after": one.loss_after_thousandths / 1000,
        "coded_bytes": one.coded_bytes,
        "payload_bytes": one.payload_bytes,
        "seconds": one.seconds,
        **({"nonce": one.nonce, "seals": one.seals} if one.nonce else {}),
    }


def _not_counted_in(counters: dict[str, int]) -> dict[str, Any]:
    refused = {kind: n for kind, n in counters.items() if kind not in (LATE, DUPLICATE)}
    return {
        "late": counters.get(LATE, 0),
        "duplicate": counters.get(DUPLICATE, 0),
        "refused": refused,
    }
