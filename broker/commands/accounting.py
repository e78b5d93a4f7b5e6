"""Commands that read the journal through the broker: spend and explain."""

import json
from collections.abc import Iterator
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from rich import box
from rich.console import Console
from rich.table import Table

from broker.commands.connection import CommandError, Target, connect
from broker.commands.plain import plain
from broker.commands.tables import escape
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc

# The broker asks Postgres, and gives up sooner.
TIMEOUT_S = 15.0
PAGE_SIZE = 1_000
# Of a holder's story: the latest records are what is asked for.
HOLDER_RECORDS = 200

Stub = pb_grpc.TokenBrokerServiceStub


def spend(target: Target, by: str, since: timedelta, *, as_json: bool) -> None:
    """Prints the tokens spent, summed up by *by*."""
    key = pb.SpendKey.Value(f"SPEND_KEY_{by.upper()}")
    with connect(target) as broker:
        pages = list(_spend_pages(broker, key, since))
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


def _spend_pages(
    broker: Stub, key: pb.SpendKey.ValueType, since: timedelta
) -> Iterator[pb.ListSpendResponse]:
    back, token, more = Duration(), "", True
    back.FromTimedelta(since)
    while more:
        page = broker.ListSpend(
            pb.ListSpendRequest(by=key, since=back, page_size=PAGE_SIZE, page_token=token),
            timeout=TIMEOUT_S,
        )
        yield page
        token = page.next_page_token
        more = bool(token)


def explain(target: Target, name: str, *, as_json: bool) -> None:
    """Prints the story of the lease *name*, or the latest records of the holder *name*.

    Raises:
        CommandError: The journal has neither.
    """
    with connect(target) as broker:
        events = list(_story(broker, name)) or _of_holder(broker, name)
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


def _story(broker: Stub, lease_id: str) -> Iterator[pb.LeaseEvent]:
    token, more = "", True
    while more:
        request = pb.ExplainLeaseRequest(lease_id=lease_id, page_size=PAGE_SIZE, page_token=token)
        page = broker.ExplainLease(request, timeout=TIMEOUT_S)
        yield from page.events
        token = page.next_page_token
        more = bool(token)


def _of_holder(broker: Stub, holder: str) -> list[pb.LeaseEvent]:
    request = pb.ExplainLeaseRequest(holder=holder, page_size=HOLDER_RECORDS)
    return list(reversed(broker.ExplainLease(request, timeout=TIMEOUT_S).events))
