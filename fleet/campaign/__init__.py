"""Campaigns: configuration, who trains what, and a round as a state machine. No I/O."""

from fleet.campaign.config import CampaignConfig
from fleet.campaign.open_round import OpenRound, Taken
from fleet.campaign.planning import (
    Assignment,
    DeviceInfo,
    Members,
    RoundKind,
    RoundPlan,
    Step,
    by_name,
    choose_plan,
    deal_stages,
    eligible,
    filter_values,
    most_at_once,
    plan_round,
    round_seed,
    schedule,
    select_cohort,
)
from fleet.campaign.round_machine import GatewayPhase, Operation, RoundMachine, RoundOutcome
from fleet.campaign.sets import hide
from fleet.campaign.start_requests import (
    bounds_for_cohort,
    cohort_weight,
    is_open,
    most_samples,
    start_request,
)

__all__ = [
    "Assignment",
    "CampaignConfig",
    "DeviceInfo",
    "GatewayPhase",
    "Members",
    "OpenRound",
    "Operation",
    "RoundKind",
    "RoundMachine",
    "RoundOutcome",
    "RoundPlan",
    "Step",
    "Taken",
    "bounds_for_cohort",
    "by_name",
    "choose_plan",
    "cohort_weight",
    "deal_stages",
    "eligible",
    "filter_values",
    "hide",
    "is_open",
    "most_at_once",
    "most_samples",
    "plan_round",
    "round_seed",
    "schedule",
    "select_cohort",
    "start_request",
]
