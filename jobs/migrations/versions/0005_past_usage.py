"""What jobs had reserved that have been deleted since."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "past_usage",
        sa.Column("job_id", sa.String(63), primary_key=True),
        sa.Column("owner", sa.String(63), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("cpu_s", sa.Double, nullable=False),
        sa.Column("gpu_s", sa.Double, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("past_usage")
