"""Deletions that can be undone, and names of models and evaluations."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_DELETABLE = ("models", "sensitivity_profiles", "plans", "evaluations", "blind_tests", "jobs")
_NAMED = (("models", "label"), ("evaluations", "name"))


def upgrade() -> None:
    op.create_table(
        "deletions",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("also", sa.JSON, nullable=False),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_deletions"),
        sa.UniqueConstraint("id", name="uq_deletions_id"),
    )
    for table in _DELETABLE:
        op.add_column(table, sa.Column("deletion_id", sa.String(32), nullable=True))
    for table, name in _NAMED:
        op.add_column(table, sa.Column(name, sa.Text, nullable=False, server_default=sa.text("''")))


def downgrade() -> None:
    # What was deleted is gone for a version that cannot tell.
    for table in reversed(_DELETABLE):
        op.execute(f"DELETE FROM {table} WHERE deletion_id IS NOT NULL")
    for table, name in _NAMED:
        op.drop_column(table, name)
    for table in _DELETABLE:
        op.drop_column(table, "deletion_id")
    op.drop_table("deletions")
