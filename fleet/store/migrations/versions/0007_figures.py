"""What pages show of rounds and of the audit log, found without reading all of it."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_GLANCE = ("campaign", "number", "kind", "state", "asked", "wanted", "accepted", "began", "ended")


def upgrade() -> None:
    """Figures of a round beside its plan and its result; of rounds of before there are none."""
    op.create_table(
        "figures",
        sa.Column("campaign", sa.Text(), sa.ForeignKey("campaigns.id"), primary_key=True),
        sa.Column("round", sa.Integer(), primary_key=True),
        sa.Column("text", sa.Text(), nullable=False),
    )
    op.create_index("rounds_at_a_glance", "rounds", _GLANCE)
    op.create_index("audit_by_who", "audit", ["who", "number"])
    op.create_index("audit_by_action", "audit", ["action", "number"])
