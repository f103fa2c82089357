"""What privacy has cost and would cost: the ledger, and a campaign before it is started."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from fleet.campaign.config import CampaignConfig
from fleet.campaign.masking import set_sizes
from fleet.campaign.planning import RoundKind, most_at_once, schedule
from fleet.campaign.privacy import Privacy, RoundPrivacy, first_clip, round_privacy
from fleet.coordinator.private_rounds import most_values
from fleet.errors import ConflictError
from fleet.privacy import NOT_COVERED, epsilon, promise, rho_within
from fleet.protocol.manifest import Manifest
from fleet.service.base import MOST_ON_A_PAGE, PAGE, Actor, Base
from fleet.service.planning import could_take_part
from fleet.service.privacy_schema import (
    CampaignSpent,
    DevicePrivacy,
    LedgerGap,
    ObserverCost,
    PrivacyPage,
    PrivacyPlan,
)
from fleet.service.roles import Permission
from fleet.store import Ledger, Registry, Spent, Version


class PrivacyOperations(Base):
    """What can be asked about privacy."""

    def privacy_page(
        self,
        actor: Actor,
        device: str = "",
        campaign: str = "",
        after: str = "",
        limit: int = PAGE,
    ) -> PrivacyPage:
        """What was spent of devices' privacy: a page of all that there is something of."""
        self._allow(actor, Permission.READ)
        limit = min(limit, MOST_ON_A_PAGE)
        ledger = Ledger(self.store)
        names = ledger.devices(after, limit, campaign, device)
        found: dict[str, list[Spent]] = {}
        for one in ledger.of_devices(names):
            found.setdefault(one.device, []).append(one)
        return PrivacyPage(
            devices=[_device(name, of) for name, of in found.items()],
            gaps=[LedgerGap(since=one.since, until=one.until) for one in ledger.gaps()],
            not_covered=NOT_COVERED,
            next=names[-1] if len(names) == limit else None,
        )


def _device(name: str, spent: Sequence[Spent]) -> DevicePrivacy:
    rho = math.fsum(one.rho for one in spent)
    configs = {one.campaign: CampaignConfig.parse(one.config) for one in spent}
    deltas = [of.privacy.delta for of in configs.values() if of.privacy]
    return DevicePrivacy(
        device=name,
        rho=rho,
        delta=min(deltas),
        epsilon=epsilon(rho, min(deltas)),
        campaigns=[_campaign(one, configs[one.campaign], rho) for one in spent],
    )


def _campaign(one: Spent, config: CampaignConfig, rho: float) -> CampaignSpent:
    assert config.privacy is not None, "a campaign without it spends nothing"
    delta, budget = config.privacy.delta, config.privacy.budget_epsilon
    of_all = epsilon(rho, delta)
    return CampaignSpent(
        campaign=one.campaign,
        name=config.name,
        rounds=one.rounds,
        rho=one.rho,
        delta=delta,
        epsilon=epsilon(one.rho, delta),
        epsilon_of_all=of_all,
        budget_epsilon=budget,
        budget_left=None if budget is None else max(0.0, budget - of_all),
        last=one.last,
    )


def plan_privacy(
    config: CampaignConfig,
    version: Version,
    manifests: Mapping[str, Manifest],
    registry: Registry,
    ledger: Ledger,
) -> PrivacyPlan:
    """What the campaign would cost its devices; `ConflictError` where it has no `privacy`."""
    privacy = config.privacy
    if privacy is None or config.masking is None:
        raise ConflictError(
            f"campaign {config.name} has no privacy: whoever has its sums or {version.model}'s "
            "versions may learn of each device whatever they show"
        )
    values = most_values(config, manifests)
    says = round_privacy(privacy, config.masking, first_clip(privacy), values)
    _, ready, _ = could_take_part(config, manifests, registry)
    rounds = sum(1 for one in schedule(config) if one.kind is RoundKind.TRAIN)
    cohort = min(len(ready), most_at_once(config, len(ready)))
    asked = min(len(ready), math.ceil(cohort * (1 + config.over_selection)))
    smallest = min(Counter(one.plan for one in ready.values()).values(), default=0)
    sets = _sets(config, asked * smallest // max(1, len(ready)))
    spent = ledger.spent(ready)
    within = None
    short = out = 0
    if privacy.budget_epsilon is not None:
        most = rho_within(privacy.budget_epsilon, privacy.delta)
        within = math.floor(most / says.rho)
        left = [math.floor(max(0.0, most - spent.get(one, 0.0)) / says.rho) for one in ready]
        out = sum(1 for one in left if one < 1)
        short = sum(1 for one in left if 1 <= one < rounds)
    observers = _observers(privacy, says, rounds, sets, values)
    shares = 1 if privacy.noise == "coordinator" else max(cohort, says.least_devices)
    noise = math.sqrt(says.noise_variance * shares * values)
    return PrivacyPlan(
        noise=privacy.noise,
        clip=says.clip,
        is_adaptive=privacy.adaptive is not None,
        noise_multiplier=privacy.noise_multiplier,
        noise_variance=says.noise_variance,
        least_devices=says.least_devices,
        delta=privacy.delta,
        rounds=rounds,
        expected_rounds=rounds * asked / max(1, len(ready)),
        observers=observers,
        budget_epsilon=privacy.budget_epsilon,
        rounds_within_budget=within,
        ready=len(ready),
        short=short,
        spent=out,
        cohort=cohort,
        noise_to_clip=noise / (says.clip * max(1, cohort)),
        promise=promise(observers[0].epsilon, privacy.delta, privacy.noise, says.least_devices),
        warnings=_warnings(config, privacy, len(ready), cohort, rounds, within),
    )


def _sets(config: CampaignConfig, devices: int) -> int:
    """Sets of an update plan that add up in what is released, of a cohort's devices with it.

    A median of sets isn't a sum: what it releases may be one set's.
    """
    assert config.masking is not None
    rule, masking = config.aggregation.sets(), config.masking
    if rule.most > 1:
        return 1
    sizes = set_sizes(devices, masking.least_devices, masking.wanted_devices, rule)
    return max(1, len(sizes))


def _observers(
    privacy: Privacy, says: RoundPrivacy, rounds: int, sets: int, values: int
) -> list[ObserverCost]:
    def cost(observer: str, sees: str, rho: float) -> ObserverCost:
        return ObserverCost(
            observer=observer,
            sees=sees,
            round_rho=rho,
            round_epsilon=epsilon(rho, privacy.delta),
            epsilon=epsilon(rounds * rho, privacy.delta),
        )

    made = "released weights, made of the sums of all sets"
    if sets > 1 and privacy.noise == "devices":
        made = f"released weights, if all {sets} sets count; as the coordinator where one does"
    public = cost("public", made, says.public_rho(sets, values))
    if privacy.noise == "coordinator":
        return [public]
    own = f"each set's sum, with the noise of at least {says.least_devices} devices"
    return [cost("coordinator", own, says.rho), public]


def _warnings(
    config: CampaignConfig,
    privacy: Privacy,
    ready: int,
    cohort: int,
    rounds: int,
    within: int | None,
) -> list[str]:
    found = []
    if ready and privacy.delta >= 1 / ready:
        found.append(
            f"delta {privacy.delta:g} is no less than one in {ready} devices: it would let one "
            f"device's data be published; {ready**-1.1:.1g} is usual"
        )
    if cohort < config.least_at_once:
        found.append(
            f"{cohort} devices are too few to hide in each other, {config.least_at_once} are "
            "wanted (masking.least_devices): its rounds don't begin"
        )
    if config.aggregation.sets().most > 1 and privacy.noise == "devices":
        found.append(
            f"{config.aggregation.rule} takes several sets of a cohort, each with noise for "
            f"{config.masking.least_devices if config.masking else 0} devices; fedavg and large "
            "sets have the same privacy with less noise"
        )
    if privacy.budget_epsilon is None:
        found.append("without budget_epsilon nothing keeps a device from being asked for ever")
    elif within is not None and within < rounds:
        found.append(
            f"the budget is spent after {within} of {rounds} rounds: devices that were in each of "
            "them aren't asked any more, and where too few others are left training ends"
        )
    return found
