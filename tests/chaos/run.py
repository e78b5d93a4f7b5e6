"""One run of chaos: faults, one after the other, then peace, then the checks."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from deploy.local.errors import ProgramError
from deploy.local.program import Program
from protos.postgres.connections import CONNECT_TIMEOUT_S
from tests.chaos.faults import AWAY, DISK_FULL, FAULTS, LEADER_TIMEOUT_S, REFUSING
from tests.chaos.stack import ChaosError, Stack, wait_for
from tests.e2e.collection import Call, fetch, same_page_at_once
from tests.e2e.day_report import IN_HAND_MS, report_on
from tests.fix_broker import environment

# After the last fault: the fleet reads on, so that whatever was missed is read again.
PEACE_S: Final = 15.0
RECOVERY_S_MAX: Final = 90.0
END_S_MAX: Final = 60.0
UNEXPLAINED_MAX: Final = 0.001
OK, REFUSED = 200, 429
# The way back of a reply, and of a refusal to the broker: calls that are sent meanwhile belong
# to the same refusal.
REPORTED_MS: Final = 1_000

# A fetcher writes what it has kept within so long after Postgres serves it again: the first of
# its threads that gets through wakes the others, and the commits of a scan take turns.
KEPT_MS: Final = round(CONNECT_TIMEOUT_S * 1_000) + IN_HAND_MS

# The broker may find out so long after calls go on what a fault has cost it: it asks Keepa again
# within a tick of the simulator's, and its pauses between doubts last as long.
REFUSED_LATER_MS: Final = 5_000

# A fetcher may hold a reply so long before it is written: a commit waits for those of other
# fetchers that write the same products.
HELD_MS: Final = 10_000
# Keepa's time of each reply that the broker has a report of, and the fetcher that sent it.
HOLDERS: Final = """
SELECT (body -> 'settlement' -> 'envelope' ->> 'server_time_ms')::bigint, holder
  FROM tokenbroker.records
 WHERE kind = 'settled' AND body -> 'settlement' ->> 'outcome' = 'replied'
   AND body -> 'settlement' ->> 'envelope' IS NOT NULL
"""

# Without what Keepa's first count of an epoch shows beyond them.
BOOKED: Final = """
SELECT coalesce(sum(tokens) FILTER (WHERE operation <> ''), 0)::int FROM tokenbroker.spend
"""
RECORDS: Final = """
SELECT row_to_json(record)::text FROM tokenbroker.records AS record ORDER BY epoch, seq
"""
# What each page of each scan has asked for, first and last, by Keepa's clock.
ASKED: Final = """
SELECT s.id, (extract(epoch FROM s.started_at) * 1000)::bigint,
       jsonb_set(s.selection, '{page}', to_jsonb(p.page)), t.at_ms
  FROM scan_pages p JOIN scans s ON s.id = p.scan_id
 CROSS JOIN LATERAL (VALUES ((p.facts ->> 'server_ms')::bigint),
                            ((extract(epoch FROM p.reply_time) * 1000)::bigint)) AS t (at_ms)
 WHERE p.reply_time IS NOT NULL
"""
HAS_BOOKS: Final = "SELECT to_regclass('tokenbroker.spend') IS NOT NULL"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """*seconds* for faults, in the order of *seed*; *only* those with this text in the name.

    With *names* those and no others, once each.
    """

    seconds: float
    seed: int
    only: str = ""
    names: tuple[str, ...] = ()


@dataclass
class Spoilt:
    """When faults hit replies on their way into Postgres, or the broker's count of Keepa's.

    Args:
        replies_ms: Times at which replies that Keepa delivered may have been lost.
        outages_ms: From when until when fetchers could not write.
        refusals_ms: From when until when Keepa may refuse a call.
    """

    replies_ms: list[int] = field(default_factory=list)
    outages_ms: list[tuple[int, int]] = field(default_factory=list)
    refusals_ms: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Outcome:
    """What a run has measured and found."""

    # How often each fault has shown an effect.
    struck: dict[str, int] = field(default_factory=dict)
    # Seconds until another broker led, and from healing until Keepa was called again.
    leads_s: dict[str, list[float]] = field(default_factory=dict)
    works_s: dict[str, list[float]] = field(default_factory=dict)
    figures: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Recovery times by fault, and the figures of the checks."""
        lines = [f"{'fault':36} {'struck':>6} {'leader after':>13} {'calls after':>12}"]
        for name, times in self.struck.items():
            lead, work = (
                f"{max(spans[name]):.1f} s" if spans.get(name) else "-"
                for spans in (self.leads_s, self.works_s)
            )
            lines.append(f"{name:36} {times:6} {lead:>13} {work:>12}")
        return "\n".join([*lines, "", *self.figures])


def run(plan: Plan, folder: Path, say: Say) -> Outcome:
    """Starts a stack, lets faults strike for the time of *plan*, and checks what is left."""
    outcome, dice = Outcome(), Random(plan.seed)
    spoilt = Spoilt()
    stack = Stack(folder, plan.seed)
    try:
        say("starting Postgres, Keepa's simulator, 2 brokers and 3 fetchers")
        stack.start()
        stack.await_leader()
        until_s = time.monotonic() + plan.seconds
        for name in _order(plan, dice, without="" if stack.has_volume else DISK_FULL):
            if time.monotonic() > until_s:
                break
            try:
                _strike(name, stack, dice, outcome, spoilt, say)
            except (ChaosError, TimeoutError) as exc:
                outcome.problems.append(f"{name}: {exc}")
                say(f"{name}: FAILED: {exc}")
                stack.heal()
        say("peace")
        stack.heal()
        stack.await_leader()
        time.sleep(PEACE_S)
        try:
            _check(stack, outcome, spoilt)
        finally:
            _keep_evidence(stack)
    finally:
        say("stopping everything")
        outcome.problems += stack.stop()
    return outcome


def _keep_evidence(stack: Stack) -> None:
    """Writes the journal and Keepa's calls beside the logs: they show what a log does not."""
    if fetch(stack.database_url, HAS_BOOKS)[0][0]:
        rows = fetch(stack.database_url, RECORDS)
        (stack.folder / "journal.jsonl").write_text("".join(f"{row}\n" for (row,) in rows))
    calls = stack.simulator.calls()
    text = "".join(json.dumps(call | {"rows": len(call["rows"])}) + "\n" for call in calls)
    (stack.folder / "calls.jsonl").write_text(text)


def _order(plan: Plan, dice: Random, *, without: str) -> Iterator[str]:
    """Every fault once in a random order, then every one again in another."""
    if plan.names:
        yield from plan.names
        return
    names = [name for name in FAULTS if plan.only in name and name != without]
    while names:
        dice.shuffle(names)
        yield from names


def _strike(
    name: str, stack: Stack, dice: Random, outcome: Outcome, spoilt: Spoilt, say: Say
) -> None:
    """Lets one fault strike and heal; measures the recoveries."""
    began_s, began_ms = time.monotonic(), int(time.time() * 1000)
    with FAULTS[name](stack, dice) as struck:
        text = ""
        if struck.recovered is not None:
            took_s = wait_for(struck.recovered, "another broker leads", LEADER_TIMEOUT_S)
            outcome.leads_s.setdefault(name, []).append(took_s)
            text = f", another broker leads after {took_s:.1f} s"
        time.sleep(max(0.0, began_s + struck.hold_s - time.monotonic()))
        # A rare fault may need a moment more until it meets a call.
        wait_for(struck.proof, "the fault shows an effect", RECOVERY_S_MAX)
        spoils = struck.spoils_replies
    outcome.struck[name] = outcome.struck.get(name, 0) + 1
    if spoils:
        spoilt.replies_ms += range(began_ms, int(time.time() * 1000) + 2_000, 500)
    calls = paid_calls(stack)
    took_s = wait_for(lambda: paid_calls(stack) > calls, "calls go on", RECOVERY_S_MAX)
    ended_ms = int(time.time() * 1000)
    if name.startswith(AWAY):
        spoilt.outages_ms.append((began_ms, ended_ms))
    if name.startswith(REFUSING):
        spoilt.refusals_ms.append((began_ms, ended_ms + REFUSED_LATER_MS))
    outcome.works_s.setdefault(name, []).append(took_s)
    say(f"{name}{text}; calls go on {took_s:.1f} s after healing")


def paid_calls(stack: Stack) -> int:
    """Calls of the fleet so far, as Keepa counts them."""
    by_path = stack.simulator.stats()["calls_by_path"]
    return sum(by_path.get(path, 0) for path in ("/deal", "/product"))


def _check(stack: Stack, outcome: Outcome, spoilt: Spoilt) -> None:
    """What must be true after whatever has happened."""
    stopped_ms = int(time.time() * 1000)
    for fetcher in stack.fetchers:
        fetcher.terminate()
    codes = [_code(fetcher) for fetcher in stack.fetchers]
    # A call that outlasts its fetcher's patience at the stop is cut off.
    at_stop_ms = range(stopped_ms, int(time.time() * 1000) + 1, 500)
    kills_ms = [at_ms for at_ms, _ in stack.kills]
    spoiled_ms = [*kills_ms, *spoilt.replies_ms, *at_stop_ms]
    holders: list[tuple[int, str]] = []
    if fetch(stack.database_url, HAS_BOOKS)[0][0]:
        holders = fetch(stack.database_url, HOLDERS)
    leader = stack.await_leader()
    bucket = stack.bucket(leader)
    report = report_on(
        database_url=stack.database_url,
        simulator=stack.simulator,
        options=stack.options,
        settled_tokens=0,
        kills_ms=[
            *spoiled_ms,
            *kept_until_killed(spoilt.outages_ms, kills_ms),
            *held_until_killed(holders, stack.kills),
        ],
        exit_codes=list(codes),
        output="".join(fetcher.output() for fetcher in stack.fetchers),
    )
    outcome.problems += report.losses()
    calls = stack.simulator.calls()
    scans = scans_of_calls(calls, fetch(stack.database_url, ASKED))
    twice = read_twice(calls, spoiled_ms, scans)
    if twice:
        outcome.problems.append(f"{len(twice)} pages were read twice at once: calls {twice[:3]}")
    refusals = refusals_apart(calls)
    allowed = sum(times for name, times in outcome.struck.items() if name.startswith(REFUSING))
    if refusals > allowed:
        outcome.problems.append(f"Keepa refused {refusals} times, {allowed} faults allow it")
    if unexplained := refused_without_cause(calls, spoilt.refusals_ms):
        outcome.problems.append(f"Keepa refused calls {unexplained[:5]} with no fault near them")
    outcome.figures += [
        f"deals: {report.stored} stored of {report.served} served, {len(report.lost)} lost",
        f"deals in the hands of a fetcher that a fault hit: {report.in_hand}",
        f"refusals: {refusals} (at most {allowed}), of {report.refused} calls",
        f"pages read twice at once: {len(twice)}",
    ]
    reserved = bucket.reserved if bucket is not None else 0
    _check_books(stack, outcome, report.spent_tokens, reserved)


def _code(fetcher: Program) -> int | None:
    """The exit code; None if it does not end."""
    try:
        return fetcher.wait(END_S_MAX)
    except ProgramError:
        return None


def kept_until_killed(outages_ms: Sequence[tuple[int, int]], kills_ms: Sequence[int]) -> list[int]:
    """Times of replies that a fetcher kept for Postgres, and lost as it was killed.

    A reply that comes while Postgres is away stays in its fetcher until Postgres is back and
    the thread has looked for it again. A kill before that hits every reply since the outage
    began, not only one that has just come.
    """
    return [
        at_ms
        for began_ms, ended_ms in outages_ms
        for kill_ms in kills_ms
        if began_ms <= kill_ms <= ended_ms + KEPT_MS
        for at_ms in range(began_ms, kill_ms, 500)
    ]


def held_until_killed(
    holders: Sequence[tuple[int, str]], kills: Sequence[tuple[int, int]]
) -> list[int]:
    """Times of replies that were in the hands of the fetcher that was killed.

    Args:
        holders: Keepa's time of each reply, and the holder that has reported it.
        kills: When fetchers were killed, and the numbers of their processes.
    """
    return [
        reply_ms
        for reply_ms, holder in holders
        for kill_ms, pid in kills
        # A holder is host, process and a random part.
        if holder.split("-")[-2:-1] == [str(pid)] and reply_ms <= kill_ms <= reply_ms + HELD_MS
    ]


def scans_of_calls(
    calls: Sequence[Call], asked: Sequence[tuple[int, int, dict[str, Any], int]]
) -> dict[int, set[int]]:
    """The scans that a call served, by the call's number; empty if that is unknown.

    The reply that a page shows names the call. No page shows a call that broke, failed or was
    refused, or one of a fetcher that had lost the page meanwhile: it was for one of the scans
    under way that have read this page later.

    Args:
        calls: All of Keepa's calls.
        asked: The rows of `ASKED`: scan, its start, selection with page, time of a reply.
    """
    pages: dict[str, list[tuple[int, int, int]]] = {}
    for scan, began_ms, selection, reply_ms in asked:
        text = json.dumps(selection, sort_keys=True)
        pages.setdefault(text, []).append((reply_ms, scan, began_ms))
    scans: dict[int, set[int]] = {}
    for call in calls:
        if call["selection"]:
            text = json.dumps(json.loads(call["selection"]), sort_keys=True)
            at_ms, stored = call["time_ms"], pages.get(text, [])
            scans[call["seq"]] = {scan for reply_ms, scan, _ in stored if reply_ms == at_ms} or {
                scan for reply_ms, scan, began_ms in stored if began_ms <= at_ms < reply_ms
            }
    return scans


def read_twice(
    calls: Sequence[Call], spoiled_ms: Sequence[int], scans: Mapping[int, set[int]]
) -> list[tuple[int, int]]:
    """Pairs of calls for one page of one scan that were under way at the same time.

    A full scan and one for what is new may ask for the same rows at once: each stores a page of
    its own. A call that failed or was refused has read nothing. Left out are calls that were
    abandoned, too: their reply reached no client, or a fault hit the fetcher or its link while
    they ran. Keepa's server goes on with such a call.

    Args:
        calls: All of Keepa's calls.
        spoiled_ms: Times of faults, in Unix milliseconds.
        scans: The scans that a call served, by its number; see `scans_of_calls`.
    """
    return [
        (first["seq"], second["seq"])
        for first, second in same_page_at_once(call for call in calls if call["status"] == OK)
        if first["delivered"]
        and not are_of_two_scans(scans.get(first["seq"], set()), scans.get(second["seq"], set()))
        and not any(
            # The link may break while the reply is on its way.
            first["time_ms"] <= at_ms <= first["time_ms"] + first["duration_ms"] + REPORTED_MS
            for at_ms in spoiled_ms
        )
    ]


def are_of_two_scans(first: set[int], second: set[int]) -> bool:
    """Whether both calls are known to have served scans, each another one."""
    return bool(first) and bool(second) and first.isdisjoint(second)


def refusals_apart(calls: Sequence[Call]) -> int:
    """How often Keepa refused, where calls that were on their way together count once.

    No broker can call back what it has granted before others empty the bucket.
    """
    refusals, until_ms = 0, 0
    for call in sorted(calls, key=lambda call: int(call["time_ms"])):
        if call["status"] == REFUSED and call["time_ms"] > until_ms:
            refusals += 1
            until_ms = call["time_ms"] + call["duration_ms"] + REPORTED_MS
    return refusals


def refused_without_cause(
    calls: Sequence[Call], windows_ms: Sequence[tuple[int, int]]
) -> list[int]:
    """The refused calls at times when no fault can have misled the broker.

    Args:
        calls: All of Keepa's calls.
        windows_ms: From when until when a fault allows a refusal.
    """
    return [
        call["seq"]
        for call in calls
        if call["status"] == REFUSED
        and not any(began <= call["time_ms"] <= ended for began, ended in windows_ms)
    ]


def _check_books(stack: Stack, outcome: Outcome, spent: int, reserved: int) -> None:
    """Compares what Keepa has counted with the books, and lets the audit explain its counts.

    Spending of others may be booked to calls that were lost at that time: a count is the same
    for both. So calls and others are summed up together.
    """
    booked = 0
    if fetch(stack.database_url, HAS_BOOKS)[0][0]:
        booked = fetch(stack.database_url, BOOKED)[0][0]
    foreign = stack.simulator.stats()["foreign"]
    tolerance = round(UNEXPLAINED_MAX * spent)
    found = _audit(stack, outcome, foreign + tolerance)
    seen, hidden = found["unexplained_tokens"], found["unwitnessed_tokens"]
    missing = spent + foreign - booked - seen
    gaps = dict(Counter(each["gap"] for each in found["differences"]))
    outcome.figures.append(
        f"tokens: {spent} spent, {foreign} by others; {booked} booked by call, of them {hidden}"
        f" estimated; {seen} seen without a call; {reserved} held; {missing} missing"
    )
    records, epochs = found["records"], found["epochs"]
    outcome.figures.append(f"audit: {records} records of {epochs} epochs; {gaps}")
    if not -hidden - tolerance <= missing <= reserved + tolerance:
        outcome.problems.append(f"{missing} tokens are missing from the books")


def _audit(stack: Stack, outcome: Outcome, tolerance: int) -> dict[str, Any]:
    """What the audit finds; it must explain all but *tolerance* tokens."""
    command = [sys.executable, "-m", "broker", "audit", "-o", "json", "--tolerance"]
    ended = subprocess.run(
        [*command, str(tolerance)],
        env=environment(broker_database_url=stack.database_url),
        capture_output=True,
        text=True,
        check=False,
    )
    (stack.folder / "audit.json").write_text(ended.stdout)
    if ended.returncode and not ended.stdout:
        raise ChaosError(f"the audit ended with {ended.returncode}: {ended.stderr[-300:]}")
    found: dict[str, Any] = json.loads(ended.stdout)
    if ended.returncode:
        outcome.problems.append(f"the audit explains not all: {found['differences'][:5]}")
    return found
