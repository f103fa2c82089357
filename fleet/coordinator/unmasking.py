"""Before a masked round unmaskers have to be those that are meant; after it they are asked.

That may be done again at any time: which sets there are is in the store before the first question,
and an unmasker answers the same question alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fleet.campaign import RoundKind, RoundOutcome, RoundPlan
from fleet.campaign.sets import (
    FEW_DELIVERED,
    SPOILS_SETS,
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
from fleet.errors import CampaignError, MaskRefusedError, StoreError, UnmaskerError
from fleet.protocol.mask_requests import MaskMember, MaskRequest, UnmaskerFacts
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
        set_state: Callable[[str, str], None],
    ) -> None:
        """`unmaskers` by their public keys; `idle` lets some time pass, `set_state` says of the
        campaign in which state it is, and why."""
        self._context = context
        self._unmaskers = unmaskers
        self._is_stopped = is_stopped
        self._idle = idle
        self._set_state = set_state

    def wait_until_ready(self, keys: Sequence[bytes]) -> bool:
        """Until no unmasker of these keys says that it couldn't unmask a round; False where the
        operator stops.

        Raises `CampaignError` where one still does after `patience_seconds`: devices would spend
        energy, and their privacy's budget, for nothing. One that is away may be back when they have
        sent, and holds no round back.
        """
        context, masking = self._context, self._context.config.masking
        if masking is None:
            return True
        end = context.clock.monotonic() + masking.patience_seconds
        told, failures = "", 0
        while problem := self._problem(keys, masking.least_devices):
            if problem != told:
                told = problem
                logger.warning("waits: %s", problem, extra={"campaign": context.campaign})
                self._set_state("running", f"waits: {problem}")
            until = self._again_at(failures)
            failures += 1
            if until > end:
                raise CampaignError(f"no round could be unmasked: {problem}")
            if not self._rest(until):
                return False
        if told:
            self._set_state("running", "")
        return True

    def _problem(self, keys: Sequence[bytes], least_devices: int) -> str:
        """Why a round couldn't be unmasked, as things stand; empty where nobody says so."""
        for key in keys:
            unmasker = self._unmaskers.get(key)
            if unmasker is None:
                return _no_unmasker(key)
            try:
                facts = unmasker.facts()
            except (UnmaskerError, StoreError):
                continue
            if problem := self._is_another(key, facts):
                return problem
            if facts.least_devices > least_devices:
                return (
                    f"the unmasker {key.hex()[:16]}… answers for sets of {facts.least_devices} "
                    f"devices and more, the campaign's have {least_devices}; make "
                    "masking.least_devices more in another campaign, or least_devices less in "
                    "its unmasker.toml"
                )
            if facts.devices < least_devices:
                return (
                    f"the unmasker {key.hex()[:16]}… knows {facts.devices} devices, a set has "
                    f"{least_devices} at least; enrol them with `tinyfleet unmasker enrol`"
                )
        return ""

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
        masking = self._context.config.masking
        assert masking is not None
        end = self._context.clock.monotonic() + masking.patience_seconds
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
            until = self._again_at(failures)
            failures += 1
            if until > end:
                for number, one in enumerate(sets):
                    done.setdefault(number, not_counted(one, UNMASKER_AWAY))
                continue
            if not self._rest(until):
                return None

    def _again_at(self, failures: int) -> float:
        """When to ask again after so many failures before this one."""
        seconds = self._context.pace.retry * 2.0 ** min(failures, _MOST_DOUBLINGS)
        return self._context.clock.monotonic() + seconds

    def _rest(self, until: float) -> bool:
        """Let time pass; False where the operator stops the campaign."""
        while self._context.clock.monotonic() < until:
            if self._is_stopped():
                return False
            self._idle()
        return True

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
            try:
                masks[number, index] = self._masks(key, self._request(plan, of, index))
            except MaskRefusedError as error:
                return not_counted(of, error.kind, error.devices)
            except (UnmaskerError, StoreError) as error:
                about = {"campaign": self._context.campaign, "round": plan.number}
                logger.warning("round %d waits to be unmasked: %s", plan.number, error, extra=about)
                return None
        found = [masks[number, index] for index in range(len(plan.masks.keys))]
        return unmasked(of, found, parameters)

    def _masks(self, key: bytes, request: MaskRequest) -> Words:
        """What an unmasker answers; devices are to blame only where it is the one that was meant.

        To one with another key, or of another fleet, all seals are broken.
        """
        unmasker = self._unmaskers.get(key)
        if unmasker is None:
            raise UnmaskerError(_no_unmasker(key))
        try:
            return unmasker.masks(request)
        except MaskRefusedError as error:
            if error.kind in SPOILS_SETS and (problem := self._is_another(key, unmasker.facts())):
                raise UnmaskerError(problem) from None
            raise

    def _is_another(self, key: bytes, facts: UnmaskerFacts) -> str:
        """Why an unmasker isn't the one that is meant by a key; empty where it is."""
        keys = self._context.keys
        if facts.key != key:
            return (
                f"the unmasker that should have the key {key.hex()[:16]}… has "
                f"{facts.key.hex()[:16]}…; look at its url and key in [[unmaskers]], and after "
                "`tinyfleet unmasker rotate` sign a keyring with its new key"
            )
        if keys is not None and facts.fleet != keys.fleet:
            return (
                f"the unmasker {key.hex()[:16]}… is of fleet {facts.fleet}, not {keys.fleet}; "
                "look at fleet in its unmasker.toml"
            )
        return ""

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


def _no_unmasker(key: bytes) -> str:
    return f"the settings have no unmasker with the key {key.hex()}; add it to [[unmaskers]]"
