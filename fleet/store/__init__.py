"""Where campaigns are remembered: one interface, in memory and as an SQLite file."""

from fleet.store.base import (
    CAMPAIGN_STATES,
    ENDED_STATES,
    CampaignRecord,
    RoundRecord,
    Store,
    SupersededError,
    WeightsVersion,
)
from fleet.store.memory import MemoryStore
from fleet.store.sqlite import SqliteStore

__all__ = [
    "CAMPAIGN_STATES",
    "ENDED_STATES",
    "CampaignRecord",
    "MemoryStore",
    "RoundRecord",
    "SqliteStore",
    "Store",
    "SupersededError",
    "WeightsVersion",
]
