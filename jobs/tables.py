"""The tables of the store, as the newest migration leaves them."""

from __future__ import annotations

import sqlalchemy as sa

_METADATA = sa.MetaData()

JOBS = sa.Table(
    "jobs",
    _METADATA,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(63)),
    sa.Column("owner", sa.String(63)),
    sa.Column("parent", sa.String(63)),
    sa.Column("priority", sa.Integer),
    sa.Column("ranks", sa.Integer),
    sa.Column("cpus", sa.Double),
    sa.Column("gpus", sa.Double),
    sa.Column("name", sa.String(63)),
    sa.Column("labels", sa.JSON),
    sa.Column("spec", sa.JSON),
    sa.Column("state", sa.String(16)),
    sa.Column("reason", sa.JSON(none_as_null=True)),
    sa.Column("first_cause", sa.JSON(none_as_null=True)),
    sa.Column("fence", sa.Integer),
    sa.Column("attempts", sa.Integer),
    sa.Column("submission_id", sa.String(80)),
    sa.Column("created_at", sa.Double),
    sa.Column("updated_at", sa.Double),
    sa.Column("state_since", sa.Double),
    sa.Column("started_at", sa.Double),
    sa.Column("ended_at", sa.Double),
    sa.Column("likeness", sa.String(64)),
    sa.Column("estimate", sa.JSON(none_as_null=True)),
    sa.Column("memory_bytes", sa.BigInteger),
    sa.Column("stored_bytes", sa.BigInteger),
    sa.Column("measured_at", sa.Double),
)
TRANSITIONS = sa.Table(
    "transitions",
    _METADATA,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.String(63)),
    sa.Column("state", sa.String(16)),
    sa.Column("fence", sa.Integer),
    sa.Column("reason", sa.JSON(none_as_null=True)),
    sa.Column("time", sa.Double),
    sqlite_autoincrement=True,
)
IDEMPOTENCY = sa.Table(
    "idempotency_keys",
    _METADATA,
    sa.Column("owner", sa.String(63), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("digest", sa.String(64)),
    sa.Column("job_id", sa.String(63)),
    sa.Column("created_at", sa.Double),
)
TOKENS = sa.Table(
    "tokens",
    _METADATA,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("owner", sa.String(63)),
    sa.Column("scope", sa.String(16)),
    sa.Column("digest", sa.String(64)),
    sa.Column("created_at", sa.Double),
    sa.Column("expires_at", sa.Double),
    sa.Column("revoked_at", sa.Double),
)
AUDIT = sa.Table(
    "audit",
    _METADATA,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("time", sa.Double),
    sa.Column("owner", sa.String(63)),
    sa.Column("token_id", sa.String(16)),
    sa.Column("request_id", sa.String(64)),
    sa.Column("action", sa.String(32)),
    sa.Column("target", sa.String(63)),
)
PAST_USAGE = sa.Table(
    "past_usage",
    _METADATA,
    sa.Column("job_id", sa.String(63), primary_key=True),
    sa.Column("owner", sa.String(63)),
    sa.Column("created_at", sa.Double),
    sa.Column("cpu_s", sa.Double),
    sa.Column("gpu_s", sa.Double),
)
"""Of jobs that have been deleted."""
LEASE = sa.Table(
    "manager_lease",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("owner", sa.String(64)),
    sa.Column("fence", sa.Integer),
    sa.Column("expires_at", sa.Double),
    sa.Column("round_at", sa.Double),
)
