"""Between a masked round's end and its close: unmaskers are asked, and sums can be read.

It may be done again at any time: which sets there are is in the store before the first question,
and an unmasker answers the same question alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fleet.campaign import RoundKind, RoundOutcome, RoundPlan
from fleet.campaign.sets import (
    FEW_DELIVERED,
    UNMASKER_AWAY,
    MaskedSet,
    SetOutcome,
    Unmasked,
    differences,
    has_too_few,
    masked_sets,
    not_counted,
    unmasked,
)
from fleet.coordinator.round_runner import Context
from fleet.errors import MaskRefusedError, StoreError, UnmaskerError
from fleet.protocol.mask_requests import MaskMember, MaskRequest
from fleet.protocol.masking import SEAL_BYTES, Words
from fleet.store.answers import keep_answering
from fleet.unmasker.unmasker import Unmasker

logger = logging.getLogger(__name__)

_MOST_DOUBLINGS = 5
LATE_ANSWER = "its answer came after the sets of the round were unmasked"


class Unmasking:
    """The unmasking of one campaign's rounds."""

    def __init__(
        self,
        context: Context,
        unmaskers: Mapping[bytes, Unmasker],
        is_stopped: Callable[[], bool],
        idle: Callable[[], None],
    ) -> None:
        """`unmaskers` by their public keys; `idle` lets some time pass."""
        self._context = context
        self._unmaskers = unmaskers
        self._is_stopped = is_stopped
        self._idle = idle

    def run(self, plan: RoundPlan, outcome: RoundOutcome) -> Unmasked | None:
        """The sums of a round's sets; None where the operator stopped the campaign meanwhile.

        Which sets count nothing is said in each; the round goes on with the others.
        """
        assert plan.masks is not None
        context = self._context
        counted = keep_answering(
            context.store, context.campaign, context.driver, plan.number, outcome.answers
        )
        late = outcome.answers.keys() - set(counted)
        outcome = replace(
            outcome,
            answers={name: one for name, one in outcome.answers.items() if name not in late},
            lost={**outcome.lost, **dict.fromkeys(late, LATE_ANSWER)},
        )
        sets = masked_sets(plan, outcome.answers)
        found = self._ask(plan, sets)
        if found is None:
            return None
        for one in found:
            if one.why:
                logger.warning(
                    "round %d: the set of %d devices of part %d counts nothing: %s%s",
                    plan.number,
                    len(one.devices),
                    one.part,
                    one.why,
                    f" ({', '.join(one.guilty)})" if one.guilty else "",
                    extra={"campaign": context.campaign, "round": plan.number},
                )
        return Unmasked(outcome, tuple(found), tuple(differences(found, self._before(plan))))

    def _ask(self, plan: RoundPlan, sets: Sequence[MaskedSet]) -> list[SetOutcome] | None:
        assert plan.masks is not None
        clock, pace = self._context.clock, self._context.pace
        masking = self._context.config.masking
        assert masking is not None
        end = clock.monotonic() + masking.patience_seconds
        done: dict[int, SetOutcome] = {}
        masks: dict[tuple[int, int], Words] = {}
        failures = 0
        while True:
            for number, one in enumerate(sets):
                if self._is_stopped():
                    return None
                outcome = done.get(number) or self._unmask(plan, one, number, masks)
                if outcome is None:
                    break  # the next one would wait for the same unmasker
                done[number] = outcome
            if len(done) == len(sets):
                return [done[number] for number in range(len(sets))]
            wait = clock.monotonic() + pace.retry * 2 ** min(failures, _MOST_DOUBLINGS)
            failures += 1
            if wait > end:
                for number, one in enumerate(sets):
                    done.setdefault(number, not_counted(one, UNMASKER_AWAY))
                continue
            while clock.monotonic() < wait:
                if self._is_stopped():
                    return None
                self._idle()

    def _unmask(
        self, plan: RoundPlan, of: MaskedSet, number: int, masks: dict[tuple[int, int], Words]
    ) -> SetOutcome | None:
        """What came of a set; None where an unmasker has to be asked again."""
        assert plan.masks is not None
        parameters = plan.masks.parameters
        if has_too_few(of, parameters):
            return not_counted(of, FEW_DELIVERED)
        for index, key in enumerate(plan.masks.keys):
            if (number, index) in masks:
                continue
            unmasker = self._unmaskers.get(key)
            try:
                if unmasker is None:
                    raise UnmaskerError(f"the settings have no unmasker with the key {key.hex()}")
                request = self._request(plan, of, index)
                masks[number, index] = unmasker.masks(request)
            except MaskRefusedError as error:
                return not_counted(of, error.kind, error.devices)
            except (UnmaskerError, StoreError) as error:
                about = {"campaign": self._context.campaign, "round": plan.number}
                logger.warning("round %d waits to be unmasked: %s", plan.number, error, extra=about)
                return None
        found = [masks[number, index] for index in range(len(plan.masks.keys))]
        return unmasked(of, found, parameters)

    def _request(self, plan: RoundPlan, of: MaskedSet, index: int) -> MaskRequest:
        assert plan.masks is not None
        start = index * SEAL_BYTES
        return MaskRequest(
            bytes.fromhex(self._context.campaign),
            plan.on_wire,
            bytes.fromhex(of.plan),
            bytes.fromhex(plan.weights),
            len(of.values),
            plan.masks.parameters,
            tuple(
                MaskMember(one.device, one.nonce, one.seals[start : start + SEAL_BYTES])
                for one in of.members
            ),
        )

    def _before(self, plan: RoundPlan) -> list[tuple[str, list[str]]]:
        """The sets of the training round before that were unmasked: update plan and devices."""
        store, campaign = self._context.store, self._context.campaign
        earlier = [
            one.number
            for one in store.round_summaries(campaign)
            if one.kind == RoundKind.TRAIN.value
            and one.state == "done"
            and one.number < plan.number
        ]
        if not earlier:
            return []
        record = store.round(campaign, max(earlier))
        then = RoundPlan.from_json(record.plan)
        missing = set(record.result.get("missing", ()))
        members: dict[tuple[str, int], list[str]] = {}
        for one in then.assignments:
            if one.device not in missing:
                members.setdefault((one.plan, one.part), []).append(one.device)
        counted = [
            (str(one["plan"]), int(one["part"]))
            for one in record.result.get("sets", ())
            if one["counted"]
        ]
        return [(place[0], members.get(place, [])) for place in counted]
