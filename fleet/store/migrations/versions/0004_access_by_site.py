"""Who may log in is said per site: a name that moves on is taken away where it was."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table again with another key."""
    op.execute("CREATE TABLE access_before AS SELECT name, site, role, hash, revision FROM access")
    op.drop_table("access")
    op.create_table(
        "access",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text()),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", "site"),
    )
    op.create_index("access_by_revision", "access", ["site", "revision"])
    op.execute(
        "INSERT INTO access (name, site, role, hash, revision) "
        "SELECT name, site, role, hash, revision FROM access_before"
    )
    op.drop_table("access_before")
