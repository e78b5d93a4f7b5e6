"""All SQL of the fetcher, and its connections to Postgres."""

from fetcher.postgres.database import Database
from fetcher.postgres.schema import migrate

__all__ = ["Database", "migrate"]
