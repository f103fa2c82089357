"""Whether something feeds a device from outside."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """One more thing that a gateway hears of a device."""
    op.add_column("registry", sa.Column("charging", sa.Boolean()))
