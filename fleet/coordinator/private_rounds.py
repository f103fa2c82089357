"""Privacy of a campaign's rounds: who has some left, and what the next round says."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from fleet.campaign import CampaignConfig, RoundKind, RoundPlan, Step
from fleet.campaign.privacy import (
    SPENT,
    Privacy,
    RoundPrivacy,
    clip_from_json,
    round_privacy,
)
from fleet.errors import CampaignError
from fleet.privacy import rho_within
from fleet.protocol import fields
from fleet.protocol.manifest import Manifest
from fleet.store import Ledger, SqlStore


class PrivateRounds:
    """What a campaign's `privacy` means for its training rounds; without one, nothing."""

    def __init__(
        self,
        store: SqlStore,
        campaign: str,
        config: CampaignConfig,
        manifests: Mapping[str, Manifest],
        value_bound: int = fields.uint16.most,
    ) -> None:
        """All that is known of earlier rounds is in the store.

        ``value_bound`` is the largest magnitude of a masked value.
        """
        self._store = store
        self._ledger = Ledger(store)
        self._campaign = campaign
        self._config = config
        self._value_bound = value_bound
        self._values = most_values(config, manifests)

    def spent(self, step: Step, names: Collection[str]) -> dict[str, str]:
        """Which of these devices a step's round would take beyond their budget, with the reason."""
        privacy = self._config.privacy
        if privacy is None or privacy.budget_epsilon is None or step.kind is not RoundKind.TRAIN:
            return {}
        most = rho_within(privacy.budget_epsilon, privacy.delta)
        cost = self._round(privacy, step.number).rho
        spent = self._ledger.spent(names)
        return {name: SPENT for name in names if spent.get(name, 0.0) + cost > most}

    def laid_on(self, plan: RoundPlan) -> RoundPlan:
        """The plan with clip and noise; `CampaignError` where too few devices would take part."""
        privacy = self._config.privacy
        if privacy is None or plan.kind is not RoundKind.TRAIN:
            return plan
        if len(plan.assignments) < privacy.least_devices:
            spent = sum(1 for why in plan.skipped.values() if why == SPENT)
            raise CampaignError(
                f"round {plan.number}: {len(plan.assignments)} devices can take part, "
                f"privacy.least_devices wants {privacy.least_devices}"
                + (f"; {spent} have spent their budget" if spent else "")
            )
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
        return round_privacy(privacy, clip, self._value_bound, self._values)


def most_values(config: CampaignConfig, manifests: Mapping[str, Manifest]) -> int:
    """Delta values of the largest update plan that the campaign may choose."""
    return max(
        (
            plan.delta_values
            for manifest in manifests.values()
            for plan in manifest.plans
            if not config.plans or plan.id in config.plans or plan.name in config.plans
        ),
        default=0,
    )
