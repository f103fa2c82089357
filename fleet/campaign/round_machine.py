"""One round over several gateways as a state machine without I/O.

Events go in (answers, `failed`, `stop`, the time), requests to send come out
(`requests`). Each gateway goes its own way:

    start ──▶ collect ──▶ closed
      ▲          │  └───▶ cancelled
      └─unknown──┘        lost (deadline and grace are over, or put in quarantine)

All requests are idempotent, so a coordinator that was killed begins again at `start`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from fleet.campaign.answers import CollectAnswer, Report, StartAnswer


class Operation(StrEnum):
    """What a gateway is asked."""

    HELLO = "hello"
    START = "start"
    COLLECT = "collect"
    CANCEL = "cancel"


class GatewayPhase(StrEnum):
    """Where a gateway stands in the round."""

    START = "start"
    COLLECT = "collect"
    CLOSED = "closed"
    CANCELLED = "cancelled"
    LOST = "lost"


ENDED = (GatewayPhase.CLOSED, GatewayPhase.CANCELLED, GatewayPhase.LOST)


@dataclass
class _Gateway:
    phase: GatewayPhase = GatewayPhase.START
    waiting: Operation | None = None
    not_before: float = 0.0
    accepted: int = 0
    not_started: dict[str, str] = field(default_factory=dict)
    # By device: a page that was asked for ahead may tell again what another has told.
    reports: dict[str, Report] = field(default_factory=dict)
    cursor: int = 0
    answer: CollectAnswer | None = None
    # The last answer, whatever it says.
    told: CollectAnswer | None = None
    error: str = ""
    failures: int = 0
    # There is nothing to ask it now.
    rests: bool = False
    # It has been told that the round is over.
    is_stopped: bool = False


@dataclass(frozen=True)
class RoundOutcome:
    """What came of a round.

    `answers`: the last one of each gateway that closed, or that told how it stood when an
    `OpenRound` was cancelled, with all pages of reports in it. `lost`: gateways without an end,
    with reasons. `not_started`: devices that got no task, with reasons.
    """

    answers: dict[str, CollectAnswer]
    lost: dict[str, str]
    cancelled: bool
    not_started: dict[str, str] = field(default_factory=dict)


class RoundMachine:
    """Drives one round; times are seconds on any monotonic clock."""

    def __init__(
        self,
        gateways: Iterable[str],
        now: float,
        deadline_seconds: float,
        grace_seconds: float,
        retry_seconds: float = 2.0,
    ) -> None:
        """All `gateways` have to be started; retries back off from `retry_seconds`, doubling."""
        self._gateways = {name: _Gateway() for name in sorted(gateways)}
        self._give_up_at = now + deadline_seconds + grace_seconds
        self._grace_seconds = grace_seconds
        self._retry_seconds = retry_seconds
        self._stopping = False

    @property
    def finished(self) -> bool:
        """True when every gateway has closed, cancelled or is lost."""
        return all(one.phase in ENDED for one in self._gateways.values())

    @property
    def accepted(self) -> dict[str, int]:
        """Accepted deltas so far, by gateway."""
        return {name: one.accepted for name, one in self._gateways.items()}

    def keeps(self, name: str, device: str) -> bool:
        """Whether a device that a gateway was given for the round may be at work for it still."""
        one = self._gateways[name]
        if one.phase in ENDED or one.rests:
            return False
        return device not in one.reports and device not in one.not_started

    @property
    def told(self) -> list[CollectAnswer]:
        """What each gateway that has told anything of the round told last."""
        return [one.told for one in self._gateways.values() if one.told is not None]

    @property
    def bytes_up(self) -> int:
        """Of the accepted deltas that gateways have told of, with all their messages."""
        each = (of.payload_bytes for one in self._gateways.values() for of in one.reports.values())
        return sum(each)

    @property
    def not_started(self) -> dict[str, str]:
        """Devices that got no task so far, with reasons."""
        return {
            device: why
            for one in self._gateways.values()
            for device, why in one.not_started.items()
        }

    def stop(self, now: float) -> None:
        """Cancel the round at all gateways that haven't closed it.

        A gateway that doesn't answer is waited for as long as the grace, not to the deadline:
        whoever stops a round of a week need not wait for a week.
        """
        if self._stopping or self.finished:
            return
        self._stopping = True
        self._give_up_at = min(self._give_up_at, now + self._grace_seconds)
        for one in self._gateways.values():
            one.not_before = 0.0
            one.rests = False

    def requests(self, now: float) -> list[tuple[str, Operation]]:
        """Requests due now; each counts as under way until it is answered or `failed`."""
        due = []
        for name, one in self._gateways.items():
            if one.phase in ENDED or one.rests:
                continue
            if now >= self._give_up_at:
                one.phase = GatewayPhase.LOST
                one.error = one.error or "no answer until the deadline and the grace were over"
                continue
            if one.waiting is not None or now < one.not_before:
                continue
            if self._stopping and not one.is_stopped:
                one.waiting = Operation.CANCEL
            else:
                one.waiting = Operation(one.phase.value)
            due.append((name, one.waiting))
        return due

    def cursor(self, name: str) -> int:
        """Where the reports that a gateway hasn't told yet begin."""
        return self._gateways[name].cursor

    def answer(self, name: str) -> CollectAnswer | None:
        """What a gateway that has closed the round answered, all pages of reports in it."""
        return self._gateways[name].answer

    def started(self, name: str, answer: StartAnswer, now: float) -> None:
        """A gateway answered a start."""
        one = self._ended_request(name, now)
        one.not_started = dict(answer.devices)
        self._follow(one, answer.state, now)

    def cancelled(self, name: str, answer: StartAnswer, now: float) -> None:
        """A gateway answered a cancel: nothing is under way there any more."""
        one = self._ended_request(name, now)
        if one.phase not in ENDED:
            one.phase = GatewayPhase.CANCELLED

    def collected(self, name: str, answer: CollectAnswer, now: float) -> None:
        """A gateway answered a collect, which began at `cursor`, with the round so far."""
        one = self._ended_request(name, now)
        if one.phase in ENDED:
            return
        one.accepted, one.told = answer.accepted, answer
        one.reports.update((report.device, report) for report in answer.reports)
        one.cursor = max(one.cursor, answer.cursor)
        if answer.state == "closed" and answer.sums is not None and not answer.more:
            one.phase = GatewayPhase.CLOSED
            one.answer = answer.model_copy(update={"reports": list(one.reports.values())})
        else:
            self._follow(one, answer.state, now)

    def _ended_request(self, name: str, now: float) -> _Gateway:
        one = self._gateways[name]
        one.waiting = None
        one.failures, one.not_before, one.error = 0, now, ""
        return one

    def _follow(self, one: _Gateway, state: str, now: float) -> None:
        if one.phase in ENDED:
            return
        if state == "cancelled":
            one.phase = GatewayPhase.CANCELLED
        elif state == "unknown":
            # It has forgotten the round, and with it what it had told of it.
            one.phase = GatewayPhase.START
            one.reports, one.cursor = {}, 0
            one.not_before = now + self._retry_seconds
        else:
            # Running, or closed with more to tell.
            one.phase = GatewayPhase.COLLECT

    def give_up(self, name: str, reason: str) -> None:
        """End the round without a gateway that hasn't ended it, whatever it may still say."""
        if self._gateways[name].phase not in ENDED:
            self.reject(name, reason)

    def reject(self, name: str, reason: str) -> None:
        """End the round without a gateway, also one whose answer is there: it can't be used."""
        self._gateways[name] = _Gateway(GatewayPhase.LOST, error=reason)

    def failed(self, name: str, error: str, now: float) -> None:
        """A request got no answer or an error; it is repeated later, backing off to 10 s."""
        one = self._gateways[name]
        one.waiting = None
        one.error = error
        one.failures += 1
        one.not_before = now + min(10.0, self._retry_seconds * 2 ** min(one.failures - 1, 4))

    def outcome(self) -> RoundOutcome:
        """What came of it; to be asked when `finished`."""
        phases = {one.phase for one in self._gateways.values()}
        return RoundOutcome(
            answers={
                name: one.answer for name, one in self._gateways.items() if one.answer is not None
            },
            lost={
                name: one.error
                for name, one in self._gateways.items()
                if one.phase is GatewayPhase.LOST
            },
            cancelled=GatewayPhase.CANCELLED in phases
            or (self._stopping and GatewayPhase.LOST in phases),
            not_started=self.not_started,
        )
