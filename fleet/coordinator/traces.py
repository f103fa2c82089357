"""The coordinator's spans of a campaign's rounds (docs/howto/traces.md).

round
├── gateway    one for each, with what that gateway itself writes below
└── apply      sums become the next weights, and are stored
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fleet.campaign import RoundPlan
from fleet.clock import Clock
from fleet.store import Store
from fleet.tracing import Place, Span, Traces, place_of_round, traceparent


class CampaignTraces:
    """Notes what a driver does, and writes it at a round's end; nothing without `traces`."""

    def __init__(self, traces: Traces | None, campaign: str, store: Store, clock: Clock) -> None:
        """Nothing is written yet."""
        self._traces = traces
        self._campaign = campaign
        self._store = store
        self._clock = clock
        self._heard: dict[tuple[int, str], float] = {}

    def asks(self, number: int, gateway: str) -> str:
        """A gateway is asked about a round: what tells it where its spans belong; or nothing."""
        if self._traces is None:
            return ""
        root = place_of_round(self._campaign, number)
        return traceparent(_of(root, gateway)) if self._traces.is_sampled(root) else ""

    def hears(self, number: int, gateway: str) -> None:
        """A gateway has answered about a round."""
        if self._traces is not None:
            self._heard[number, gateway] = self._clock.wall()

    @contextmanager
    def applying(self, numbers: Collection[int], about: Mapping[str, Any]) -> Iterator[None]:
        """Sums of these rounds become weights meanwhile; the span is in the newest one's trace.

        `about` is looked at when it is over.
        """
        begin = self._clock.wall() if self._traces is not None else 0.0
        yield
        if self._traces is None or not numbers:
            return
        newest_first = sorted(numbers, reverse=True)
        roots = [place_of_round(self._campaign, number) for number in newest_first]
        names = ("apply", str(about.get("version", "")))
        self._write("apply", roots[0].below(*names), roots[0], begin, about, links=roots[1:])

    def ended(self, plan: RoundPlan, result: Mapping[str, Any], state: str = "done") -> None:
        """A round's end is in the store."""
        if self._traces is None:
            return
        root = place_of_round(self._campaign, plan.number)
        begin, _ = self._store.round_times(self._campaign, plan.number)
        lost: Mapping[str, str] = result.get("lost", {})
        for gateway in plan.gateways():
            heard = self._heard.pop((plan.number, gateway), None)
            self._write(
                "gateway",
                _of(root, gateway),
                root,
                begin,
                {"gateway": gateway},
                end=None if gateway in lost else heard,
                error=lost.get(gateway, ""),
            )
        about = {
            "kind": plan.kind.value,
            "stage": plan.stage,
            "state": state,
            "asked": len(plan.assignments),
            "wanted": plan.wanted,
            "accepted": int(result.get("accepted", 0)),
        }
        self._write("round", root, None, begin, {**about, "round": plan.number})

    def _write(
        self,
        name: str,
        place: Place,
        parent: Place | None,
        begin: float,
        about: Mapping[str, Any],
        *,
        end: float | None = None,
        error: str = "",
        links: Sequence[Place] = (),
    ) -> None:
        assert self._traces is not None
        self._traces.write(
            Span(
                name,
                place,
                parent,
                begin,
                self._clock.wall() if end is None else end,
                {"campaign": self._campaign, **about},
                error,
                links,
            )
        )


def _of(root: Place, gateway: str) -> Place:
    return root.below("gateway", gateway)
