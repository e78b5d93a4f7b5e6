"""Prints the audit of the journal."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from broker.commands.tables import escape
from broker.core.bucket import Observation
from broker.core.replay import Difference, Gap
from broker.journal.audit import Audit, audit

# Of a table; JSON has as many as the replay has named.
ROWS_MAX: Final = 50
WORDS: Final = {
    Gap.UNEXPLAINED: "Keepa's count moved, and no record explains it",
    Gap.NO_GRANT: "the journal has no grant of this lease",
    Gap.OTHER_COST: "the recorded cost is not that of Keepa's reply",
    Gap.TWICE: "the lease had ended before",
    Gap.FORGOTTEN: "a restarted broker did not take this lease over",
    Gap.LOST: "records were lost while Postgres was away",
}


def run(
    database_url: str,
    account: str | None,
    since: timedelta | None,
    tolerance: int,
    *,
    as_json: bool,
) -> bool:
    """Prints the audit; returns whether no more than *tolerance* tokens are unexplained."""
    result = audit(database_url, account=account, since=since)
    report = _report(result, tolerance)
    if as_json:
        print(json.dumps(report, indent=2))  # noqa: T201 - what the command is for
    else:
        _print(report, result.replay.differences)
    return bool(report["explained"])


def _report(result: Audit, tolerance: int) -> dict[str, Any]:
    replay = result.replay
    sums = replay.sums
    # The other differences name causes: what they cost shows in Keepa's count.
    unexplained = sums.unexplained_tokens
    return {
        "account": result.account,
        "records": sums.records,
        "epochs": sums.epochs,
        "probes": sums.probes,
        "opening": _count(sums.first),
        "closing": _count(sums.last),
        "spent_tokens": sum(spend.tokens for spend in replay.spend.values()),
        "calls": sum(spend.calls for spend in replay.spend.values()),
        "held_tokens": replay.ledger.reserved,
        "unwitnessed_tokens": sums.unwitnessed_tokens,
        "unexplained_tokens": unexplained,
        "tolerance_tokens": tolerance,
        "explained": abs(unexplained) <= tolerance,
        "differences": [
            {
                "time": _time(each.at_ms),
                "gap": each.gap.value,
                "tokens": each.tokens,
                "lease_id": each.lease_id,
                "holder": each.holder,
            }
            for each in replay.differences
        ],
    }


def _count(seen: Observation | None) -> dict[str, Any] | None:
    """Keepa's own words: its count, and the time on its clock."""
    if seen is None:
        return None
    said = seen.envelope
    return {"tokens_left": said.tokens_left, "keepa_time": _time(said.server_time_ms)}


def _time(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")


def _print(report: dict[str, Any], differences: list[Difference]) -> None:
    console = Console()
    for name in ("opening", "closing"):
        count = report[name]
        words = "none" if count is None else f"{count['tokens_left']} at {count['keepa_time']}"
        console.print(f"Keepa's {name} count: {words}")
    console.print(
        f"{report['records']} records of {report['epochs']} epochs, {report['probes']} probes;"
        f" {report['spent_tokens']} tokens spent by {report['calls']} calls,"
        f" {report['held_tokens']} held"
    )
    verdict = "explained" if report["explained"] else "NOT explained"
    console.print(
        f"{report['unexplained_tokens']} tokens unexplained, {report['tolerance_tokens']}"
        f" tolerated: {verdict}"
    )
    if report["unwitnessed_tokens"]:
        console.print(
            f"{report['unwitnessed_tokens']} tokens are estimates: no settle of these calls came,"
            " and the bucket was full, so no count shows them"
        )
    if not differences:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("time", "tokens", "lease", "holder", "difference"):
        table.add_column(heading, overflow="fold")
    for each in differences[:ROWS_MAX]:
        table.add_row(
            _time(each.at_ms), str(each.tokens), escape(each.lease_id), escape(each.holder),
            WORDS[each.gap],
        )  # fmt: skip
    console.print(table)
    if len(differences) > ROWS_MAX:
        console.print(f"{len(differences) - ROWS_MAX} more: -o json has them")
