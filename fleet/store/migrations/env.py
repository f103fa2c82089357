"""What Alembic runs: the steps that a database lacks, over a connection that it is given."""

from alembic import context

from fleet.store.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
