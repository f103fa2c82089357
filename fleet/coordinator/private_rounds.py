"""Privacy of a campaign's rounds: who has some left, what the next says, what comes of its sums."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from fleet.aggregation import PlanSum
from fleet.campaign import CampaignConfig, RoundKind, RoundPlan, Step, schedule
from fleet.campaign.privacy import (
    SPENT,
    Entropy,
    Privacy,
    RoundPrivacy,
    clip_after,
    clip_from_json,
    clip_to_json,
    round_privacy,
    with_noise,
)
from fleet.campaign.sets import SetOutcome
from fleet.errors import BudgetSpentError
from fleet.privacy import KEY_BYTES, NOT_COVERED, discrete_gaussian, rho_within
from fleet.protocol.manifest import Manifest
from fleet.store import Ledger, SqlStore

logger = logging.getLogger(__name__)


class PrivateRounds:
    """What a campaign's `privacy` means for its training rounds; without one, nothing."""

    def __init__(
        self,
        store: SqlStore,
        campaign: str,
        config: CampaignConfig,
        manifests: Mapping[str, Manifest],
    ) -> None:
        """All that is known of earlier rounds is in the store."""
        self._store = store
        self._ledger = Ledger(store)
        self._campaign = campaign
        self._config = config
        self._values = most_values(config, manifests)
        self._over: set[int] = set()

    def spent(self, step: Step, names: Collection[str]) -> dict[str, str]:
        """Which of these devices a step's round would take beyond their budget, with the reason."""
        privacy = self._config.privacy
        if privacy is None or privacy.budget_epsilon is None or step.kind is not RoundKind.TRAIN:
            return {}
        most = rho_within(privacy.budget_epsilon, privacy.delta)
        cost = self._round(privacy, step.number).rho
        spent = self._ledger.spent(names)
        return {name: SPENT for name in names if spent.get(name, 0.0) + cost > most}

    def are_enough(self, ready: int, spent: int) -> bool:
        """Whether a round can do without those of its devices that have spent their budget."""
        return not spent or ready - spent >= self._config.least_at_once

    def end_training(self, step: Step, why: BudgetSpentError) -> None:
        """A step's stage trains no more: what there is goes on to be scored and released.

        Raises `why` where nothing has been trained.
        """
        if self._store.latest_weights(self._campaign).version == 0:
            raise why
        self._over.add(step.stage)
        logger.warning("training ends: %s", why, extra={"campaign": self._campaign})

    def is_over(self, step: Step, begun: Collection[int]) -> bool:
        """Whether a step would train although training has ended, maybe under an earlier driver:
        `begun` are the rounds that there are, and one that is later ends it."""
        if self._config.privacy is None or step.kind is not RoundKind.TRAIN:
            return False
        if step.number in begun:
            return False
        return step.stage in self._over or step.number < max(begun, default=0)

    def cut_short(self, begun: Collection[int]) -> str:
        """Of a campaign that has come to its end, why it has trained less than it was to; else
        empty."""
        if self._config.privacy is None:
            return ""
        rounds = [one.number for one in schedule(self._config) if one.kind is RoundKind.TRAIN]
        trained = len([one for one in rounds if one in begun])
        if trained == len(rounds):
            return ""
        return f"trained {trained} of {len(rounds)} rounds: {SPENT}"

    def laid_on(self, plan: RoundPlan) -> RoundPlan:
        """The plan with clip and noise, where it trains."""
        privacy = self._config.privacy
        if privacy is None or plan.kind is not RoundKind.TRAIN:
            return plan
        return replace(plan, privacy=self._round(privacy, plan.number))

    def _round(self, privacy: Privacy, number: int) -> RoundPrivacy:
        """What a training round says, after those before it."""
        told = None
        if privacy.adaptive is not None:
            trained = [
                one.number
                for one in self._store.round_summaries(self._campaign)
                if one.kind == RoundKind.TRAIN.value and one.state == "done" and one.number < number
            ]
            if trained:
                told = self._store.round(self._campaign, max(trained)).result.get("privacy")
        clip = clip_from_json(privacy, told)
        masking = self._config.masking
        assert masking is not None, "privacy goes with masked deltas"
        return round_privacy(privacy, masking, clip, self._values)


def publish(
    privacy: Privacy,
    says: RoundPrivacy,
    parts: Sequence[Sequence[PlanSum]],
    sets: Iterable[SetOutcome],
    entropy: Entropy,
) -> tuple[list[list[PlanSum]], dict[str, Any]]:
    """What a rule may go on from, and what a round's result tells of its privacy.

    Whoever calls this stores what comes of it at once, and throws away what isn't stored: two
    results of one round would have two noises, whose mean has less.
    """
    counted = [one for one in sets if one.values is not None]
    norm_sum = sum(one.norm_sum for one in counted)
    if says.coordinator_variance:
        parts = with_noise(parts, says.coordinator_variance, entropy)
        noise = discrete_gaussian(entropy(KEY_BYTES), says.coordinator_variance, 1)
        norm_sum += int(noise[0])
    devices = sum(len(one.devices) for one in counted)
    clip = clip_after(privacy, says, norm_sum, devices)
    told = {**asdict(says), **clip_to_json(clip), "not_covered": NOT_COVERED}
    return [list(part) for part in parts], told


def most_values(config: CampaignConfig, manifests: Mapping[str, Manifest]) -> int:
    """Delta values of the largest update plan that the campaign may choose."""
    return max(
        (
            plan.delta_values
            for manifest in manifests.values()
            for plan in manifest.plans
            if config.allows(plan)
        ),
        default=0,
    )
