"""No number of a transition is given twice, though the newest are deleted: listeners go on after the last they saw."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _number_for_good(True)


def downgrade() -> None:
    _number_for_good(False)


def _number_for_good(yes: bool) -> None:
    if op.get_bind().dialect.name == "sqlite":  # PostgreSQL's sequences do so anyway
        with op.batch_alter_table("transitions", recreate="always", table_kwargs={"sqlite_autoincrement": yes}):
            pass
