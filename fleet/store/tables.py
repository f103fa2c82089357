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
    Column("stop_requested", Boolean, nullable=False),
    Column("driver_seen", Float, nullable=False),
    Column("revision", BigInteger, nullable=False),
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

devices = Table(
    "devices",
    metadata,
    _campaign(),
    Column("device", Text, primary_key=True),
    Column("fields", Text, nullable=False),
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
    Index("rounds_by_revision", "campaign", "revision"),
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
    Column("link_bits_per_second", BigInteger),
    Column("train_samples", Integer),
    Column("held_out_samples", Integer),
    Column("online", Boolean),
    Column("last_seen", Float),
)
