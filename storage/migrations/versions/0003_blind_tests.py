"""Blind tests: prompts, the answers of the original and of a plan, and votes."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "blind_tests",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("plan_id", sa.String(32), nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("prompts", sa.Integer, nullable=False),
        sa.Column("shuffle", sa.String(32), nullable=False),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.Column("revealed", sa.DateTime, nullable=True),
        sa.PrimaryKeyConstraint("number", name="pk_blind_tests"),
        sa.UniqueConstraint("id", name="uq_blind_tests_id"),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name="fk_blind_tests_plan_id_plans", ondelete="CASCADE"),
    )
    op.create_index("ix_blind_tests_plan_id", "blind_tests", ["plan_id"])
    op.create_table(
        "answers",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("test_id", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("variant", sa.String(16), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("cut", sa.Boolean, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_answers"),
        sa.UniqueConstraint("test_id", "number", "variant", name="uq_answers_test_id_number_variant"),
        _of_test("answers"),
    )
    op.create_index("ix_answers_key", "answers", ["key"])
    op.create_table(
        "votes",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("test_id", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("rater", sa.Text, nullable=False),
        sa.Column("choice", sa.String(16), nullable=False),
        sa.Column("plan_left", sa.Boolean, nullable=False),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_votes"),
        sa.UniqueConstraint("test_id", "number", "rater", name="uq_votes_test_id_number_rater"),
        _of_test("votes"),
    )


def downgrade() -> None:
    for table in ("votes", "answers", "blind_tests"):
        op.drop_table(table)


def _of_test(table: str) -> sa.ForeignKeyConstraint:
    name = f"fk_{table}_test_id_blind_tests"
    return sa.ForeignKeyConstraint(["test_id"], ["blind_tests.id"], name=name, ondelete="CASCADE")
