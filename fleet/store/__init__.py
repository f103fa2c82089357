"""Where campaigns are remembered: one interface, and SQLite behind it (a file, or memory)."""

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
from fleet.store.sqlite import SqliteStore

__all__ = [
    "CAMPAIGN_STATES",
    "ENDED_STATES",
    "CampaignRecord",
    "Lease",
    "RoundRecord",
    "RoundSummary",
    "SqliteStore",
    "Store",
    "SupersededError",
    "WeightsVersion",
]
