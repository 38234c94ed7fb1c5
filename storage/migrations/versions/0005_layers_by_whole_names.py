"""The layers that a job measures are named as locks name theirs: expressions match whole names, no longer parts."""

import re

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_JOBS = sa.table("jobs", sa.column("number", sa.Integer), sa.column("kind", sa.String), sa.column("params", sa.JSON))
_FLAGS = re.compile(r"((?:\(\?[aiLmsux]+\))?)(.*)", re.DOTALL)  # Python takes them at the beginning only


def upgrade() -> None:
    connection = op.get_bind()
    asked = sa.select(_JOBS.c.number, _JOBS.c.params).where(_JOBS.c.kind.in_(("profile", "preview")))
    for number, params in connection.execute(asked).all():
        if params.get("layers"):
            flags, searched = _FLAGS.fullmatch(params["layers"]).groups()
            changed = {**params, "layers": f"{flags}.*(?:{searched}).*"}
            connection.execute(_JOBS.update().where(_JOBS.c.number == number).values(params=changed))


def downgrade() -> None:
    pass  # searched, the same expressions match the same layers
