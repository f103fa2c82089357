"""Campaigns: configuration, who trains what, and a round as a state machine. No I/O."""

from fleet.campaign.config import CampaignConfig
from fleet.campaign.planning import (
    Assignment,
    DeviceInfo,
    RoundKind,
    RoundPlan,
    bounds_for_cohort,
    choose_plan,
    cohort_weight,
    eligible,
    most_samples,
    plan_round,
    round_seed,
    schedule,
    select_cohort,
    start_request,
)
from fleet.campaign.round_machine import GatewayPhase, Operation, RoundMachine, RoundOutcome

__all__ = [
    "Assignment",
    "CampaignConfig",
    "DeviceInfo",
    "GatewayPhase",
    "Operation",
    "RoundKind",
    "RoundMachine",
    "RoundOutcome",
    "RoundPlan",
    "bounds_for_cohort",
    "choose_plan",
    "cohort_weight",
    "eligible",
    "most_samples",
    "plan_round",
    "round_seed",
    "schedule",
    "select_cohort",
    "start_request",
]
