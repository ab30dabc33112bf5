"""What a job was said to take, and which jobs have steps like its own."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("likeness", sa.String(64), nullable=True))
    op.add_column("jobs", sa.Column("estimate", sa.JSON(none_as_null=True), nullable=True))
    op.create_index("jobs_likeness", "jobs", ["likeness", "seq"])


def downgrade() -> None:
    op.drop_index("jobs_likeness", "jobs")
    op.drop_column("jobs", "estimate")
    op.drop_column("jobs", "likeness")
