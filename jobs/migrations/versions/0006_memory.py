"""Of its node's memory what a rank reserves."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Of jobs that are there it is not known, which 0 says.
    op.add_column("jobs", sa.Column("memory_bytes", sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("jobs", "memory_bytes")
