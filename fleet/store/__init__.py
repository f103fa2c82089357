"""Where campaigns are remembered: one interface, and a database behind it."""

from fleet.store.base import (
    CAMPAIGN_STATES,
    ENDED_STATES,
    CampaignRecord,
    Lease,
    RoundRecord,
    RoundSummary,
    Store,
    SupersededError,
    WeightsVersion,
)
from fleet.store.registry import Preview, Registry
from fleet.store.sql import SqlStore, sqlite_url

__all__ = [
    "CAMPAIGN_STATES",
    "ENDED_STATES",
    "CampaignRecord",
    "Lease",
    "Preview",
    "Registry",
    "RoundRecord",
    "RoundSummary",
    "SqlStore",
    "Store",
    "SupersededError",
    "WeightsVersion",
    "sqlite_url",
]
