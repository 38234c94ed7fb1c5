"""The first schema: models, sensitivity profiles with measurements, plans, evaluations, jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _models_and_profiles()
    _plans_and_evaluations()
    _jobs()


def downgrade() -> None:
    for table in ("jobs", "evaluations", "plans", "measurements", "sensitivity_profiles", "models"):
        op.drop_table(table)


def _foreign_key(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    name = f"fk_{table}_{column}_{target.split('.')[0]}"
    return sa.ForeignKeyConstraint([column], [target], name=name, ondelete="CASCADE")


def _models_and_profiles() -> None:
    op.create_table(
        "models",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("source", sa.String(1024), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("catalogue", sa.JSON, nullable=False),
        sa.Column("saved", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint("fingerprint", "source", name="uq_models_fingerprint_source"),
    )
    op.create_index("ix_models_source", "models", ["source"])
    op.create_table(
        "sensitivity_profiles",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("model_id", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("method", sa.String(32), nullable=False),
        sa.Column("dtype", sa.String(16), nullable=False),
        sa.Column("calibration", sa.JSON, nullable=False),
        sa.Column("baseline", sa.JSON, nullable=False),
        sa.Column("provenance", sa.JSON, nullable=False),
        sa.Column("schema_version", sa.Integer, nullable=False),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sensitivity_profiles"),
        _foreign_key("sensitivity_profiles", "model_id", "models.id"),
    )
    op.create_index("ix_sensitivity_profiles_model_id", "sensitivity_profiles", ["model_id"])
    op.create_table(
        "measurements",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("profile_id", sa.String(64), nullable=False),
        sa.Column("layer", sa.String(512), nullable=False),
        sa.Column("format", sa.String(32), nullable=False),
        sa.Column("delta_nll", sa.Double, nullable=False),
        sa.Column("delta_nll_stderr", sa.Double, nullable=False),
        sa.Column("kl", sa.Double, nullable=False),
        sa.Column("kl_stderr", sa.Double, nullable=False),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("delta_nll_by_sequence", sa.JSON, nullable=False),
        sa.Column("method", sa.String(32), nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_measurements"),
        sa.UniqueConstraint("profile_id", "layer", "format", name="uq_measurements_profile_id_layer_format"),
        _foreign_key("measurements", "profile_id", "sensitivity_profiles.id"),
    )


def _plans_and_evaluations() -> None:
    op.create_table(
        "plans",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("profile_id", sa.String(64), nullable=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("model_name", sa.Text, nullable=False),
        sa.Column("hardware", sa.Text, nullable=False),
        sa.Column("engine", sa.Text, nullable=False),
        sa.Column("decided_bits", sa.Double, nullable=False),
        sa.Column("total_bytes", sa.BigInteger, nullable=False),
        sa.Column("perplexity", sa.Double, nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_plans"),
        sa.UniqueConstraint("id", name="uq_plans_id"),
        _foreign_key("plans", "profile_id", "sensitivity_profiles.id"),
    )
    op.create_index("ix_plans_profile_id", "plans", ["profile_id"])
    op.create_table(
        "evaluations",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("plan_id", sa.String(32), nullable=True),
        sa.Column("document", sa.JSON, nullable=False),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_evaluations"),
        sa.UniqueConstraint("id", name="uq_evaluations_id"),
        _foreign_key("evaluations", "plan_id", "plans.id"),
    )
    op.create_index("ix_evaluations_plan_id", "evaluations", ["plan_id"])


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("params", sa.JSON, nullable=False),
        sa.Column("progress", sa.JSON, nullable=True),
        sa.Column("result", sa.JSON, nullable=True),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("log_tail", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.Column("started", sa.DateTime, nullable=True),
        sa.Column("finished", sa.DateTime, nullable=True),
        sa.Column("heartbeat", sa.DateTime, nullable=True),
        sa.PrimaryKeyConstraint("number", name="pk_jobs"),
        sa.UniqueConstraint("id", name="uq_jobs_id"),
    )
    op.create_index("ix_jobs_status_number", "jobs", ["status", "number"])
