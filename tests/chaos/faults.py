"""The faults. Each strikes as its context begins, proves that it did, and heals at the end."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import psycopg

from deploy.local.program import Program
from tests.chaos.proxy import Link
from tests.chaos.stack import SIMULATOR, Stack, wait_for
from tests.chaos.wall_clock import HOUR_MS

SHORT_S: Final = 2.0
LONG_S: Final = 5.0
END_TIMEOUT_S: Final = 30.0
# A standby leads within 10 s on a machine that has time for it.
LEADER_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault at work.

    Args:
        proof: Whether it really happened.
        hold_s: How long it lasts.
        recovered: What must come true while it lasts; None if only healing helps.
        spoils_replies: Whether replies that Keepa delivers meanwhile may be lost.
    """

    proof: Callable[[], bool]
    hold_s: float = SHORT_S
    recovered: Callable[[], bool] | None = None
    spoils_replies: bool = False


Fault = Callable[[Stack, Random], AbstractContextManager[Struck]]


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped by a signal."""
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "T"


def ended_by(program: Program, number: signal.Signals) -> Callable[[], bool]:
    """Proof that *program* has ended by the signal, or in order after SIGTERM."""
    expected = {-number} if number is signal.SIGKILL else {0}
    return lambda: program.returncode in expected


@contextmanager
def broker_ends(
    stack: Stack, number: signal.Signals, *, leads: bool, with_lease: bool = False
) -> Iterator[Struck]:
    """The leader, or the standby, gets *number*; *with_lease* waits for an open lease first."""
    leader = stack.await_leader_and_standby()
    struck = leader if leads else 1 - leader
    program = stack.brokers[struck]
    if with_lease:
        with suppress(Exception):
            wait_for(lambda: bool((b := stack.bucket(leader)) and b.open_leases), "a lease", 5)
    os.kill(program.pid, number)
    if number is signal.SIGTERM:
        # The process ends later than it hands over.
        proof, off = ended_by(program, number), 1.0
    elif number is signal.SIGSTOP:
        proof, off = (lambda: is_stopped(program.pid)), LONG_S
    else:
        proof, off = ended_by(program, number), 1.0
    recovered = (lambda: stack.leader(but=struck) is not None) if leads else None
    yield Struck(proof, off, recovered)
    if number is signal.SIGSTOP:
        os.kill(program.pid, signal.SIGCONT)
    else:
        program.wait(END_TIMEOUT_S)
        program.start()


@contextmanager
def fetcher_ends(stack: Stack, dice: Random, number: signal.Signals) -> Iterator[Struck]:
    """A fetcher is killed, or stopped for a while."""
    victim = dice.choice(stack.fetchers)
    os.kill(victim.pid, number)
    if number is signal.SIGSTOP:
        # It loses no reply that it keeps, unlike one that is killed.
        yield Struck(lambda: is_stopped(victim.pid), LONG_S, spoils_replies=True)
        os.kill(victim.pid, signal.SIGCONT)
    else:
        stack.kills.append((int(time.time() * 1000), victim.pid))
        yield Struck(ended_by(victim, number), 1.0)
        victim.wait(END_TIMEOUT_S)
        victim.start()


@contextmanager
def postgres_restarts(stack: Stack, _dice: Random) -> Iterator[Struck]:
    """Every connection of Postgres ends as in a crash; it starts again."""
    pid = stack.postgres.pid
    assert pid is not None
    os.kill(pid, signal.SIGQUIT)
    stack.postgres.stop()
    yield Struck(lambda: not Path(f"/proc/{pid}").exists(), 1.0)
    stack.postgres.start()


@contextmanager
def postgres_read_only(stack: Stack, _dice: Random) -> Iterator[Struck]:
    """Postgres takes no writes, as with a full disk on a managed server."""
    stack.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    stack.execute("SELECT pg_reload_conf()")

    def refused() -> bool:
        try:
            with psycopg.connect(stack.database_url) as connection:
                connection.execute("CREATE TABLE chaos (x int)")
        except psycopg.errors.ReadOnlySqlTransaction:
            return True
        return False

    yield Struck(refused)
    stack.execute("ALTER SYSTEM RESET default_transaction_read_only")
    stack.execute("SELECT pg_reload_conf()")


@contextmanager
def postgres_disk_full(stack: Stack, _dice: Random) -> Iterator[Struck]:
    """Postgres has no room for a row or for its log."""
    stack.fill_disk()

    def refused() -> bool:
        try:
            with psycopg.connect(stack.database_url) as connection:
                connection.execute("CREATE TABLE chaos AS SELECT generate_series(1, 1000000)")
        except psycopg.Error:
            return True
        return False

    yield Struck(refused, LONG_S)
    stack.free_disk()


@contextmanager
def wall_clock_steps(stack: Stack, _dice: Random, offset_ms: int) -> Iterator[Struck]:
    """The wall clock of brokers and fetchers is set, and set right again; a standby starts."""
    stack.clock.step(offset_ms)
    standby = stack.brokers[1 - stack.await_leader()]
    os.kill(standby.pid, signal.SIGKILL)
    standby.wait(END_TIMEOUT_S)
    standby.start()
    yield Struck(lambda: stack.clock.shown > 0, LONG_S)
    stack.clock.step(0)


@contextmanager
def keepa_stopped(stack: Stack, _dice: Random) -> Iterator[Struck]:
    """Keepa's server takes connections and answers nothing for a while."""
    pid = stack.simulator.process.pid
    os.kill(pid, signal.SIGSTOP)
    yield Struck(lambda: is_stopped(pid))
    os.kill(pid, signal.SIGCONT)


@contextmanager
def keepa_restarts(stack: Stack, _dice: Random) -> Iterator[Struck]:
    """Keepa's server dies; its accounts keep their tokens, refill and pay on."""
    before, process = stack.simulator.stats(), stack.simulator.process
    process.kill()
    process.wait()
    yield Struck(lambda: process.returncode == -signal.SIGKILL, spoils_replies=True)
    stack.simulator.start_again()
    after = stack.simulator.stats()
    assert after["start_ms"] == before["start_ms"]
    assert after["spent"] >= before["spent"]


@contextmanager
def keepa_fails(stack: Stack, _dice: Random, fault: str) -> Iterator[Struck]:
    """A third of Keepa's replies fail in one way."""
    since = stack.simulator.stats()["calls"]
    stack.simulator.set_fault(f"{fault},path=/deal,probability=0.35")
    kind = fault.partition(":")[0]

    def seen() -> bool:
        calls = stack.simulator.calls(since=since)
        return any(kind in name for call in calls for name in call["faults"])

    yield Struck(seen, LONG_S)
    stack.simulator.clear_faults()


@contextmanager
def foreign_spender(stack: Stack, _dice: Random) -> Iterator[Struck]:
    """Another program spends most of the bucket at once."""
    before = stack.simulator.stats()
    stack.simulator.change_account(spend=max(50, before["balance"]))
    yield Struck(lambda: stack.simulator.stats()["foreign"] > before["foreign"])


@contextmanager
def plan_changes(stack: Stack, _dice: Random) -> Iterator[Struck]:
    """The plan is doubled, and cut back to what it was."""
    rate = SIMULATOR["rate"]
    stack.simulator.change_account(rate=2 * rate)
    yield Struck(lambda: stack.simulator.stats()["accounts"][0]["rate"] == 2 * rate)
    stack.simulator.change_account(rate=rate)


def _is_keepas(name: str) -> bool:
    return name == "fetchers to Keepa"


@contextmanager
def link_fails(stack: Stack, name: str, kind: str) -> Iterator[Struck]:
    """One pair's connections are slow, reset, half-open or parted."""
    link = stack.links[name]
    before = _tally(link, kind)
    match kind:
        case "latency":
            link.latency_s = 0.3
        case "reset":
            link.reset()
        case "half-open":
            link.swallow()
        case _:
            link.parted = True
    hold_s = SHORT_S if kind == "reset" else LONG_S
    yield Struck(lambda: _tally(link, kind) > before, hold_s, spoils_replies=_is_keepas(name))
    link.heal()
    if kind == "half-open" and "broker" not in name.partition(" to ")[2]:
        # TCP itself would give such a connection up; the link acknowledges on its behalf.
        # Between clients and brokers, gRPC's pings have to find it out.
        link.reset()


def _tally(link: Link, kind: str) -> int:
    return {
        "latency": link.delayed,
        "reset": link.cuts,
        "half-open": link.swallowed,
    }.get(kind, link.held)


@contextmanager
def leader_loses_postgres(stack: Stack, _dice: Random) -> Iterator[Struck]:
    """The leader alone is cut off from Postgres, and must give way to the standby."""
    leader = stack.await_leader_and_standby()
    link = stack.links[f"broker-{'ab'[leader]} to Postgres"]
    before = link.held
    link.parted = True
    yield Struck(lambda: link.held > before, 1.0, lambda: stack.leader(but=leader) is not None)
    link.heal()


def _of_broker(number: signal.Signals, **named: bool) -> Fault:
    return lambda stack, _dice: broker_ends(stack, number, **named)


def _of_fetcher(number: signal.Signals) -> Fault:
    return lambda stack, dice: fetcher_ends(stack, dice, number)


def _of_keepa(fault: str) -> Fault:
    return lambda stack, dice: keepa_fails(stack, dice, fault)


def _of_link(pair: str, kind: str) -> Fault:
    def strike(stack: Stack, dice: Random) -> AbstractContextManager[Struck]:
        name = pair
        if "{leader}" in pair:
            name = pair.format(leader="ab"[stack.await_leader()])
        return link_fails(stack, name, kind)

    return strike


PAIRS: Final = {
    "fetchers-leader": "fetchers to broker-{leader}",
    "fetchers-Postgres": "fetchers to Postgres",
    "fetchers-Keepa": "fetchers to Keepa",
    "leader-Postgres": "broker-{leader} to Postgres",
    "leader-Keepa": "broker-{leader} to Keepa",
}
KINDS: Final = ("latency", "reset", "half-open", "parted")

# Needs a small file system, which only root may mount.
DISK_FULL: Final = "Postgres: disk full"

FAULTS: Final[Mapping[str, Fault]] = {
    "leader: SIGKILL": _of_broker(signal.SIGKILL, leads=True),
    "leader: SIGKILL with an open lease": _of_broker(signal.SIGKILL, leads=True, with_lease=True),
    "leader: SIGTERM": _of_broker(signal.SIGTERM, leads=True),
    "leader: SIGSTOP": _of_broker(signal.SIGSTOP, leads=True),
    "leader: no Postgres": leader_loses_postgres,
    "standby: SIGKILL": _of_broker(signal.SIGKILL, leads=False),
    "standby: SIGSTOP": _of_broker(signal.SIGSTOP, leads=False),
    "fetcher: SIGKILL": _of_fetcher(signal.SIGKILL),
    "fetcher: SIGSTOP": _of_fetcher(signal.SIGSTOP),
    "Postgres: crash": postgres_restarts,
    "Postgres: read-only": postgres_read_only,
    DISK_FULL: postgres_disk_full,
    "wall clock: an hour ahead": partial(wall_clock_steps, offset_ms=HOUR_MS),
    "wall clock: an hour back": partial(wall_clock_steps, offset_ms=-HOUR_MS),
    "Keepa: SIGSTOP": keepa_stopped,
    "Keepa: SIGKILL": keepa_restarts,
    "Keepa: errors": _of_keepa("error:status=500"),
    "Keepa: resets": _of_keepa("reset:"),
    "Keepa: cut bodies": _of_keepa("cut:"),
    "Keepa: garbage": _of_keepa("garbage:"),
    "foreign spender": foreign_spender,
    "plan up and down": plan_changes,
    **{
        f"{pair}: {kind}": _of_link(target, kind)
        for pair, target in PAIRS.items()
        for kind in KINDS
        # Only a message shows a connection half-open; the leader asks Keepa too seldom.
        if (pair, kind) not in {("leader-Keepa", kind), ("leader-Postgres", "parted")}
    },
}  # fmt: skip
# While these last, fetchers keep the replies they have: they can't write them.
AWAY: Final = ("Postgres: ", "fetchers-Postgres: ")
# After which one refusal is allowed: the broker has lost its last moments, or Keepa has
# fewer tokens than it had counted at any earlier time.
REFUSING: Final = ("leader: ", "Postgres: crash", DISK_FULL, "foreign", "plan")
