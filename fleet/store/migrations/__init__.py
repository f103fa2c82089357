"""How a database comes to have the tables of `fleet.store.tables`, step by step (Alembic)."""
