"""When a manager last looked at all jobs: a lease can be held by one whose rounds are stuck."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("manager_lease", sa.Column("round_at", sa.Double, nullable=True))


def downgrade() -> None:
    op.drop_column("manager_lease", "round_at")
