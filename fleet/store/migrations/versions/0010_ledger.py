"""What rounds have spent of their devices' privacy."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """A row for each device that a private round was for."""
    op.create_table(
        "ledger",
        sa.Column("campaign", sa.Text(), sa.ForeignKey("campaigns.id"), primary_key=True),
        sa.Column("round", sa.Integer(), primary_key=True),
        sa.Column("device", sa.Text(), primary_key=True),
        sa.Column("rho", sa.Float(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
    )
    op.create_index("ledger_by_device", "ledger", ["device", "campaign"])
