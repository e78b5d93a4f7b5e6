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
from tests.chaos.faults import DISK_FULL, FAULTS, LEADER_TIMEOUT_S, REFUSING
from tests.chaos.stack import ChaosError, Stack, wait_for
from tests.e2e.collection import Call, fetch, same_page_at_once
from tests.e2e.day_report import report_on
from tests.fix_broker import environment

# After the last fault: the fleet reads on, so that whatever was missed is read again.
PEACE_S: Final = 15.0
RECOVERY_S_MAX: Final = 90.0
END_S_MAX: Final = 60.0
UNEXPLAINED_MAX: Final = 0.001
REFUSED: Final = 429
# The way back of a reply, and of a refusal to the broker: calls that are sent meanwhile belong
# to the same refusal.
REPORTED_MS: Final = 1_000

# Without what Keepa's first count of an epoch shows beyond them.
BOOKED: Final = """
SELECT coalesce(sum(tokens) FILTER (WHERE operation <> ''), 0)::int FROM tokenbroker.spend
"""
RECORDS: Final = """
SELECT row_to_json(record)::text FROM tokenbroker.records AS record ORDER BY epoch, seq
"""
# What each page of each scan has asked for, first and last, by Keepa's clock.
ASKED: Final = """
SELECT s.id, jsonb_set(s.selection, '{page}', to_jsonb(p.page)), t.at_ms
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
    spoiled_ms: list[int] = []
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
                _strike(name, stack, dice, outcome, spoiled_ms, say)
            except (ChaosError, TimeoutError) as exc:
                outcome.problems.append(f"{name}: {exc}")
                say(f"{name}: FAILED: {exc}")
                stack.heal()
        say("peace")
        stack.heal()
        stack.await_leader()
        time.sleep(PEACE_S)
        try:
            _check(stack, outcome, [*stack.kills_ms, *spoiled_ms])
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
    name: str, stack: Stack, dice: Random, outcome: Outcome, spoiled_ms: list[int], say: Say
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
        spoiled_ms += range(began_ms, int(time.time() * 1000) + 2_000, 500)
    calls = paid_calls(stack)
    took_s = wait_for(lambda: paid_calls(stack) > calls, "calls go on", RECOVERY_S_MAX)
    outcome.works_s.setdefault(name, []).append(took_s)
    say(f"{name}{text}; calls go on {took_s:.1f} s after healing")


def paid_calls(stack: Stack) -> int:
    """Calls of the fleet so far, as Keepa counts them."""
    by_path = stack.simulator.stats()["calls_by_path"]
    return sum(by_path.get(path, 0) for path in ("/deal", "/product"))


def _check(stack: Stack, outcome: Outcome, spoiled_ms: list[int]) -> None:
    """What must be true after whatever has happened."""
    stopped_ms = int(time.time() * 1000)
    for fetcher in stack.fetchers:
        fetcher.terminate()
    codes = [_code(fetcher) for fetcher in stack.fetchers]
    # A call that outlasts its fetcher's patience at the stop is cut off.
    spoiled_ms = [*spoiled_ms, *range(stopped_ms, int(time.time() * 1000) + 1, 500)]
    leader = stack.await_leader()
    bucket = stack.bucket(leader)
    report = report_on(
        database_url=stack.database_url,
        simulator=stack.simulator,
        options=stack.options,
        settled_tokens=0,
        kills_ms=spoiled_ms,
        exit_codes=list(codes),
        output="".join(fetcher.output() for fetcher in stack.fetchers),
    )
    outcome.problems += report.losses()
    calls = stack.simulator.calls()
    twice = read_twice(calls, spoiled_ms, scans_of_calls(calls, stack.database_url))
    if twice:
        outcome.problems.append(f"{len(twice)} pages were read twice at once: calls {twice[:3]}")
    refusals = refusals_apart(calls)
    allowed = sum(times for name, times in outcome.struck.items() if name.startswith(REFUSING))
    if refusals > allowed:
        outcome.problems.append(f"Keepa refused {refusals} times, {allowed} faults allow it")
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


def scans_of_calls(calls: Sequence[Call], database_url: str) -> dict[int, set[int]]:
    """The scans that have stored the reply to a call, by the call's number."""
    stored: dict[tuple[int, str], set[int]] = {}
    for scan, selection, reply_ms in fetch(database_url, ASKED):
        stored.setdefault((reply_ms, json.dumps(selection, sort_keys=True)), set()).add(scan)
    return {
        call["seq"]: stored.get(
            (call["time_ms"], json.dumps(json.loads(call["selection"]), sort_keys=True)), set()
        )
        for call in calls
        if call["selection"]
    }


def read_twice(
    calls: Sequence[Call], spoiled_ms: Sequence[int], scans: Mapping[int, set[int]]
) -> list[tuple[int, int]]:
    """Pairs of calls for one page of one scan that were under way at the same time.

    A full scan and one for what is new may ask for the same rows at once: each stores a page of
    its own. Left out are calls that were abandoned, too: their reply reached no client, or a
    fault hit the fetcher or its link while they ran. Keepa's server goes on with such a call.

    Args:
        calls: All of Keepa's calls.
        spoiled_ms: Times of faults, in Unix milliseconds.
        scans: The scans that have stored the reply to a call, by its number.
    """
    return [
        (first["seq"], second["seq"])
        for first, second in same_page_at_once(calls)
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
    if ended.returncode:
        outcome.problems.append(f"the audit ended with {ended.returncode}: {ended.stderr[-300:]}")
    found: dict[str, Any] = json.loads(ended.stdout)
    return found
