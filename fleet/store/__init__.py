"""Where campaigns are remembered: one interface, and a database behind it."""

from fleet.security.tokens import new_token
from fleet.store.accounts import (
    ROLES,
    Audit,
    AuditEntry,
    Idempotency,
    Remembered,
    Token,
    Tokens,
    without_secrets,
)
from fleet.store.base import (
    ENDED_STATES,
    LIVE_STATES,
    CampaignRecord,
    Lease,
    Part,
    RoundRecord,
    RoundSummary,
    Store,
    SupersededError,
    WeightsVersion,
)
from fleet.store.copying import copy_store, restore_store
from fleet.store.database import sqlite_url
from fleet.store.device_work import DeviceWork
from fleet.store.events import Event, Events
from fleet.store.figures import Distribution, RoundGlance, RoundGlances
from fleet.store.gateways import GatewayRecord, Gateways, Login, Logins
from fleet.store.ledger import Gap, Ledger, Spent
from fleet.store.models import BundleRecord, ModelRecord, Models, Version
from fleet.store.registry import Preview, Registry, Tally
from fleet.store.retention import Retention
from fleet.store.sql import SqlStore
from fleet.store.stages import Decision, Member, StageRecord, Stages
from fleet.store.terms import Candidate, Term
from fleet.store.timings import Timing, Timings
from fleet.store.webhooks import Webhook, Webhooks

__all__ = [
    "ENDED_STATES",
    "LIVE_STATES",
    "ROLES",
    "Audit",
    "AuditEntry",
    "BundleRecord",
    "CampaignRecord",
    "Candidate",
    "Decision",
    "DeviceWork",
    "Distribution",
    "Event",
    "Events",
    "Gap",
    "GatewayRecord",
    "Gateways",
    "Idempotency",
    "Lease",
    "Ledger",
    "Login",
    "Logins",
    "Member",
    "ModelRecord",
    "Models",
    "Part",
    "Preview",
    "Registry",
    "Remembered",
    "Retention",
    "RoundGlance",
    "RoundGlances",
    "RoundRecord",
    "RoundSummary",
    "Spent",
    "SqlStore",
    "StageRecord",
    "Stages",
    "Store",
    "SupersededError",
    "Tally",
    "Term",
    "Timing",
    "Timings",
    "Token",
    "Tokens",
    "Version",
    "Webhook",
    "Webhooks",
    "WeightsVersion",
    "copy_store",
    "new_token",
    "restore_store",
    "sqlite_url",
    "without_secrets",
]
