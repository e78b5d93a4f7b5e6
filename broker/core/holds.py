"""Everything that is reserved now: leases, and settled calls that Keepa's count may lack.

Rule 1: what is reserved is the sum of what the holds hold. All sums and counts change
        here alone, together with the holds themselves.
Rule 2: every change asserts, before and after, that the hold it concerns is what was
        entered and that no sum is impossible; once in as many changes as there are
        holds, everything is added up anew. A wrong change ends the step that meets it,
        and the broker never grants from a wrong sum for long.

A reply can speak for an earlier moment than the one before it. A settled call that it
does not certainly include stays reserved, at its cost.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeAlias

from msgspec import Struct

from broker.core.bucket import Observation
from broker.core.leases import LAPSED, OPEN, SETTLED, Lease, LeaseState

# No reply speaks for a moment as old as this: twice the longest call.
UNCERTAIN_MS_MAX: Final = 240_000
# So many changes are made at least before everything is added up anew.
RECOUNT_CHANGES_MIN: Final = 64


class Overruns(NamedTuple):
    """Tokens by which open calls may exceed their holds: all of `unproven`, one of `proven`.

    `unproven` is the sum over calls of unproven cost, `proven` the most of any other.
    """

    unproven: int = 0
    proven: int = 0


class Risky:
    """Open leases with calls that may cost more than they hold."""

    def __init__(self) -> None:
        self._unproven_tokens = 0
        # How many leases of proven cost may exceed their holds by how much: many by as much.
        self._proven: Counter[int] = Counter()
        # The most of them; None: to be looked up.
        self._most: int | None = 0

    @property
    def overruns(self) -> Overruns:
        """Tokens by which their calls may exceed their holds."""
        if self._most is None:
            self._most = max(self._proven, default=0)
        return Overruns(self._unproven_tokens, self._most)

    def add(self, lease: Lease) -> None:
        """Counts *lease*."""
        overrun = lease.overrun
        if not lease.proven:
            self._unproven_tokens += overrun
            return
        self._proven[overrun] += 1
        if self._most is not None and overrun > self._most:
            self._most = overrun

    def remove(self, lease: Lease) -> None:
        """Counts *lease* no more."""
        overrun = lease.overrun
        if not lease.proven:
            self._unproven_tokens -= overrun
            return
        self._proven[overrun] -= 1
        if not self._proven[overrun]:
            del self._proven[overrun]
            if overrun == self._most:
                self._most = None

    def recount(self, opened: list[Lease]) -> None:
        """Asserts that exactly those of *opened* that may exceed their holds are counted."""
        risky = [lease for lease in opened if lease.overrun > 0]
        assert self._proven == Counter(lease.overrun for lease in risky if lease.proven)
        assert self._unproven_tokens == sum(lease.overrun for lease in risky if not lease.proven)


class Share(Struct):
    """What one caller has: its holds, the open leases among them, and the tokens of all."""

    holds: int = 0
    leases: int = 0
    tokens: int = 0


NO_SHARE: Final = Share()

# A lease, the tokens that it was entered at, and what its caller has. A plain tuple: one is
# made for every grant.
Hold: TypeAlias = tuple[Lease, int, Share]


class Holds:
    """The holds of one account by state, with their sums."""

    def __init__(self, caller: Callable[[str], str] = str) -> None:
        """Starts without holds.

        Args:
            caller: The caller behind a holder, for `share`.
        """
        self._caller = caller
        self._by_state: dict[LeaseState, dict[str, Hold]] = {state: {} for state in LeaseState}
        self._open = self._by_state[OPEN]
        self._lapsed = self._by_state[LAPSED]
        self._tokens = dict.fromkeys(LeaseState, 0)
        # Tokens of all holds; of those for calls of which no settle has come; and of leases
        # that earlier epochs granted.
        self.reserved = 0
        self.unsettled_tokens = 0
        self.adopted_tokens = 0
        self._shares: dict[str, Share] = {}
        # Open leases with calls that may cost more than they hold.
        self._risky = Risky()
        # Calls settled lately that cost something, in the order of their settles.
        self._settled: deque[Lease] = deque()
        self._changes = 0

    def __iter__(self) -> Iterator[Lease]:
        """All holds: open leases, lapsed ones, then settled but uncertain calls."""
        for holds in self._by_state.values():
            for lease, _, _ in holds.values():
                yield lease

    def __len__(self) -> int:
        return sum(map(len, self._by_state.values()))

    # --- what is held ------------------------------------------------------

    @property
    def uncertain_tokens(self) -> int:
        """Costs of the settled calls that the current observation may lack."""
        return self._tokens[SETTLED]

    @property
    def holds_leases(self) -> bool:
        """Whether a call may be under way: a lease is open, or lapsed without a settle."""
        return bool(self._open or self._lapsed)

    @property
    def open_leases(self) -> int:
        """Leases that are open."""
        return len(self._open)

    @property
    def overruns(self) -> Overruns:
        """Tokens by which the calls of the open leases may exceed their holds."""
        return self._risky.overruns

    def lease(self, lease_id: str) -> Lease | None:
        """The open or lapsed lease *lease_id*."""
        hold = self._open.get(lease_id) or self._lapsed.get(lease_id)
        return None if hold is None else hold[0]

    def is_open(self, lease_id: str) -> bool:
        """Whether *lease_id* is an open lease."""
        return lease_id in self._open

    def leases(self, state: LeaseState) -> list[Lease]:
        """The holds in one state, the first entered first."""
        return [lease for lease, _, _ in self._by_state[state].values()]

    def share(self, holder: str) -> Share:
        """What the caller behind *holder* has now; not to be changed."""
        return self._shares.get(self._caller(holder), NO_SHARE)

    # --- leases ------------------------------------------------------------

    def add(self, lease: Lease) -> None:
        """Holds the tokens of a new open lease."""
        assert lease.state is OPEN
        assert lease.lease_id not in self._lapsed
        self._enter(lease)
        self._changed()

    def lapse(self, lease: Lease) -> None:
        """An open lease lapses; its hold stays."""
        assert lease.state is OPEN
        self._leave(lease)
        lease.state = LAPSED
        self._enter(lease)
        self._changed()

    def revive(self, lease: Lease) -> None:
        """A lapsed lease is open again."""
        assert lease.state is LAPSED
        self._leave(lease)
        lease.state = OPEN
        self._enter(lease)
        self._changed()

    def resize(self, lease: Lease, tokens: int) -> None:
        """An open or lapsed lease holds *tokens* from now on."""
        assert lease.state is not SETTLED
        assert tokens >= 0
        self._leave(lease)
        lease.tokens = tokens
        self._enter(lease)
        self._changed()

    def remove(self, lease: Lease) -> None:
        """An open or lapsed lease holds nothing any more."""
        assert lease.state is not SETTLED
        self._leave(lease)
        self._changed()

    # --- settled calls -----------------------------------------------------

    def remember(self, settled: Lease) -> None:
        """Keeps in mind a call that has just been settled at a cost."""
        assert settled.state is SETTLED
        self._settled.append(settled)
        oldest_ms = settled.settled_ms - UNCERTAIN_MS_MAX
        while self._settled[0].settled_ms < oldest_ms:
            self._settled.popleft()

    def keep(self, settled: Lease) -> None:
        """Holds the cost of a settled call: the current observation may lack it."""
        assert settled.state is SETTLED
        self._enter(settled)
        self._changed()

    def release(self, settled: Lease) -> None:
        """The current observation certainly includes the call: its cost is held no more."""
        assert settled.state is SETTLED
        self._leave(settled)
        self._changed()

    def cost_since(self, moment_ms: int) -> int:
        """Tokens of the calls settled after *moment_ms*."""
        cost = 0
        for lease in reversed(self._settled):
            if lease.settled_ms <= moment_ms:
                break
            cost += lease.cost
        return cost

    def included_by(self, observation: Observation) -> list[Lease]:
        """Uncertain calls that *observation* certainly includes."""
        uncertain = self._by_state[SETTLED].values()
        if not uncertain:
            return []
        return [lease for lease, _, _ in uncertain if self.includes(observation, lease)]

    def missing_from(self, observation: Observation, own: Lease | None) -> list[Lease]:
        """Calls that the last observation included but *observation* may not.

        Args:
            observation: Newer than any before.
            own: The call that it answers, if any: that one is included.
        """
        missing = []
        uncertain = self._by_state[SETTLED]
        for lease in reversed(self._settled):
            if lease.settled_ms <= observation.requested_ms:
                break
            known = lease is own or lease.lease_id in uncertain
            if not known and not self.includes(observation, lease):
                missing.append(lease)
        return missing

    @staticmethod
    def includes(observation: Observation, settled: Lease) -> bool:
        """Whether *observation* certainly includes the call of *settled*."""
        if settled.settled_ms <= observation.requested_ms:
            return True
        interval_ms = settled.interval_ms
        return interval_ms is not None and interval_ms[1] < observation.envelope.server_time_ms

    # --- the sums ----------------------------------------------------------

    def recount(self) -> None:
        """Asserts that every sum and count is what the holds add up to."""
        shares: dict[str, Share] = {}
        adopted = 0
        for state, holds in self._by_state.items():
            for lease_id, (lease, tokens, own) in holds.items():
                assert (lease.lease_id, lease.state, lease.held) == (lease_id, state, tokens)
                caller = self._caller(lease.holder)
                assert self._shares[caller] is own
                share = shares.setdefault(caller, Share())
                share.holds += 1
                share.tokens += tokens
                share.leases += state is OPEN
                adopted += tokens if lease.request is None else 0
            assert self._tokens[state] == sum(tokens for _, tokens, _ in holds.values())
        self._check()
        assert adopted == self.adopted_tokens
        assert shares == self._shares
        self._risky.recount(self.leases(OPEN))
        self._changes = 0

    def _changed(self) -> None:
        self._check()
        self._changes += 1
        beyond = self._changes - RECOUNT_CHANGES_MIN
        if beyond > 0 and beyond > len(self):
            self.recount()

    def _check(self) -> None:
        opened, lapsed, settled = self._tokens.values()
        assert opened >= 0
        assert lapsed >= 0
        assert settled >= 0
        assert opened == 0 or self._open
        assert lapsed == 0 or self._lapsed
        assert settled == 0 or self._by_state[SETTLED]
        assert self.unsettled_tokens == opened + lapsed
        assert self.reserved == opened + lapsed + settled
        assert self.adopted_tokens >= 0

    def _enter(self, lease: Lease) -> None:
        self._check()
        state, lease_id = lease.state, lease.lease_id
        holds, tokens = self._by_state[state], lease.held
        assert lease_id not in holds
        assert tokens >= 0
        caller = self._caller(lease.holder)
        share = self._shares.get(caller)
        if share is None:
            share = self._shares[caller] = Share()
        holds[lease_id] = lease, tokens, share
        share.holds += 1
        if state is OPEN:
            share.leases += 1
            if lease.overrun > 0:
                self._risky.add(lease)
        self._count(lease, share, tokens)

    def _leave(self, lease: Lease) -> None:
        self._check()
        state, lease_id = lease.state, lease.lease_id
        holds = self._by_state[state]
        entered, tokens, share = holds[lease_id]
        assert entered is lease
        assert lease.held == tokens, "changed behind the sums"
        del holds[lease_id]
        share.holds -= 1
        if state is OPEN:
            share.leases -= 1
            assert share.leases >= 0
            if lease.overrun > 0:
                self._risky.remove(lease)
        self._count(lease, share, -tokens)
        assert share.tokens >= 0
        if not share.holds:
            del self._shares[self._caller(lease.holder)]

    def _count(self, lease: Lease, share: Share, tokens: int) -> None:
        state = lease.state
        self._tokens[state] += tokens
        self.reserved += tokens
        share.tokens += tokens
        if state is not SETTLED:
            self.unsettled_tokens += tokens
        if lease.request is None:
            self.adopted_tokens += tokens
