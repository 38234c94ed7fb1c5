"""Fisher projections of measurements, and the plan that a sensitivity profile was measured around."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # Defaults fill the rows of older versions, whose measurements were all exact and of single layers.
    op.add_column("measurements", sa.Column("projections", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("sensitivity_profiles", sa.Column("around", sa.JSON, nullable=False, server_default="{}"))


def downgrade() -> None:
    op.drop_column("sensitivity_profiles", "around")
    op.drop_column("measurements", "projections")
