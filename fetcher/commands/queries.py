"""Checking query files before anything is spent on them."""

from collections.abc import Sequence
from pathlib import Path

from fetcher.commands.output import EXIT_FAILED, EXIT_OK, Format, print_json, say
from fetcher.queries.query import DealQuery, QueryError
from fetcher.query_folder import QueryFolder
from fetcher.replies.units import currency_code
from protos.process.settings import SettingsError


def check_queries(folder: Path, *, output: Format) -> int:
    """Explain every query in words, name every mistake; returns the exit code."""
    if not folder.is_dir():
        raise SettingsError([f"QUERIES: {folder.absolute()} is no folder: name the one to check"])
    reader = QueryFolder(folder)
    reader.refresh()
    book = reader.book
    if output is Format.JSON:
        print_json(
            {
                "queries": [_query(query) for query in book.queries],
                "errors": [_error(error) for error in book.errors],
            }
        )
    else:
        _print(book.queries, book.errors)
    if not book.queries and not book.errors:
        raise SettingsError([f"QUERIES: {folder.absolute()} holds no *.json file"])
    return EXIT_FAILED if book.errors else EXIT_OK


def _print(queries: Sequence[DealQuery], errors: Sequence[QueryError]) -> None:
    for query in queries:
        for line in (*query.explain().split("\n"), ""):
            say(line)
    for error in errors:
        say(f"REFUSED {error}")
    say(f"{len(queries)} queries are fine, {len(errors)} files refused")


def _query(query: DealQuery) -> dict[str, object]:
    return {
        "name": query.name,
        "selection_hash": query.selection_hash,
        "sort": query.sort_words,
        "priority": query.priority,
        "interval_ms": query.interval_ms,
        "max_pages": query.max_pages,
        "cost_per_scan": query.cost_per_scan,
        "rules": list(query.rules.words(query.domain_id)),
        "currency": currency_code(query.domain_id),
        "warnings": list(query.warnings),
        "words": query.explain(),
    }


def _error(error: QueryError) -> dict[str, str]:
    return {"query": error.query, "key": error.key, "reason": error.reason}
