"""Pages and products that were put aside after failing too often."""

from fetcher.commands.output import Format, print_json, print_line, print_rows
from fetcher.postgres.database import connect
from fetcher.postgres.dead_pages import list_dead, requeue


def show_dead(database_url: str, *, limit: int, output: Format) -> None:
    """Prints the dead pages."""
    with connect(database_url) as connection:
        rows = list_dead(connection, limit=limit)
    print_rows("Dead pages", rows, output)


def requeue_dead(database_url: str, *, scan_id: int | None, output: Format) -> None:
    """Requeues dead pages and products."""
    with connect(database_url) as connection:
        requeued, dropped, products = requeue(connection, scan_id)
    if output is Format.JSON:
        print_json({"requeued": requeued, "dropped": dropped, "products": products})
        return
    print_line(f"{requeued} pages and {products} products will be read again")
    if dropped:
        print_line(f"{dropped} pages dropped: a newer scan has read their rows")
