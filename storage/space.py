"""How much room the database takes, and giving back what deleted rows left in its file."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from advisor.types import DatabaseSize
from storage.failures import storage_error
from storage.sessions import Sessions

_SQLITE = "SELECT page_count * page_size, freelist_count * page_size FROM pragma_page_count, pragma_page_size, "
_SQLITE += "pragma_freelist_count"


class Space(Sessions):
    """Questions to the database about itself."""

    def database_size(self) -> DatabaseSize:
        """Bytes of the database, and how many of them compacting gives back; PostgreSQL reuses those by itself."""
        sqlite = self._engine.dialect.name == "sqlite"
        query = _SQLITE if sqlite else "SELECT pg_database_size(current_database()), 0"
        with self._reading() as session:
            total, spare = session.execute(text(query)).one()
        return DatabaseSize(bytes=total, spare_bytes=spare, compactable=sqlite)

    def compact(self) -> None:
        """Rewrite a SQLite file without the room that deleted rows left; other writers wait meanwhile."""
        if self._engine.dialect.name != "sqlite":
            return
        raw = self._engine.raw_connection()  # VACUUM runs outside of the transactions that connections begin
        try:
            raw.cursor().execute("VACUUM")
        except Exception as error:
            raise storage_error(OperationalError("VACUUM", {}, error), self.address) from error
        finally:
            raw.close()
