"""Expand, then contract: fetchers of the release before run on the newest schema."""

import json
import re
from pathlib import Path

import psycopg
import pytest

from fetcher.postgres.schema import MIGRATIONS
from tests.fetcher.postgres.released_statements import FOLDER, present_statements, refused

# The rule holds since then; before, there was no release.
FIRST_BOUND = "0006"
# What an old program trips over. A migration "….contract.sql" may do it, once no release in
# use names what it removes.
CONTRACTIONS = re.compile(
    r"\bDROP\s+(TABLE|COLUMN|VIEW)\b|\bRENAME\s+(TO|COLUMN)\b|\bALTER\s+COLUMN\s+\w+\s+(SET\s+DATA\s+)?TYPE\b"
    r"|\bSET\s+NOT\s+NULL\b|\bADD\s+COLUMN\s+(?!.*\bDEFAULT\b)[^,;]*\bNOT\s+NULL\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("release", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_the_newest_schema_accepts_a_releases_statements(release: Path, database_url: str) -> None:
    """Postgres prepares each statement of the release: its tables, columns and types exist."""
    statements = json.loads(release.read_text("utf-8"))
    with psycopg.connect(database_url, autocommit=True) as connection:
        problems = refused(connection, statements)

    assert len(statements) > 30
    assert problems == {}


def test_a_dropped_column_is_found(database_url: str) -> None:
    """A migration that takes a column away from old fetchers fails the test above."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE workers DROP COLUMN doing")
        problems = refused(connection, present_statements())

    assert set(problems) == {
        "fetcher.postgres.overview.FLEET",
        "fetcher.postgres.workers.BEAT",
        "fetcher.postgres.workers.OF_HOST",
    } | {name for name in problems if "health" in name}


def test_new_migrations_only_expand() -> None:
    """None removes, renames or narrows anything, unless it is named a contraction."""
    found = {
        path.name: match[0]
        for path in sorted(MIGRATIONS.glob("*.sql"))
        if path.name >= FIRST_BOUND and not path.stem.endswith((".contract", ".rollback"))
        for match in CONTRACTIONS.finditer(re.sub(r"--.*", "", path.read_text("utf-8")))
    }

    assert found == {}


@pytest.mark.parametrize(
    ("statement", "is_refused"),
    [
        ("ALTER TABLE deals DROP COLUMN title;", True),
        ("ALTER TABLE deals RENAME COLUMN title TO name;", True),
        ("ALTER TABLE deals ALTER COLUMN rank TYPE text;", True),
        ("ALTER TABLE deals ADD COLUMN colour text NOT NULL;", True),
        ("ALTER TABLE deals ADD COLUMN colour text NOT NULL DEFAULT '';", False),
        ("ALTER TABLE deals ADD COLUMN colour text;", False),
        ("DROP INDEX deals_by_asin;", False),
    ],
)
def test_contractions_are_recognised(statement: str, *, is_refused: bool) -> None:
    """What breaks old programs is found, and what does not is let through."""
    assert bool(CONTRACTIONS.search(statement)) is is_refused
