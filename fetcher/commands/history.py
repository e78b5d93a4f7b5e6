"""Import of price histories that have been paid for already."""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fetcher.commands.output import EXIT_FAILED, EXIT_OK, Format, print_json, print_line
from fetcher.postgres.database import Connection, connect
from fetcher.postgres.history import stored_products, write_points
from fetcher.replies.history import parse_history
from fetcher.replies.units import DOMAINS
from protos.process.visible_text import visible

GZIP_MARK: Final = b"\x1f\x8b"
# A committed batch is never imported again.
BATCH_PRODUCTS: Final = 50


class UnusableFileError(Exception):
    """A file is no reply with products; the message is the reason."""


def import_history(database_url: str, files: Sequence[Path], *, output: Format) -> int:
    """Imports the histories in *files*, or of the products in the database without any.

    Returns the exit code; a file that can't be used stops no other.
    """
    counts = {"products": 0, "points": 0, "new": 0}
    problems: list[str] = []
    with connect(database_url) as reading, connect(database_url) as writing:
        if not files:
            _take(stored_products(reading), writing, counts)
        for path in files:
            try:
                _take(_products_in(path), writing, counts)
            except UnusableFileError as exc:
                problems.append(f"{path}: {exc}")
    if output is Format.JSON:
        print_json({**counts, "problems": problems})
    else:
        for problem in problems:
            print_line(f"REFUSED {visible(problem)}")
        print_line(
            f"{counts['products']} products with {counts['points']} prices, {counts['new']} new"
        )
    return EXIT_FAILED if problems else EXIT_OK


def _take(
    products: Iterator[tuple[int, Mapping[str, Any]]],
    connection: Connection,
    counts: dict[str, int],
) -> None:
    for number, (domain_id, row) in enumerate(products, 1):
        points = parse_history(row, domain_id=domain_id)
        counts["products"] += bool(points)
        counts["points"] += len(points)
        counts["new"] += write_points(connection, points, source="import")
        if number % BATCH_PRODUCTS == 0:
            connection.commit()
    connection.commit()


def _products_in(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields the products of a saved /product reply, plain or gzip."""
    try:
        content = path.read_bytes()
        if content.startswith(GZIP_MARK):
            content = gzip.decompress(content)
        body = json.loads(content)
    except (OSError, EOFError) as exc:
        raise UnusableFileError(getattr(exc, "strerror", None) or str(exc)) from None
    except (ValueError, RecursionError):
        raise UnusableFileError("no JSON") from None
    products = body.get("products") if isinstance(body, dict) else None
    if not isinstance(products, list):
        raise UnusableFileError("no reply of /product: it has no list of products")
    for row in products:
        if isinstance(row, dict) and row.get("domainId") in DOMAINS:
            yield row["domainId"], row
