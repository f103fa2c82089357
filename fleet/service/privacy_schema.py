"""What the API takes and gives about privacy: what was spent, and what a campaign would cost."""

from __future__ import annotations

from fleet.service.schema import Answer


class CampaignSpent(Answer):
    """What a campaign has spent of a device's privacy, by itself and against its budget."""

    campaign: str
    name: str
    rounds: int
    rho: float
    """In zero-concentrated differential privacy, where costs add up."""
    delta: float
    """The campaign's."""
    epsilon: float
    """Of this campaign's rounds alone, at `delta`."""
    epsilon_of_all: float
    """Of all campaigns' rounds, at `delta`."""
    budget_epsilon: float | None
    budget_left: float | None
    """What `epsilon_of_all` has left of it."""
    last: float
    """When its last round began; in seconds since 1970."""


class DevicePrivacy(Answer):
    """What was spent of a device's privacy; ε at the least δ of its campaigns."""

    device: str
    rho: float
    delta: float
    epsilon: float
    campaigns: list[CampaignSpent]


class LedgerGap(Answer):
    """Rounds of this time (seconds since 1970) may be missing: the store was restored."""

    since: float
    until: float


class PrivacyPage(Answer):
    """A page of the ledger; `next` is where the one behind it begins, null on the last."""

    devices: list[DevicePrivacy]
    gaps: list[LedgerGap]
    not_covered: str
    """What no ε is about."""
    next: str | None = None


class ObserverCost(Answer):
    """What somebody may learn at most of a device that has a part in so many rounds."""

    observer: str
    sees: str
    round_rho: float
    round_epsilon: float
    epsilon: float
    """Of all rounds, at the campaign's δ."""


class PrivacyPlan(Answer):
    """What a campaign would cost of privacy, as things stand: nothing is done."""

    noise: str
    clip: int
    """Of the first round."""
    is_adaptive: bool
    noise_multiplier: float
    noise_variance: int
    """Of each device's share, or of what the coordinator adds."""
    least_devices: int
    delta: float
    rounds: int
    """Training rounds that a device may have a part in, all stages together."""
    expected_rounds: float
    """What a device of the first stage has on average, since cohorts are drawn."""
    observers: list[ObserverCost]
    budget_epsilon: float | None
    rounds_within_budget: int | None
    """Of a device that has spent nothing yet."""
    ready: int
    """Devices that could take part now…"""
    short: int
    """…those of them whose budget ends before the rounds do…"""
    spent: int
    """…and those that have none left for a single round."""
    cohort: int
    noise_to_clip: float
    """Length of the noise in a round's mean, in clips; what devices have learned is one at most."""
    promise: str
    """What ε means, to whom, and what it doesn't cover."""
    warnings: list[str]
