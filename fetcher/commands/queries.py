"""The check of query files before tokens are spent on them."""

from pathlib import Path

from fetcher.commands.output import EXIT_FAILED, EXIT_OK, Format, print_json, print_line
from fetcher.query_folder import QueryFolder
from fetcher.replies.units import currency_code
from protos.process.settings import SettingsError


def check_queries(folder: Path, *, output: Format) -> int:
    """Explains every query and names every mistake; returns the exit code."""
    if not folder.is_dir():
        raise SettingsError([f"QUERIES: {folder.absolute()} is no folder: name the one to check"])
    reader = QueryFolder(folder)
    reader.refresh()
    book = reader.book
    if output is Format.JSON:
        print_json(
            {
                "queries": [
                    {
                        "name": query.name,
                        "selection_hash": query.selection_hash,
                        "sort": query.sort_words,
                        "priority": query.priority,
                        "interval_ms": query.interval_ms,
                        "max_pages": query.max_pages,
                        "cost_per_scan": query.cost_per_scan,
                        "rules": query.rules.words(query.domain_id),
                        "currency": currency_code(query.domain_id),
                        "warnings": query.warnings,
                        "words": query.explain(),
                    }
                    for query in book.queries
                ],
                "errors": [
                    {"query": error.query, "key": error.key, "reason": error.reason}
                    for error in book.errors
                ],
            }
        )
    else:
        for query in book.queries:
            for line in (*query.explain().split("\n"), ""):
                print_line(line)
        for error in book.errors:
            print_line(f"REFUSED {error}")
        print_line(f"{len(book.queries)} queries are fine, {len(book.errors)} files refused")
    if not book.queries and not book.errors:
        raise SettingsError([f"QUERIES: {folder.absolute()} holds no *.json file"])
    return EXIT_FAILED if book.errors else EXIT_OK
