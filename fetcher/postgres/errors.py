"""The remedies that the fetcher's Postgres errors name."""

from typing import Final

from protos.postgres.trouble import Advice

MIGRATE: Final = "run dealfetcher migrate"
GRANT: Final = (
    "grant the role in DATABASE_URL USAGE on the schema, SELECT, INSERT, UPDATE and DELETE on"
    " its tables and USAGE on its sequences, or use the role that ran dealfetcher migrate"
)
GRANT_SCHEMA: Final = (
    "GRANT USAGE ON SCHEMA public to the role in DATABASE_URL, and CREATE for dealfetcher migrate"
)
ADVICE: Final = Advice("DATABASE_URL", MIGRATE, GRANT, GRANT_SCHEMA)
