"""One run of chaos: faults, one after the other, then peace, then the checks."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from tests.chaos.faults import FAULTS, LEADER_TIMEOUT_S, REFUSING
from tests.chaos.stack import FETCHERS, ChaosError, Stack, wait_for
from tests.e2e.collection import fetch, same_page_at_once
from tests.e2e.day_report import report_on

# After the last fault: the fleet reads on, so that whatever was missed is read again.
PEACE_S: Final = 15.0
RECOVERY_S_MAX: Final = 90.0
UNEXPLAINED_MAX: Final = 0.001
# A fetcher reads pages and details at the same time.
CALLS_AT_ONCE: Final = 2 * FETCHERS
# The simulator notes the end of a call after its reply has left, on a busy machine late:
# by then the next scan may have begun.
NOTED_LATE_MS: Final = 250

BOOKED: Final = "SELECT coalesce(sum(tokens), 0)::int, count(*)::int FROM tokenbroker.spend"
HAS_BOOKS: Final = "SELECT to_regclass('tokenbroker.spend') IS NOT NULL"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """*seconds* for faults, in the order of *seed*; *only* those with this text in the name."""

    seconds: float
    seed: int
    only: str = ""


@dataclass
class Outcome:
    """What a run has measured and found."""

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
        for name in _order(plan, dice):
            if time.monotonic() > until_s:
                break
            try:
                _strike(name, stack, dice, outcome, spoiled_ms, say)
            except ChaosError as exc:
                outcome.problems.append(f"{name}: {exc}")
                say(f"{name}: FAILED: {exc}")
                stack.heal()
        say("peace")
        stack.heal()
        stack.await_leader()
        time.sleep(PEACE_S)
        _check(stack, outcome, [*stack.kills_ms, *spoiled_ms])
    finally:
        say("stopping everything")
        outcome.problems += stack.stop()
    return outcome


def _order(plan: Plan, dice: Random) -> Iterator[str]:
    """Every fault once in a random order, then every one again in another."""
    names = [name for name in FAULTS if plan.only in name]
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
    for fetcher in stack.fetchers:
        fetcher.terminate()
    codes = [fetcher.wait(60) for fetcher in stack.fetchers]
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
    twice = [
        (first["seq"], second["seq"])
        for first, second in same_page_at_once(stack.simulator.calls())
        if first["time_ms"] + first["duration_ms"] - second["time_ms"] > NOTED_LATE_MS
    ]
    if twice:
        outcome.problems.append(f"{len(twice)} pages were read twice at once: calls {twice[:3]}")
    allowed = CALLS_AT_ONCE * sum(
        times for name, times in outcome.struck.items() if name.startswith(REFUSING)
    )
    if report.refused > allowed:
        outcome.problems.append(f"{report.refused} calls were refused, {allowed} faults allow it")
    outcome.figures += [
        f"deals: {report.stored} stored of {report.served} served, {len(report.lost)} lost",
        f"calls refused: {report.refused} (at most {allowed})",
        f"pages read twice at once: {len(twice)}",
    ]
    reserved = bucket.reserved if bucket is not None else 0
    _check_books(stack, outcome, report.spent_tokens, reserved)


def _check_books(stack: Stack, outcome: Outcome, spent: int, reserved: int) -> None:
    """Compares Keepa's sum with the journal's; *reserved* is what still may be booked."""
    booked, rows = (0, 0)
    if fetch(stack.database_url, HAS_BOOKS)[0][0]:
        booked, rows = fetch(stack.database_url, BOOKED)[0]
    if not rows:
        outcome.figures.append(f"tokens: {spent} spent; no journal, so not compared")
        return
    unexplained = max(0, spent - booked - reserved, booked - spent) / max(1, spent)
    outcome.figures.append(
        f"tokens: {spent} spent, {booked} booked, {reserved} held, {unexplained:.2%} unexplained"
    )
    if unexplained > UNEXPLAINED_MAX:
        outcome.problems.append(f"{unexplained:.2%} of the tokens are not in the books")
