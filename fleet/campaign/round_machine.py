"""One round over several gateways as a state machine without I/O.

Events go in (`answered`, `failed`, `stop`, the time), requests to send come out
(`requests`). Each gateway goes its own way:

    start ──▶ collect ──▶ closed
      ▲          │  └───▶ cancelled
      └─unknown──┘        lost (deadline and grace are over)

All requests are idempotent, so a coordinator that was killed begins again at `start`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


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
    answer: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    failures: int = 0


@dataclass(frozen=True)
class RoundOutcome:
    """What came of a round: closed gateways' answers, and the gateways that were lost."""

    answers: dict[str, dict[str, Any]]
    lost: dict[str, str]
    cancelled: bool


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

    def requests(self, now: float) -> list[tuple[str, Operation]]:
        """Requests due now; each counts as under way until `answered` or `failed`."""
        due = []
        for name, one in self._gateways.items():
            if one.phase in ENDED:
                continue
            if now >= self._give_up_at:
                one.phase = GatewayPhase.LOST
                one.error = one.error or "no answer until the deadline and the grace were over"
                continue
            if one.waiting is not None or now < one.not_before:
                continue
            if self._stopping:
                one.waiting = Operation.CANCEL
            else:
                one.waiting = Operation(one.phase.value)
            due.append((name, one.waiting))
        return due

    def answered(self, name: str, answer: Mapping[str, Any], now: float) -> None:
        """A gateway answered its request with `state` and, from a collect, the round so far."""
        one = self._gateways[name]
        operation, one.waiting = one.waiting, None
        one.failures, one.not_before, one.error = 0, now, ""
        if one.phase in ENDED:
            return
        state = answer.get("state")
        one.accepted = int(answer.get("accepted", one.accepted))
        if state == "closed" and "sums" in answer:
            one.phase, one.answer = GatewayPhase.CLOSED, dict(answer)
        elif state == "cancelled" or (operation is Operation.CANCEL and state == "unknown"):
            one.phase = GatewayPhase.CANCELLED
        elif state == "unknown":
            one.phase = GatewayPhase.START
            one.not_before = now + self._retry_seconds
        else:
            # running, or closed as seen by start and cancel: the sums are in a collect.
            one.phase = GatewayPhase.COLLECT
            if operation is Operation.CANCEL:
                # Closed before the cancel came: nothing is under way there any more.
                one.phase = GatewayPhase.CANCELLED

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
                name: one.answer
                for name, one in self._gateways.items()
                if one.phase is GatewayPhase.CLOSED
            },
            lost={
                name: one.error
                for name, one in self._gateways.items()
                if one.phase is GatewayPhase.LOST
            },
            cancelled=GatewayPhase.CANCELLED in phases
            or (self._stopping and GatewayPhase.LOST in phases),
        )
