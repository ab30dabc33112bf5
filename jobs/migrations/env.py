"""Alembic's entry: runs the migrations on the connection that `jobs.store` hands over, inside its transaction."""

from alembic import context

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit(
        "migrations run when the store is opened (jobs.store.Store.open); there is no other way to run them"
    )
context.configure(connection=connection, target_metadata=None)
context.run_migrations()
