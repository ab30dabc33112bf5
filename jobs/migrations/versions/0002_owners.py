"""Who owns a job, and what came before it; idempotency keys, tokens, and the record of who changed what."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("owner", sa.String(63), nullable=False, server_default="local"))
        jobs.add_column(sa.Column("parent", sa.String(63), nullable=True))
        jobs.add_column(sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
        jobs.add_column(sa.Column("ranks", sa.Integer, nullable=False, server_default="0"))
        jobs.add_column(sa.Column("cpus", sa.Double, nullable=False, server_default="0"))
        jobs.add_column(sa.Column("gpus", sa.Double, nullable=False, server_default="0"))
        jobs.create_index("ix_jobs_owner", ["owner"])
    _fill_in_what_each_reserves()
    op.create_table(
        "idempotency_keys",
        sa.Column("owner", sa.String(63), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(63), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("owner", sa.String(63), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=True),
        sa.Column("revoked_at", sa.Double, nullable=True),
    )
    op.create_table(
        "audit",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("owner", sa.String(63), nullable=False),
        sa.Column("token_id", sa.String(16), nullable=True),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("target", sa.String(63), nullable=False, index=True),
    )


def _fill_in_what_each_reserves() -> None:
    jobs = sa.table("jobs", *(sa.column(name) for name in ("seq", "ranks", "cpus", "gpus")), sa.column("spec", sa.JSON))
    connection = op.get_bind()
    for seq, spec in connection.execute(sa.select(jobs.c.seq, jobs.c.spec)).all():
        replicas = spec["replicas"]
        reserved = {
            "ranks": replicas["count"] * replicas.get("ranks", 1),
            "cpus": replicas["cpus"],
            "gpus": replicas["gpus"],
        }
        connection.execute(sa.update(jobs).where(jobs.c.seq == seq).values(**reserved))


def downgrade() -> None:
    op.drop_table("audit")
    op.drop_table("tokens")
    op.drop_table("idempotency_keys")
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_index("ix_jobs_owner")
        for name in ("gpus", "cpus", "ranks", "priority"):
            jobs.drop_column(name)
        jobs.drop_column("parent")
        jobs.drop_column("owner")
