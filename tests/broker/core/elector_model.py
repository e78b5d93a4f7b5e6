"""Every interleaving of two brokers, their clocks and a slow or failing database.

An explicit-state model: a `World` is one state, `moves` are all that may happen next, and
`explore` visits every state that up to *depth* moves reach, each once. The electors are
the product's own; the row, the network and the clocks are the model's. A unit of time is
a third of the TTL.

* A statement may run at once, late, or after its broker has given it up, or never; its
  answer may come late or not at all.
* A broker may be stopped (nothing but time happens to it), or killed and started again.
* A clock may jump forward by an interval, once, while its broker does not lead.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from broker.core.elector import FREE, Action, Attempt, Elector, Row

TTL = 3
# Within it, a leader must come forth once nothing fails any more.
CALM_STEPS = 40

Make = Callable[[str], Elector]


class TwoLeadersError(AssertionError):
    """Both brokers trust themselves."""


class EpochReusedError(AssertionError):
    """Two terms have one epoch."""


class NobodyLeadsError(AssertionError):
    """Nothing fails, and yet no broker leads."""


def carried_out(attempt: Attempt, row: Row | None, holder: str) -> tuple[Row | None, bool]:
    """The row after *attempt* of *holder*, and whether the attempt has written it."""
    mine = row is not None and (row.holder, row.epoch) == (holder, attempt.epoch)
    if attempt.action is Action.TAKE and row == attempt.seen:
        return Row(attempt.epoch, holder, 0), True
    if attempt.action is Action.RENEW and mine and row is not None:
        return Row(row.epoch, holder, row.renewals + 1), True
    if attempt.action is Action.RELEASE and mine and row is not None:
        return Row(row.epoch, FREE, row.renewals + 1), True
    return row, False


@dataclass
class Statement:
    """An attempt on its way: whether it has run, and what it found."""

    attempt: Attempt
    ran: bool = False
    done: bool = False
    row: Row | None = None


@dataclass
class Site:
    """One broker: its elector, its clock less the true time, its statement."""

    elector: Elector
    starts: int = 0
    ahead: int = 0
    statement: Statement | None = None
    # Given up, but the database may still run it.
    ghost: Statement | None = None
    epoch: int | None = None


@dataclass
class World:
    """A state of everything."""

    make: Make
    sites: list[Site]
    now: int = 0
    row: Row | None = None
    epochs: frozenset[int] = frozenset()
    # How often each fault may still happen.
    faults: dict[str, int] = field(default_factory=dict)

    @classmethod
    def fresh(cls, make: Make | None = None, faults: Mapping[str, int] | None = None) -> Self:
        """Two brokers before their first attempt."""
        make = make or partial(Elector, ttl_ms=TTL, looks=TTL)
        return cls(make, [Site(make(f"{n}.0")) for n in "ab"], faults=dict(faults or {}))

    def key(self) -> object:
        """Equal for states with an equal future: times, epochs and renewals are relative."""
        rows = [self.row, *(row for site in self.sites for row in _rows(site))]
        epochs = sorted({row.epoch for row in rows if row is not None})
        least = {
            epoch: min(row.renewals for row in rows if row is not None and row.epoch == epoch)
            for epoch in epochs
        }
        first = epochs[0] if epochs else 0

        def short(row: Row | None) -> object:
            if row is None:
                return None
            return row.epoch - first, row.holder, row.renewals - least[row.epoch]

        def statement(it: Statement | None, clock: int) -> object:
            if it is None:
                return None
            attempt, age = it.attempt, min(clock - it.attempt.started_ms, TTL)
            epoch = max(attempt.epoch - first, -1)
            return attempt.action, short(attempt.seen), epoch, age, it.ran, it.done, short(it.row)

        def site_key(site: Site) -> object:
            elector, clock = site.elector, self.now + site.ahead
            state: dict[str, Any] = vars(elector)
            leads = elector.term is not None
            return (
                max(state["_trusted_until_ms"] - clock, 0) if leads else None,
                max(state["_due_ms"] - clock, 0),
                elector.term and elector.term.epoch - first,
                short(elector.row),
                (state["_quiet"], state["_is_open"], state["_leaving"], elector.holder),
                statement(site.statement, clock),
                statement(site.ghost, clock),
            )

        return short(self.row), *map(site_key, self.sites), *self.faults.values()

    # --- the database --------------------------------------------------------

    def run(self, statement: Statement, holder: str) -> None:
        """The database runs *statement*, atomically."""
        self.row, statement.done = carried_out(statement.attempt, self.row, holder)
        statement.ran, statement.row = True, self.row

    # --- what may happen -----------------------------------------------------

    def moves(self) -> Iterator[tuple[str, "World"]]:
        """Every next state, and the name of the step to it."""
        yield self._after("time passes", World._pass_time)
        for number, site in enumerate(self.sites):
            for name, step in self._steps(site).items():
                yield self._after(f"{'ab'[number]}: {name}", step, number)

    def _steps(self, site: Site) -> dict[str, Callable[["World", Site], None]]:
        steps: dict[str, Callable[[World, Site], None]] = {}
        statement, clock = site.statement, self.now + site.ahead
        if statement is None:
            due = site.elector.next_ms()
            if due is not None and clock >= due:
                steps["begins"] = World._begin
        else:
            if not statement.ran:
                steps["statement runs"] = World._run
            else:
                steps["is answered"] = World._answer
            late = clock - statement.attempt.started_ms >= statement.attempt.timeout_ms
            if late or self.faults.get("failures"):
                steps["gives up"] = World._give_up
        if site.ghost is not None:
            steps["late statement runs"] = World._run_ghost
        if self.faults.get("kills"):
            steps["is killed"] = World._kill
        if self.faults.get("handovers"):
            steps["hands over"] = World._hand_over
        if self.faults.get("jumps") and site.epoch is None:
            steps["clock jumps"] = World._jump
        return steps

    def _after(
        self, name: str, step: Callable[..., None], number: int | None = None
    ) -> tuple[str, "World"]:
        world = copy.copy(self)
        world.faults = dict(self.faults)
        world.sites = [copy.copy(site) for site in self.sites]
        for site in world.sites:
            site.elector = copy.copy(site.elector)
            site.statement, site.ghost = copy.copy(site.statement), copy.copy(site.ghost)
        step(world) if number is None else step(world, world.sites[number])
        world._check()
        return name, world

    def _pass_time(self) -> None:
        self.now += 1

    def _begin(self, site: Site) -> None:
        attempt = site.elector.begin(self.now + site.ahead)
        if attempt is not None:
            site.statement = Statement(attempt)

    def _run(self, site: Site) -> None:
        assert site.statement is not None
        self.run(site.statement, site.elector.holder)

    def _run_ghost(self, site: Site) -> None:
        assert site.ghost is not None
        self.run(site.ghost, site.elector.holder)
        site.ghost = None

    def _answer(self, site: Site) -> None:
        statement, site.statement = site.statement, None
        assert statement is not None
        site.elector.answered(
            statement.attempt, statement.row, self.now + site.ahead, done=statement.done
        )

    def _give_up(self, site: Site) -> None:
        statement, site.statement = site.statement, None
        assert statement is not None
        clock = self.now + site.ahead
        if clock - statement.attempt.started_ms < statement.attempt.timeout_ms:
            self.faults["failures"] -= 1
        if not statement.ran:
            site.ghost = statement
        site.elector.failed(statement.attempt, clock)

    def _kill(self, site: Site) -> None:
        self.faults["kills"] -= 1
        site.starts += 1
        name, _, _ = site.elector.holder.partition(".")
        # What it had sent may still run, but never under the new process's name.
        site.elector, site.statement, site.ghost = self.make(f"{name}.{site.starts}"), None, None

    def _hand_over(self, site: Site) -> None:
        self.faults["handovers"] -= 1
        attempt = site.elector.leave(self.now + site.ahead)
        site.statement = None if attempt is None else Statement(attempt)

    def _jump(self, site: Site) -> None:
        self.faults["jumps"] -= 1
        site.ahead += 1

    # --- what must hold ------------------------------------------------------

    def leaders(self) -> list[int]:
        """The epochs in which brokers trust themselves now."""
        seen = (site.elector.leading(self.now + site.ahead) for site in self.sites)
        return [epoch for epoch in seen if epoch is not None]

    def _check(self) -> None:
        for site in self.sites:
            epoch = site.elector.leading(self.now + site.ahead)
            if epoch is not None and epoch != site.epoch:
                if epoch in self.epochs:
                    raise EpochReusedError(f"epoch {epoch} is used twice")
                self.epochs |= {epoch}
            site.epoch = epoch
        if len(leaders := self.leaders()) > 1:
            raise TwoLeadersError(f"two brokers lead, in epochs {leaders}")

    def calm(self) -> None:
        """From here on nothing fails: a broker that has not left must come to lead."""
        _, world = self._after("calm", lambda _world: None)
        for _ in range(CALM_STEPS):
            for site in world.sites:
                for _ in range(3):
                    step = next((s for n, s in world._steps(site).items() if n in CALM), None)
                    if step is not None:
                        step(world, site)
                        world._check()
            if world.leaders():
                return
            world._pass_time()
        raise NobodyLeadsError("no broker leads though nothing fails")


CALM = ("begins", "statement runs", "is answered", "late statement runs")


def _rows(site: Site) -> Iterator[Row | None]:
    yield site.elector.row
    for statement in (site.statement, site.ghost):
        if statement is not None:
            yield from (statement.attempt.seen, statement.row)


def explore(start: World, depth: int, *, calm_every: int = 0) -> int:
    """Visits every state within *depth* moves; returns how many there are.

    *calm_every* also looks from every so-many-th of them whether a leader comes forth.

    Raises:
        AssertionError: A law is broken; the note lists the moves that lead there.
    """
    seen = {start.key()}
    front: list[tuple[World, tuple[str, ...]]] = [(start, ())]
    for _ in range(depth):
        following = []
        for world, path in front:
            name = ""
            try:
                for name, after in world.moves():
                    if (key := after.key()) not in seen:
                        seen.add(key)
                        following.append((after, (*path, name)))
                if calm_every and len(seen) % calm_every == 0:
                    name = "calm"
                    world.calm()
            except AssertionError as exc:
                exc.add_note("\n".join((*path, name, "(or the move after it)")))
                raise
        front = following
    return len(seen)
