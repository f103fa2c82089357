"""Why a device was reset, and its last fault."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Two more things that a gateway hears of a device."""
    op.add_column("registry", sa.Column("reset_cause", sa.Text()))
    op.add_column("registry", sa.Column("fault_code", sa.Integer()))
