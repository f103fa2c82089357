"""A round whose deltas leave it in parts while it runs: docs/specification/gateway.md, `arrivals`.

To what a `RoundMachine` does, this adds who has deltas that are in no version yet, and the taking
of a part:

    take ──▶ taken ──▶ store has the version ──▶ keep

A part that was asked for and isn't in the store yet is asked for again, whoever asks: a gateway
tells the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fleet.campaign.answers import CollectAnswer, StartAnswer
from fleet.campaign.round_machine import ENDED, GatewayPhase, RoundMachine

MOST_MISSES = 3
"""So many answers in a row without the part that was asked for end a gateway's round."""


class Taken(NamedTuple):
    """How far the store has a gateway's deltas of a round: so many parts, so many deltas."""

    parts: int = 0
    deltas: int = 0


@dataclass
class _Part:
    """The part of a gateway that comes next."""

    before: Taken
    wanted: bool = False
    misses: int = 0
    answer: CollectAnswer | None = None
    standing: CollectAnswer | None = None


class OpenRound(RoundMachine):
    """One round over several gateways; what is in `taken` was taken before."""

    def __init__(
        self,
        gateways: Iterable[str],
        now: float,
        deadline_seconds: float,
        grace_seconds: float,
        retry_seconds: float = 2.0,
        taken: Mapping[str, Taken] | None = None,
    ) -> None:
        """See `RoundMachine`."""
        names = sorted(gateways)
        super().__init__(names, now, deadline_seconds, grace_seconds, retry_seconds)
        before = taken or {}
        self._parts = {name: _Part(before.get(name, Taken())) for name in names}

    def untaken(self, name: str) -> int:
        """How many deltas a gateway has told of that are in no part yet."""
        one = self._gateways.get(name)
        if one is None or one.phase in ENDED:
            return 0
        part = self._parts[name]
        told = part.before.deltas if part.answer is None else part.answer.through
        return max(0, one.accepted - told)

    def is_free(self, name: str, now: float) -> bool:
        """Whether a gateway can be asked for a part: it isn't asked anything, and did answer."""
        one = self._gateways[name]
        is_asked = one.waiting is not None or now < one.not_before
        return one.phase is GatewayPhase.COLLECT and not is_asked

    @property
    def runs(self) -> bool:
        """Whether more deltas may come."""
        return any(one.phase not in ENDED and not one.rests for one in self._gateways.values())

    # Parts

    def take(self, name: str, now: float) -> None:
        """Ask a gateway for what has arrived; however long ago the round's deadline was."""
        self._parts[name].wanted = True
        self._gateways[name].rests = False
        self._give_up_at = max(self._give_up_at, now + self._grace_seconds)

    def part(self, name: str) -> int | None:
        """Which part the next question is to name, if any."""
        part = self._parts[name]
        return part.before.parts if part.wanted else None

    def taken(self, name: str) -> CollectAnswer | None:
        """A part that has been told: its sums, and the reports of its deltas alone."""
        part = self._parts[name]
        if part.answer is None:
            return None
        reports = list(self._gateways[name].reports.values())
        mine = reports[part.before.deltas : part.answer.through]
        accepted = part.answer.through - part.before.deltas
        return part.answer.model_copy(update={"reports": mine, "accepted": accepted})

    def is_asked(self, name: str) -> bool:
        """Whether a part is still to be told; a gateway that was given up tells none."""
        return self._parts[name].wanted and self._gateways[name].phase not in ENDED

    def keep(self, name: str) -> None:
        """A part is in the store."""
        part = self._parts[name]
        if part.answer is not None:
            part.before = Taken(part.before.parts + 1, part.answer.through)
            part.answer = None
            self._settle(name)

    # Answers

    def failed(self, name: str, error: str, now: float) -> None:
        """See `RoundMachine`; a version needn't wait for a part that can't be had now."""
        super().failed(name, error, now)
        self._parts[name].wanted = False
        self._settle(name)

    def reject(self, name: str, reason: str) -> None:
        """See `RoundMachine`."""
        super().reject(name, reason)
        self._parts[name] = _Part(self._parts[name].before)

    def collected(self, name: str, answer: CollectAnswer, now: float) -> None:
        """See `RoundMachine`; with the sums of the part where one was asked for."""
        one, part = self._ended_request(name, now), self._parts[name]
        if one.phase in ENDED or answer.cursor - len(answer.reports) > one.cursor:
            return  # what a driver before this one asked says nothing of what that had heard
        if answer.state == "unknown" and (part.before.parts or self._stopping):
            self.reject(name, "it has forgotten the round, of which parts were taken")
            return
        has_sums = answer.state in ("running", "closed")
        if part.wanted and has_sums and not _has_part(answer, part):
            # It may be the answer to what a driver before this one asked.
            part.misses += 1
            if part.misses == MOST_MISSES:
                self.reject(name, "it was asked for a part, and told no sums of it")
            return
        one.accepted = answer.accepted
        one.reports.update((report.device, report) for report in answer.reports)
        one.cursor = max(one.cursor, answer.cursor)
        one.told = part.standing = answer
        if answer.state == "unknown":
            part.wanted = False
            self._follow(one, answer.state, now)
            return
        one.phase = GatewayPhase.COLLECT
        if part.wanted:
            part.wanted, part.misses = False, 0
            part.answer = answer if _has_part(answer, part) else None
        self._settle(name)

    def cancelled(self, name: str, answer: StartAnswer, now: float) -> None:
        """See `RoundMachine`; it is asked once more how it stood."""
        one = self._ended_request(name, now)
        if one.phase not in ENDED:
            one.phase, one.is_stopped = GatewayPhase.COLLECT, True

    def _settle(self, name: str) -> None:
        """Where a gateway has told all of a round that has ended there, nothing is left to ask."""
        one, part = self._gateways[name], self._parts[name]
        standing = part.standing
        if one.phase in ENDED or standing is None or standing.more:
            return
        if standing.state not in ("closed", "cancelled"):
            return
        # What was cancelled gives no part any more.
        is_over = standing.state == "cancelled" or self._stopping
        is_over = is_over or one.accepted <= part.before.deltas
        if is_over and not part.wanted and part.answer is None:
            one.phase = (
                GatewayPhase.CLOSED if standing.state == "closed" else GatewayPhase.CANCELLED
            )
            one.answer = standing.model_copy(
                update={"reports": list(one.reports.values()), "sums": None}
            )
        else:
            one.rests = not part.wanted


def _has_part(answer: CollectAnswer, part: _Part) -> bool:
    return answer.part == part.before.parts and answer.sums is not None
