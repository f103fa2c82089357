"""How a device does with what it has learnt alone, and which of its models it works with."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Two more things that a device says of a round."""
    op.add_column("reports", sa.Column("correct_local", sa.Integer()))
    op.add_column("reports", sa.Column("kept", sa.Text()))
