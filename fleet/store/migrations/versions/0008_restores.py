"""Stores that were restored, and the numbers by which rounds are known outside of the store."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Nothing was restored so far: every round is known by its own number."""
    op.create_table(
        "restores",
        sa.Column("floor", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("backed_up", sa.Float(), nullable=False),
    )
    op.add_column(
        "rounds", sa.Column("on_wire", sa.BigInteger(), nullable=False, server_default="0")
    )
    op.execute("UPDATE rounds SET on_wire = number")
