"""The tables of a campaign store, as SQLAlchemy sees them.

A database gets them by the migrations (`migrations`): a change here needs one there, and a test
holds the two together.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()

# SQLite counts rows only in a column that is exactly INTEGER.
_Counted = BigInteger().with_variant(Integer(), "sqlite")


def _campaign() -> Column[str]:
    return Column("campaign", Text, ForeignKey("campaigns.id"), primary_key=True)


campaigns = Table(
    "campaigns",
    metadata,
    # Campaigns are listed in the order in which they were created.
    Column("position", _Counted, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("config", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("driver", Text, nullable=False),
    Column("driver_seen", Float, nullable=False),
    Column("revision", BigInteger, nullable=False),
    # What an operator wants of it: `pause`, `stop`, `roll-back`, or nothing.
    Column("wish", Text, nullable=False, server_default=""),
    # What it waits for somebody to decide: `begin:STAGE`, `gate:STAGE`, or nothing.
    Column("waiting", Text, nullable=False, server_default=""),
    Column("author", Text, nullable=False, server_default=""),
    Column("created", Float, nullable=False, server_default="0"),
    # The version of a model that it began with, and the one that came of it.
    Column("base", Text, nullable=False, server_default=""),
    Column("made", Text, nullable=False, server_default=""),
)

stages = Table(
    "stages",
    metadata,
    _campaign(),
    Column("stage", Integer, primary_key=True),
    Column("outcome", Text, nullable=False),
    Column("verdicts", Text, nullable=False),
    Column("judged", Float, nullable=False),
)

decisions = Table(
    "decisions",
    metadata,
    _campaign(),
    # As in `campaigns.waiting`.
    Column("what", Text, primary_key=True),
    Column("who", Text, nullable=False),
    Column("at", Float, nullable=False),
)

members = Table(
    "members",
    metadata,
    _campaign(),
    Column("device", Text, primary_key=True),
    Column("stage", Integer, nullable=False),
    # Digest of the weights that were current on it when it joined.
    Column("before", Text, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("not_before", Float, nullable=False),
)

manifests = Table(
    "manifests",
    metadata,
    _campaign(),
    Column("bundle", Text, primary_key=True),
    Column("text", Text, nullable=False),
)

weights = Table(
    "weights",
    metadata,
    _campaign(),
    Column("version", Integer, primary_key=True),
    Column("sha256", Text, nullable=False),
    Column("blob", LargeBinary, nullable=False),
    Column("master", LargeBinary, nullable=False),
    Column("rule_state", LargeBinary, nullable=False),
)

# Which deltas are in which version, where they left a round while it ran: parts of a gateway, and
# the number of the last delta in each.
parts = Table(
    "parts",
    metadata,
    _campaign(),
    Column("round", Integer, primary_key=True),
    Column("gateway", Text, primary_key=True),
    Column("part", Integer, primary_key=True),
    Column("through", Integer, nullable=False),
    Column("version", Integer, nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    _campaign(),
    Column("number", Integer, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("plan", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("result", Text, nullable=False),
    Column("asked", Integer, nullable=False),
    Column("wanted", Integer, nullable=False),
    Column("accepted", Integer, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("began", Float, nullable=False),
    Column("ended", Float),
    # Digest of what its devices begin with.
    Column("weights", Text, nullable=False, server_default=""),
    # The number by which gateways and devices know it.
    Column("on_wire", BigInteger, nullable=False, server_default="0"),
    Index("rounds_by_revision", "campaign", "revision"),
    Index("rounds_by_weights", "weights"),
    # All that a glance needs: plan and result of very many devices are megabytes before the rest.
    Index(
        "rounds_at_a_glance",
        *("campaign", "number", "kind", "state", "asked", "wanted", "accepted", "began", "ended"),
    ),
)

# What rounds have spent of their devices' privacy. Nothing is ever taken out of it.
ledger = Table(
    "ledger",
    metadata,
    _campaign(),
    Column("round", Integer, primary_key=True),
    Column("device", Text, primary_key=True),
    # In zero-concentrated differential privacy, where costs add up.
    Column("rho", Float, nullable=False),
    Column("at", Float, nullable=False),
    Index("ledger_by_device", "device", "campaign"),
)

figures = Table(
    "figures",
    metadata,
    # What onlookers are told of a round, as JSON of a few kilobytes.
    _campaign(),
    Column("round", Integer, primary_key=True),
    Column("text", Text, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("device", Text, primary_key=True),
    Column("campaign", Text, ForeignKey("campaigns.id"), nullable=False),
    Column("number", BigInteger, nullable=False),
)

quarantines = Table(
    "quarantines",
    metadata,
    _campaign(),
    Column("gateway", Text, primary_key=True),
    Column("reason", Text, nullable=False),
)

reports = Table(
    "reports",
    metadata,
    _campaign(),
    Column("round", Integer, primary_key=True),
    Column("device", Text, primary_key=True),
    Column("gateway", Text),
    Column("plan", Text),
    Column("plan_reason", Text),
    Column("status", Text),
    Column("train_samples", Integer),
    Column("train_steps", BigInteger),
    Column("held_out", Integer),
    Column("correct_before", Integer),
    Column("correct_after", Integer),
    Column("loss_before", Float),
    Column("loss_after", Float),
    Column("coded_bytes", BigInteger),
    Column("payload_bytes", BigInteger),
    Column("seconds", Float),
    # With what the device has trained alone; and which of its models its application works with.
    # Both are null where it has none of its own.
    Column("correct_local", Integer),
    Column("kept", Text),
    Index("reports_by_device", "device"),
)

registry = Table(
    "registry",
    metadata,
    Column("device", Text, primary_key=True),
    Column("site", Text, nullable=False),
    Column("labels", JSON().with_variant(JSONB(), "postgresql"), nullable=False),
    Column("added", Float, nullable=False),
    Column("retired", Boolean, nullable=False),
    # What its gateway has heard of it; all of it is null until then.
    Column("gateway", Text),
    Column("board", Text),
    Column("bundle", Text),
    Column("current", Text),
    Column("candidate", Text),
    Column("lease", BigInteger),
    Column("free_sram_bytes", BigInteger),
    Column("battery_percent", Integer),
    Column("charging", Boolean),
    Column("reset_cause", Text),
    Column("fault_code", Integer),
    Column("link_bits_per_second", BigInteger),
    Column("train_samples", Integer),
    Column("held_out_samples", Integer),
    Column("online", Boolean),
    Column("last_seen", Float),
)

access = Table(
    "access",
    metadata,
    # Of a broker: devices and gateways with the hash of their password, null when it is taken away.
    # Whoever has moved on stays so at the site where they were: it may not have heard of it yet.
    Column("name", Text, primary_key=True),
    Column("site", Text, primary_key=True),
    Column("role", Text, nullable=False),
    Column("hash", Text),
    Column("revision", BigInteger, nullable=False),
    Index("access_by_revision", "site", "revision"),
)

gateways = Table(
    "gateways",
    metadata,
    Column("gateway", Text, primary_key=True),
    Column("site", Text, nullable=False),
    Column("added", Float, nullable=False),
    Column("retired", Boolean, nullable=False),
    Column("last_seen", Float),
    Column("problem", Text, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("model", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("created", Float, nullable=False),
)

bundles = Table(
    "bundles",
    metadata,
    Column("bundle", Text, primary_key=True),
    Column("model", Text, ForeignKey("models.model"), nullable=False),
    Column("board", Text, nullable=False),
    Column("manifest", Text, nullable=False),
    Column("created", Float, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("model", Text, ForeignKey("models.model"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("sha256", Text, nullable=False),
    Column("blob", LargeBinary, nullable=False),
    Column("parent", Integer),
    # Where it came from: a campaign's id, or who imported it.
    Column("source", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created", Float, nullable=False),
    Index("versions_by_digest", "sha256"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("token", Text, primary_key=True),
    Column("who", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("revoked", Boolean, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("number", _Counted, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("who", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("object", Text, nullable=False),
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),
    Column("why", Text, nullable=False),
    Index("audit_by_object", "object", "number"),
    Index("audit_by_who", "who", "number"),
    Index("audit_by_action", "action", "number"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("who", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("body", Text, nullable=False),
    Column("at", Float, nullable=False),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("webhook", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("secret", Text, nullable=False),
    Column("events", Text, nullable=False),
    # Up to where events were delivered, and what went wrong with the last.
    Column("cursor", BigInteger, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("not_before", Float, nullable=False),
    Column("problem", Text, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("number", _Counted, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("kind", Text, nullable=False),
    Column("campaign", Text, nullable=False),
    Column("data", Text, nullable=False),
    Index("events_by_campaign", "campaign", "number"),
)

restores = Table(
    "restores",
    metadata,
    # Numbers up to here may have been given before the store was restored, by what it knows no
    # more of.
    Column("floor", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    # When the backup was made.
    Column("backed_up", Float, nullable=False),
)

terms = Table(
    "terms",
    metadata,
    # Who acts for the whole fleet: `service`, `driver`. The number only grows and fences off
    # others.
    Column("role", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("beat", BigInteger, nullable=False),
)
