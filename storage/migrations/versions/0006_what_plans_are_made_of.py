"""Lists of plans say which formats a plan uses and whether it was refined; plans are no longer read for that."""

from collections import Counter

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_PLANS = sa.table(
    "plans",
    sa.column("number", sa.Integer),
    sa.column("document", sa.JSON),
    sa.column("formats", sa.JSON),
    sa.column("refined", sa.Boolean),
)


def upgrade() -> None:
    op.add_column("plans", sa.Column("formats", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("plans", sa.Column("refined", sa.Boolean, nullable=False, server_default=sa.false()))
    connection = op.get_bind()
    # One at a time: a plan of a large model is megabytes.
    for number in connection.scalars(sa.select(_PLANS.c.number)).all():
        this = _PLANS.c.number == number
        plan = connection.scalar(sa.select(_PLANS.c.document).where(this))
        formats = dict(Counter(plan.get("assignments", {}).values()).most_common())
        refined = plan.get("refinement") is not None
        connection.execute(_PLANS.update().where(this).values(formats=formats, refined=refined))


def downgrade() -> None:
    op.drop_column("plans", "refined")
    op.drop_column("plans", "formats")
