"""Alembic's entry: runs the migrations on the connection, and inside the transaction, that `storage.engine` opened."""

from alembic import context

from storage.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
