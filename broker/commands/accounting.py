"""Commands that read the journal through the broker: spend and explain."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from broker.commands.connection import CommandError, Target, connect
from broker.commands.plain import plain
from broker.commands.tables import escape
from protos.tokenbroker.v1 import token_broker_pb2 as pb

# The broker asks Postgres, and gives up sooner.
TIMEOUT_S = 15.0
PAGE_SIZE = 1_000
# Of a holder's story: the latest records are what is asked for.
HOLDER_RECORDS = 200

Page = TypeVar("Page", pb.ListSpendResponse, pb.ExplainLeaseResponse)


def spend(target: Target, by: str, since: timedelta, *, as_json: bool) -> None:
    """Prints the tokens spent, summed up by *by*."""
    key = pb.SpendKey.Value(f"SPEND_KEY_{by.upper()}")
    with connect(target) as broker:
        request = pb.ListSpendRequest(by=key, page_size=PAGE_SIZE)
        request.since.FromTimedelta(since)
        pages = list(_pages(broker.ListSpend, request))
    total, rows = pages[0].total_tokens, [row for page in pages for row in page.rows]
    if as_json:
        entries = {"total_tokens": total, "rows": [{by: row.key, **_sums(row)} for row in rows]}
        print(json.dumps(entries, indent=2))  # noqa: T201 - what the command is for
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    table.add_column(by, footer="all", overflow="fold")
    for heading in ("tokens", "calls", "refused", "denied", "written off"):
        footer = str(total) if heading == "tokens" else ""
        table.add_column(heading, footer=footer, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(escape(row.key or "-"), *(str(number) for number in _sums(row).values()))
    Console().print(table if rows else "Nothing was spent.")


def _sums(row: pb.SpendRow) -> dict[str, int]:
    return {
        "tokens": row.tokens,
        "calls": row.calls,
        "refusals": row.refusals,
        "denials": row.denials,
        "written_off_tokens": row.written_off_tokens,
    }


def _pages(ask: Callable[..., Page], request: Any) -> Iterator[Page]:
    more = True
    while more:
        page = ask(request, timeout=TIMEOUT_S)
        yield page
        request.page_token = page.next_page_token
        more = bool(page.next_page_token)


def explain(target: Target, name: str, *, as_json: bool) -> None:
    """Prints the story of the lease *name*, or the latest records of the holder *name*.

    Raises:
        CommandError: The journal has neither.
    """
    with connect(target) as broker:
        story = pb.ExplainLeaseRequest(lease_id=name, page_size=PAGE_SIZE)
        events = [event for page in _pages(broker.ExplainLease, story) for event in page.events]
        if not events:
            latest = pb.ExplainLeaseRequest(holder=name, page_size=HOLDER_RECORDS)
            events = [*reversed(broker.ExplainLease(latest, timeout=TIMEOUT_S).events)]
    if not events:
        raise CommandError(
            f"the journal has no lease and no holder {name!r}: `tokenbroker leases` lists those"
            " of the moment, `tokenbroker spend` the holders"
        )
    if as_json:
        print(json.dumps({"events": [plain(e) for e in events]}, indent=2))  # noqa: T201 - as above
        return
    several = len({event.lease_id for event in events}) > 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("time (UTC)", no_wrap=True)
    if several:
        table.add_column("lease", overflow="fold")
    table.add_column("what happened", overflow="fold")
    for event in events:
        time = event.time.ToDatetime().isoformat(sep=" ", timespec="milliseconds")
        lease = (escape(event.lease_id),) if several else ()
        table.add_row(time, *lease, escape(event.text or event.kind))
    console = Console()
    if not several:
        first = events[0]
        console.print(
            f"Lease {escape(first.lease_id)} of {escape(first.holder)}, {escape(first.operation)}"
        )
    console.print(table)
