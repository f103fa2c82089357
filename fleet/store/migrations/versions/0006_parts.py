"""What left a round while it ran, and which version it is in."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """A row for each part of a gateway."""
    op.create_table(
        "parts",
        sa.Column("campaign", sa.Text(), sa.ForeignKey("campaigns.id"), primary_key=True),
        sa.Column("round", sa.Integer(), primary_key=True),
        sa.Column("gateway", sa.Text(), primary_key=True),
        sa.Column("part", sa.Integer(), primary_key=True),
        sa.Column("through", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
    )
