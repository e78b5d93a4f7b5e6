"""Renders the bucket, leases and waiting requests as tables."""

from typing import Final

from google.protobuf.duration_pb2 import Duration
from rich import box
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table
from rich.text import Text

from broker.commands.plain import plain, seconds
from protos.process.visible_text import visible
from protos.tokenbroker.v1 import token_broker_pb2 as pb

NOTHING: Final = "-"
STATE_STYLES: Final = {"serving": "green", "paused": "yellow"}
BUDGET_SPANS: Final = {
    pb.BUDGET_SPAN_HOUR: "within the last hour",
    pb.BUDGET_SPAN_DAY: "today",
    pb.BUDGET_SPAN_MONTH: "this month",
}
MINUTE_S: Final = 60
HOUR_S: Final = 3_600
# Shorter spans are shown with tenths.
PRECISE_S: Final = 10


def escape(text: str) -> str:
    """Escapes untrusted text for a cell: neither terminal nor table interprets it."""
    return escape_markup(visible(text))


def span(duration: Duration) -> str:
    """Formats *duration*: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    value = seconds(duration)
    if value < PRECISE_S:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < MINUTE_S:
        return f"{whole} s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} min {whole % MINUTE_S} s"
    return f"{whole // HOUR_S} h {whole % HOUR_S // MINUTE_S} min"


def print_bucket(bucket: pb.Bucket) -> None:
    """Prints all fields of GetBucket."""
    Console().print(bucket_table(bucket))


def print_leases(held: list[pb.Lease], waits: list[pb.Waiting]) -> None:
    """Prints the leases, then the waiting requests."""
    console = Console()
    console.print(lease_table(held) if held else "No leases.")
    console.print(waiting_table(waits) if waits else "No waiting requests.")


def bucket_table(bucket: pb.Bucket) -> Table:
    """A table of all fields of GetBucket."""
    data, totals = plain(bucket), bucket.totals
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    state = str(data["state"])
    floor = f", floor {bucket.floor_tokens}" if bucket.floor_tokens else ""
    debt = f", debt up to {bucket.max_debt_tokens}" if bucket.max_debt_tokens else ""
    settles = f"{totals.settles} ({totals.late_settles} late, {totals.refusals} refused by Keepa)"
    rows: list[tuple[str, str | Text]] = [
        ("State", Text(state, style=STATE_STYLES.get(state, "red"))),
        ("Balance", f"{bucket.balance} of {bucket.capacity} tokens"),
        ("Available", f"{bucket.available} ({bucket.reserved} reserved{floor}{debt})"),
        ("Next refill", _refill(bucket)),
        ("Forecast", _forecast(bucket)),
        (
            "Last observed",
            _observation(bucket, str((data["last_observation"] or {}).get("source"))),
        ),
        ("Leases", f"{bucket.open_leases} open, {bucket.waiting} waiting"),
        ("Granted", f"{totals.grants}, denied {totals.denials}, expired {totals.expiries}"),
        ("Settled", f"{settles}, {totals.spent_tokens} tokens spent"),
        ("Probes", f"{totals.probes} ({totals.probe_failures} failed)"),
        ("Drift", _drift(bucket)),
        ("Foreign spend", f"{bucket.foreign_tokens} tokens"),
        ("Key", f"{escape(bucket.key_fingerprint)} (fingerprint), epoch {bucket.epoch}"),
    ]
    rows.extend(
        (f"Budget {escape(budget.name)}", escape(_budget(budget))) for budget in bucket.budgets
    )
    rows.append(("Journal", _journal(bucket.journal)))
    if bucket.budgets_trouble:
        rows.append(
            ("Budgets", Text(f"not reloaded: {visible(bucket.budgets_trouble)}", style="red"))
        )
    if bucket.leader:
        rows.insert(1, ("Leader", escape(bucket.leader)))
    if bucket.upstream_trouble:
        rows.insert(1, ("Trouble", Text(visible(bucket.upstream_trouble), style="red")))
    for name, cell in rows:
        table.add_row(name, cell)
    return table


def _journal(journal: pb.Journal) -> str | Text:
    lost = f", {journal.lost} lost" if journal.lost else ""
    match journal.state:
        case pb.JOURNAL_STATE_WRITING:
            words = f"{journal.written} records written{lost}"
            return Text(words, style="red") if lost else words
        case pb.JOURNAL_STATE_BUFFERING:
            waits = f"{journal.buffered} records wait, {span(journal.lag)} old at most{lost}"
            return Text(f"{waits}: {visible(journal.trouble)}", style="red")
        case pb.JOURNAL_STATE_FENCED:
            return Text(f"another broker leads: not written{lost}", style="yellow")
    return "off (BROKER_DATABASE_URL turns it on)"


def _refill(bucket: pb.Bucket) -> str:
    if not bucket.HasField("next_refill_in"):
        return NOTHING
    period = span(bucket.refill_period)
    return f"in {span(bucket.next_refill_in)} (+{bucket.refill_rate} every {period})"


def _forecast(bucket: pb.Bucket) -> str:
    """The time until the bucket is dry or full at the pace of the last minutes."""
    if not bucket.HasField("forecast"):
        return NOTHING
    forecast = bucket.forecast
    if forecast.HasField("dry_in"):
        end = f"dry in {span(forecast.dry_in)}" if seconds(forecast.dry_in) else "dry now"
    elif forecast.HasField("full_in"):
        end = f"full in {span(forecast.full_in)}" if seconds(forecast.full_in) else "full now"
    else:
        end = "steady"
    return (
        f"{end} ({forecast.spent_tokens_per_hour:.0f} tokens an hour spent over"
        f" {span(forecast.window)}, {forecast.refilled_tokens_per_hour:.0f} refilled)"
    )


def _budget(budget: pb.Budget) -> str:
    """One limit of a budget: its use, what is left, its reset, and what it does."""
    parts = []
    if budget.span != pb.BUDGET_SPAN_UNSPECIFIED:
        within = BUDGET_SPANS[budget.span]
        parts.append(
            f"{budget.used_tokens} of {budget.limit_tokens} tokens used {within},"
            f" {budget.left_tokens} left"
        )
    if budget.HasField("resets_in"):
        parts.append(f"resets in {span(budget.resets_in)} ({budget.time_zone})")
    if budget.in_flight_max:
        parts.append(f"at most {budget.in_flight_max} calls of each holder in flight")
    covers = f"{budget.operation} of {budget.holder}"
    parts.append(f"{covers} within {budget.within}" if budget.within else covers)
    if budget.mode == pb.BUDGET_MODE_SHADOW:
        parts.append(f"shadow: would have denied {budget.would_have_denied}")
    else:
        parts.append(f"denied {budget.denied}")
    return "; ".join(parts)


def _observation(bucket: pb.Bucket, source: str) -> str:
    if not bucket.HasField("last_observation"):
        return "nothing yet"
    seen = bucket.last_observation
    return f"{seen.tokens_left} tokens, {span(seen.age)} ago, by {source}"


def _drift(bucket: pb.Bucket) -> str:
    causes = sorted(bucket.totals.drift_by_cause.items())
    sums = ", ".join(f"{cause} {tokens:+d}" for cause, tokens in causes if tokens)
    since_start = f"; since the start {sums}" if sums else ""
    return f"{bucket.drift_tokens:+d} at the last observation{since_start}"


def lease_table(leases: list[pb.Lease]) -> Table:
    """A table of leases."""
    table = Table(title="Leases", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("lease", "holder", "operation", "state"):
        table.add_column(heading, overflow="ellipsis", no_wrap=True)
    for heading in ("units", "tokens", "age", "ttl"):
        table.add_column(heading, justify="right", no_wrap=True)
    for lease in leases:
        state = str(plain(lease)["state"])
        ttl = span(lease.ttl) if lease.state == pb.LEASE_STATE_OPEN else NOTHING
        table.add_row(
            escape(lease.lease_id), escape(lease.holder), escape(lease.operation), state,
            str(lease.units), str(lease.tokens), span(lease.age), ttl,
        )  # fmt: skip
    return table


def waiting_table(waits: list[pb.Waiting]) -> Table:
    """A table of waiting requests, with reasons and ETAs."""
    table = Table(title="Waiting", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("lease", "holder", "operation", "class", "waits for"):
        table.add_column(heading, overflow="ellipsis", no_wrap=True)
    for heading in ("units", "tokens", "since", "served in"):
        table.add_column(heading, justify="right", no_wrap=True)
    for wait in waits:
        partial = wait.min_units and wait.min_units < wait.units
        units = f"{wait.min_units}-{wait.units}" if partial else str(wait.units)
        table.add_row(
            escape(wait.lease_id), escape(wait.holder), escape(wait.operation),
            str(plain(wait)["priority"]), escape(wait.reason), units, str(wait.tokens),
            span(wait.since), span(wait.eta) if wait.HasField("eta") else "?",
        )  # fmt: skip
    return table


def bucket_line(bucket: pb.Bucket) -> str:
    """Formats the bucket in one line, for logs and pipes."""
    return (
        f"{plain(bucket)['state']} balance={bucket.balance}/{bucket.capacity}"
        f" available={bucket.available} reserved={bucket.reserved}"
        f" next_refill={seconds(bucket.next_refill_in):.1f}s leases={bucket.open_leases}"
        f" waiting={bucket.waiting} spent={bucket.totals.spent_tokens}"
        f" refused={bucket.totals.refusals} drift={bucket.drift_tokens:+d}"
        f" foreign={bucket.foreign_tokens}"
    ) + (f" trouble={visible(bucket.upstream_trouble)!r}" if bucket.upstream_trouble else "")
