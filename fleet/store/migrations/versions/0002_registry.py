"""The registry: every device that an operator has added, and what was heard of it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "registry",
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("labels", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("added", sa.Float(), nullable=False),
        sa.Column("retired", sa.Boolean(), nullable=False),
        sa.Column("gateway", sa.Text()),
        sa.Column("board", sa.Text()),
        sa.Column("bundle", sa.Text()),
        sa.Column("current", sa.Text()),
        sa.Column("candidate", sa.Text()),
        sa.Column("lease", sa.BigInteger()),
        sa.Column("free_sram_bytes", sa.BigInteger()),
        sa.Column("battery_percent", sa.Integer()),
        sa.Column("link_bits_per_second", sa.BigInteger()),
        sa.Column("train_samples", sa.Integer()),
        sa.Column("held_out_samples", sa.Integer()),
        sa.Column("online", sa.Boolean()),
        sa.Column("last_seen", sa.Float()),
        sa.PrimaryKeyConstraint("device"),
    )
