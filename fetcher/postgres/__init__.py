"""Everything that the fetcher says to Postgres; no SQL stands anywhere else."""

from fetcher.postgres.database import Database
from fetcher.postgres.schema import migrate

__all__ = ["Database", "migrate"]
