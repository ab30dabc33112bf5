"""How many bytes a job has left in the storage, and when that was last looked at."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("stored_bytes", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("measured_at", sa.Double))  # null: not yet


def downgrade() -> None:
    op.drop_column("jobs", "measured_at")
    op.drop_column("jobs", "stored_bytes")
