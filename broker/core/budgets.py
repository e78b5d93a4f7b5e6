"""Optional budgets: how much of the account a group of callers may spend.

A budget is a pot that all matching calls share. It limits, it reserves nothing.

Rule 1: a call counts from its grant on, at its hold; once it is settled, at its cost.
        One that was cancelled, refused or never sent counts nothing.
Rule 2: a call counts in the hour, the day and the month of its grant, even if it ends
        after the reset.
Rule 3: no budget is exceeded by more than one call's overrun, once calls have shown how
        their cost scatters. A call alone in its budget needs its likely cost; beside others
        there must be room for its price, after all of them have cost the most that is
        plausible. Until then a caller's prior is taken at its word.
Rule 4: days and months come from outside, as instants on the broker's clock. A name
        that comes back, because a wall clock was set back, brings its use back with it.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

from msgspec import Struct

WINDOW_SLOTS: Final = 60
SLOT_MS: Final = 60_000
# Days or months of which the use is remembered: the present one, and what a wall clock that
# was set back may return to.
PERIODS_KEPT: Final = 4
# No limit: more than any account holds.
UNLIMITED: Final = 10**12
# Lost calls that a late settle may still correct, and pairs of holder and operation with
# their budgets looked up; beyond these numbers the oldest are forgotten.
LOST_MAX: Final = 10_000
COVERING_MAX: Final = 10_000


class Span(Enum):
    """How long a limit's count goes on: a sliding hour, a calendar day or a calendar month."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class Mode(Enum):
    """Whether a budget limits, or only counts what it would have denied."""

    ENFORCE = "enforce"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits for calls with a holder and an operation that match the patterns (`*`, `?`).

    `tokens_per_hour`, `tokens_per_day` and `tokens_per_month` in tokens; `share` as a
    fraction of a full bucket an hour, which is an hour's refill. All that are given count.
    Days and months are those of `time_zone`. `in_flight_max` is the most calls that each
    holder may have open at a time. A budget `within` another covers only what that covers.
    """

    name: str
    holder: str = "*"
    operation: str = "*"
    tokens_per_hour: int | None = None
    share: float | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    time_zone: str = "UTC"
    mode: Mode = Mode.ENFORCE
    in_flight_max: int | None = None
    within: "Budget | None" = None

    def limits(self, capacity: int) -> dict[Span, int]:
        """The limits in tokens when the bucket holds *capacity*."""
        hourly = [] if self.tokens_per_hour is None else [self.tokens_per_hour]
        if self.share is not None:
            hourly.append(int(self.share * capacity))
        limits = {
            Span.HOUR: min(hourly, default=None),
            Span.DAY: self.tokens_per_day,
            Span.MONTH: self.tokens_per_month,
        }
        return {span: limit for span, limit in limits.items() if limit is not None}

    def covers(self, holder: str, operation: str) -> bool:
        """Whether a call counts against this budget."""
        if self.within is not None and not self.within.covers(holder, operation):
            return False
        return fnmatchcase(holder, self.holder) and fnmatchcase(operation, self.operation)


class Period(NamedTuple):
    """A day or a month by name, such as 2026-11-25, and its bounds on the broker's clock."""

    name: str
    starts_ms: int
    ends_ms: int


# Without a calendar a budget of a day or a month is never reset.
EVER: Final = Period("ever", -(1 << 62), 1 << 62)

Periods = Mapping[tuple[str, Span], Sequence[Period]]


class HourMeter:
    """Tokens of the last hour, by minute."""

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}

    def slot(self, now_ms: int) -> int:
        """The slot in which a call granted now counts."""
        return now_ms // SLOT_MS

    def add(self, slot: int, tokens: int) -> None:
        """Counts *tokens* in *slot*; negative to correct an earlier charge."""
        if slot not in self.slots:
            newest = max(self.slots, default=slot)
            self.slots = {s: t for s, t in self.slots.items() if s > newest - 2 * WINDOW_SLOTS}
        self.slots[slot] = self.slots.get(slot, 0) + tokens

    def used(self, now_ms: int) -> int:
        """Tokens of the last hour."""
        oldest = now_ms // SLOT_MS - WINDOW_SLOTS
        return sum(tokens for slot, tokens in self.slots.items() if slot > oldest)

    def free_at_ms(self, missing: int, now_ms: int) -> int | None:
        """When *missing* more tokens will be free; None if they never are."""
        for slot in sorted(s for s in self.slots if s > now_ms // SLOT_MS - WINDOW_SLOTS):
            missing -= self.slots[slot]
            if missing <= 0:
                return (slot + WINDOW_SLOTS) * SLOT_MS
        return None

    def resets_ms(self, _now_ms: int) -> int | None:
        """None: the hour slides."""
        return None

    def changes_ms(self, now_ms: int) -> int | None:
        """When the oldest minute leaves the hour."""
        oldest = now_ms // SLOT_MS - WINDOW_SLOTS
        slot = min((slot for slot in self.slots if slot > oldest), default=None)
        return None if slot is None else (slot + WINDOW_SLOTS) * SLOT_MS


class PeriodMeter:
    """Tokens of the present day or month, which ends at once."""

    def __init__(self) -> None:
        self.slots: dict[str, int] = {}
        self.periods: Sequence[Period] = (EVER,)

    def slot(self, at_ms: int) -> str | None:
        """The name of the period in which a call of that moment counts; None: in none."""
        period = self._period(at_ms)
        return period.name if at_ms >= period.starts_ms else None

    def add(self, slot: str | None, tokens: int) -> None:
        """Counts *tokens* in *slot*; negative to correct an earlier charge."""
        if slot is None:
            return
        self.slots[slot] = self.slots.get(slot, 0) + tokens
        if len(self.slots) > PERIODS_KEPT:
            del self.slots[next(iter(self.slots))]

    def used(self, now_ms: int) -> int:
        """Tokens of the present period."""
        return self.slots.get(self._period(now_ms).name, 0)

    def free_at_ms(self, _missing: int, now_ms: int) -> int | None:
        """When the period ends, and all is free; None if that is not known."""
        return self.resets_ms(now_ms)

    def resets_ms(self, now_ms: int) -> int | None:
        """When the period ends; None if that is not known."""
        ends_ms = self._period(now_ms).ends_ms
        return ends_ms if now_ms < ends_ms < EVER.ends_ms else None

    def changes_ms(self, now_ms: int) -> int | None:
        """When the period ends."""
        return self.resets_ms(now_ms)

    def _period(self, now_ms: int) -> Period:
        """The first period that has not ended; past the last known one it goes on."""
        running = (period for period in self.periods if period.ends_ms > now_ms)
        return next(running, self.periods[-1])


class Room(NamedTuple):
    """What budgets leave for one call: for its likely cost, and for its price."""

    likely: int
    price: int

    def within(self, other: "Room") -> "Room":
        """The smaller of both."""
        return Room(min(self.likely, other.likely), min(self.price, other.price))


NO_ROOM: Final = Room(0, 0)
ANY_ROOM: Final = Room(UNLIMITED, UNLIMITED)


class Charge(Struct, eq=False):
    """What a call counts against all budgets that cover it.

    `entries` are the meters, each with the slot of the grant.
    """

    holder: str
    tokens: int
    overrun: int
    pots: tuple["Pot", ...]
    entries: tuple[tuple[Any, Any], ...]

    def change(self, tokens: int) -> None:
        """Lets it count *tokens* from now on, in the slots of its grant."""
        for meter, slot in self.entries:
            meter.add(slot, tokens - self.tokens)
        self.tokens = tokens


# The charge of every call that no budget covers: it counts nowhere.
UNCOVERED: Final = Charge("", 0, 0, (), ())


@dataclass(frozen=True, slots=True)
class Obstacle:
    """The limit that keeps a call from being granted.

    `span` is None for the calls in flight. Times are those of the broker's clock:
    `free_ms` is when there will be room, None if that depends on calls in flight;
    `changes_ms` is when time alone changes anything next, None if it does not.
    """

    budget: Budget
    span: Span | None
    limit: int
    used: int
    free_ms: int | None = None
    changes_ms: int | None = None

    @property
    def shortly(self) -> str:
        """The limit and its use in a few words."""
        if self.span is None:
            return f"{self.used} of {self.limit} calls in flight"
        article = "an" if self.span is Span.HOUR else "a"
        return f"{self.used} of {self.limit} tokens {article} {self.span.value} used"

    @property
    def words(self) -> str:
        """The limit and its use, with the budget's name."""
        if self.span is None:
            return (
                f"budget {self.budget.name} allows each holder {self.limit} calls at a time,"
                f" and {self.used} are in flight"
            )
        article = "an" if self.span is Span.HOUR else "a"
        return (
            f"budget {self.budget.name} allows {self.limit} tokens {article}"
            f" {self.span.value}, and {self.used} are used"
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """One limit of a budget, and its use in tokens; `resets_ms` is a delay from now.

    A budget without a limit in tokens has one standing without a span. `denied` and
    `would_deny` count the requests of the whole budget.
    """

    budget: Budget
    span: Span | None
    limit: int
    used: int
    resets_ms: int | None
    denied: int
    would_deny: int

    @property
    def left(self) -> int:
        """Tokens that may still be spent."""
        return max(0, self.limit - self.used)


@dataclass(frozen=True, slots=True)
class Use:
    """Tokens spent against one limit before the start; see `BudgetBook.export_use`."""

    budget: str
    span: Span
    slots: Mapping[Any, int]
    denied: int = 0
    would_deny: int = 0


@dataclass(slots=True, eq=False)
class Pot:
    """The spend against one budget, and its calls without a settle."""

    budget: Budget
    meters: dict[Span, Any] = field(
        default_factory=lambda: {
            Span.HOUR: HourMeter(),
            Span.DAY: PeriodMeter(),
            Span.MONTH: PeriodMeter(),
        }
    )
    calls: dict[str, Charge] = field(default_factory=dict)
    calls_of: dict[str, set[str]] = field(default_factory=dict)
    # The most by which the calls without a settle may plausibly exceed their holds.
    overrun_tokens: int = 0
    denied: int = 0
    would_deny: int = 0

    def room(self, capacity: int, now_ms: int) -> Room:
        """What its limits in tokens leave for one more call."""
        limits = self.budget.limits(capacity)
        left = min(
            (limit - self.meters[span].used(now_ms) for span, limit in limits.items()),
            default=UNLIMITED,
        )
        if not self.calls:
            return Room(left, UNLIMITED)
        return Room(left - self.overrun_tokens, left - self.overrun_tokens)

    def open_calls(self, holder: str, is_open: Callable[[str], bool]) -> int:
        """Calls of *holder* with an open lease."""
        return sum(map(is_open, self.calls_of.get(holder, ())))

    def take(self, use: Use) -> None:
        """Adds use from before the start."""
        for slot, tokens in use.slots.items():
            self.meters[use.span].add(slot, tokens)
        self.denied += use.denied
        self.would_deny += use.would_deny

    def settled(self, span: Span) -> dict[Any, int]:
        """Tokens by slot, without the holds of calls that have no settle yet."""
        meter = self.meters[span]
        slots = Counter(meter.slots)
        for charge in self.calls.values():
            for entry, slot in charge.entries:
                if entry is meter:
                    slots[slot] -= charge.tokens
        return {slot: tokens for slot, tokens in slots.items() if tokens}

    def enter(self, lease_id: str, charge: Charge) -> None:
        """A call begins."""
        self.calls[lease_id] = charge
        self.calls_of.setdefault(charge.holder, set()).add(lease_id)
        self.overrun_tokens += charge.overrun

    def leave(self, lease_id: str) -> None:
        """A call is over."""
        charge = self.calls.pop(lease_id)
        self.overrun_tokens -= charge.overrun
        own = self.calls_of[charge.holder]
        own.remove(lease_id)
        if not own:
            del self.calls_of[charge.holder]
        assert self.overrun_tokens >= 0
        assert self.calls or self.overrun_tokens == 0


class BudgetBook:
    """All budgets of the account."""

    def __init__(
        self, budgets: Iterable[Budget] = (), *, is_open: Callable[[str], bool] = lambda _: True
    ) -> None:
        """Starts with nothing spent.

        Args:
            budgets: The limits.
            is_open: Whether a lease that was granted is still open.
        """
        self._is_open = is_open
        self._pots: dict[str, Pot] = {}
        # Whether there are any: without them a decision asks no further.
        self.exist = False
        self.periods: Periods = {}
        self._covering: dict[tuple[str, str], tuple[Pot, ...]] = {}
        # Calls without a settle, and lost ones that a late settle may correct.
        self._calls: dict[str, Charge] = {}
        self._lost: OrderedDict[str, Charge] = OrderedDict()
        # Use from before the start, of budgets that do not exist (yet).
        self._imported: dict[str, list[Use]] = {}
        # Grows with every change of the limits.
        self.version = 0
        self.replace(budgets)

    def replace(self, budgets: Iterable[Budget]) -> None:
        """Takes new limits; what a budget of the same name has spent still counts."""
        pots = {}
        for budget in budgets:
            pot = self._pots.get(budget.name) or Pot(budget)
            pot.budget = budget
            pots[budget.name] = pot
            for use in self._imported.pop(budget.name, []):
                pot.take(use)
        self._pots = pots
        self.exist = bool(pots)
        self._covering.clear()
        self.version += 1
        self.set_periods(self.periods)

    def set_periods(self, periods: Periods) -> None:
        """Takes the present and the coming days and months, by time zone; see `Period`."""
        self.periods = periods
        for pot in self._pots.values():
            for span in (Span.DAY, Span.MONTH):
                known = periods.get((pot.budget.time_zone, span))
                if known:
                    pot.meters[span].periods = known

    @property
    def time_zones(self) -> frozenset[str]:
        """The time zones that a calendar is needed for."""
        return frozenset(pot.budget.time_zone for pot in self._pots.values())

    # --- limits ------------------------------------------------------------

    def limit(self, holder: str, operation: str, capacity: int) -> int:
        """Most tokens that one call can ever have."""
        return min(
            (
                limit
                for pot in self._enforced(holder, operation)
                for limit in pot.budget.limits(capacity).values()
            ),
            default=UNLIMITED,
        )

    def room(self, holder: str, operation: str, capacity: int, now_ms: int) -> Room:
        """What a call may have now."""
        room = ANY_ROOM
        for pot in self._enforced(holder, operation):
            room = room.within(self._room_of(pot, holder, capacity, now_ms))
        return room

    def shadows(
        self, holder: str, operation: str, capacity: int, now_ms: int
    ) -> Iterator[tuple[Pot, Room]]:
        """What each budget in shadow mode would leave for a call now."""
        for pot in self._covered_by(holder, operation):
            if pot.budget.mode is Mode.SHADOW:
                yield pot, self._room_of(pot, holder, capacity, now_ms)

    def obstacles(
        self, holder: str, operation: str, tokens: int, capacity: int, now_ms: int
    ) -> list[Obstacle]:
        """What keeps a call of *tokens* tokens waiting; what does so longest comes first."""
        found = [
            obstacle
            for pot in self._enforced(holder, operation)
            for obstacle in self._obstacles_of(pot, holder, tokens, capacity, now_ms)
        ]
        return sorted(found, key=lambda obstacle: obstacle.free_ms or 0, reverse=True)

    def denied(self, name: str) -> None:
        """Counts a request that was denied for the budget *name*."""
        if name in self._pots:
            self._pots[name].denied += 1

    def _obstacles_of(
        self, pot: Pot, holder: str, tokens: int, capacity: int, now_ms: int
    ) -> Iterator[Obstacle]:
        budget, most = pot.budget, pot.budget.in_flight_max
        if most is not None and (calls := pot.open_calls(holder, self._is_open)) >= most:
            yield Obstacle(budget, None, most, calls)
        for span, limit in budget.limits(capacity).items():
            meter = pot.meters[span]
            used = meter.used(now_ms)
            missing = used + tokens - limit
            if missing > 0:
                free_ms = meter.free_at_ms(missing, now_ms) if tokens <= limit else None
                yield Obstacle(budget, span, limit, used, free_ms, meter.changes_ms(now_ms))
            elif pot.calls and missing + pot.overrun_tokens > 0:
                # It ends with a call, or as older use is forgotten.
                yield Obstacle(budget, span, limit, used, None, meter.changes_ms(now_ms))

    def _room_of(self, pot: Pot, holder: str, capacity: int, now_ms: int) -> Room:
        most = pot.budget.in_flight_max
        if most is not None and pot.open_calls(holder, self._is_open) >= most:
            return NO_ROOM
        return pot.room(capacity, now_ms)

    def _enforced(self, holder: str, operation: str) -> Iterator[Pot]:
        for pot in self._covered_by(holder, operation):
            if pot.budget.mode is Mode.ENFORCE:
                yield pot

    def _covered_by(self, holder: str, operation: str) -> tuple[Pot, ...]:
        pots = self._covering.get((holder, operation))
        if pots is None:
            if len(self._covering) >= COVERING_MAX:
                self._covering.clear()
            pots = tuple(p for p in self._pots.values() if p.budget.covers(holder, operation))
            self._covering[holder, operation] = pots
        return pots

    # --- use ---------------------------------------------------------------

    def hold(
        self,
        lease_id: str,
        holder: str,
        operation: str,
        tokens: int,
        overrun: int,
        now_ms: int,
        *,
        charged: bool = False,
    ) -> None:
        """Counts a call that is granted now, or was adopted; repeats count nothing.

        With *charged* its tokens have been counted already, by `charge`.
        """
        if lease_id in self._calls:
            return
        pots = self._covered_by(holder, operation)
        if not pots:
            self._calls[lease_id] = UNCOVERED
            return
        entries = tuple(
            (meter, meter.slot(now_ms)) for pot in pots for meter in pot.meters.values()
        )
        charge = Charge(holder, tokens if charged else 0, overrun, pots, entries)
        charge.change(tokens)
        self._calls[lease_id] = charge
        for pot in pots:
            pot.enter(lease_id, charge)

    def settle(
        self, lease_id: str, holder: str, operation: str, cost_tokens: int, now_ms: int
    ) -> None:
        """A call really cost *cost_tokens*; one that was never counted counts as of now."""
        if self._calls.get(lease_id) is UNCOVERED:
            del self._calls[lease_id]
            return
        charge = self._lost.pop(lease_id, None)
        if charge is None:
            self.hold(lease_id, holder, operation, cost_tokens, 0, now_ms)
            charge = self._close(lease_id)
        charge.change(cost_tokens)

    def charge(self, holder: str, operation: str, tokens: int, at_ms: int) -> None:
        """Counts calls that are over, as of *at_ms*."""
        for pot in self._covered_by(holder, operation):
            for meter in pot.meters.values():
                meter.add(meter.slot(at_ms), tokens)

    def give_back(self, lease_id: str) -> None:
        """A call's grant was taken back: it counts nothing."""
        if lease_id in self._calls:
            self._close(lease_id).change(0)

    def write_off(self, lease_id: str, tokens: int) -> None:
        """A lost call is taken to have cost *tokens*; a late settle corrects that."""
        if lease_id not in self._calls:
            return
        charge = self._lost[lease_id] = self._close(lease_id)
        charge.change(tokens)
        if len(self._lost) > LOST_MAX:
            self._lost.popitem(last=False)

    def _close(self, lease_id: str) -> Charge:
        charge = self._calls.pop(lease_id)
        for pot in charge.pots:
            pot.leave(lease_id)
        return charge

    def standings(self, capacity: int, now_ms: int) -> tuple[Standing, ...]:
        """All limits when the bucket holds *capacity*."""
        standings = []
        for pot in self._pots.values():
            counts = {"denied": pot.denied, "would_deny": pot.would_deny}
            limits = pot.budget.limits(capacity)
            for span, limit in limits.items():
                meter = pot.meters[span]
                resets_ms = meter.resets_ms(now_ms)
                standings.append(
                    Standing(
                        pot.budget,
                        span,
                        limit,
                        meter.used(now_ms),
                        None if resets_ms is None else resets_ms - now_ms,
                        **counts,
                    )
                )
            if not limits:
                standings.append(Standing(pot.budget, None, 0, 0, None, **counts))
        return tuple(standings)

    # --- over a restart ------------------------------------------------------

    def export_use(self, now_ms: int) -> list[dict[str, Any]]:
        """The use of all budgets as plain data, for `import_use` of the next broker.

        Calls without a settle are left out: the next broker counts them when it adopts
        their leases. Slots of the hour are ages in minutes, so that no clock leaves the
        process; those of days and months are their names.
        """
        uses = []
        minute = now_ms // SLOT_MS
        for pot in self._pots.values():
            for span in Span:
                slots = pot.settled(span)
                if span is Span.HOUR:
                    ages = {minute - slot: tokens for slot, tokens in slots.items()}
                    slots = {age: ages[age] for age in ages if 0 <= age < WINDOW_SLOTS}
                # The counts of requests are the whole budget's, and go with its first span.
                denied, would_deny = (pot.denied, pot.would_deny) if span is Span.HOUR else (0, 0)
                if slots or denied or would_deny:
                    uses.append(
                        {
                            "budget": pot.budget.name,
                            "span": span.value,
                            "slots": {str(slot): tokens for slot, tokens in slots.items()},
                            "denied": denied,
                            "would_deny": would_deny,
                        }
                    )
        return uses

    def import_use(self, uses: Iterable[Mapping[str, Any]], *, age_ms: int, now_ms: int) -> None:
        """Adds the use that an earlier broker exported *age_ms* ago.

        What belongs to a budget that does not exist is kept for one of that name.

        Raises:
            ValueError: An entry is no such use; the message names it. Nothing is added.
        """
        read = [_use(use, age_ms, now_ms) for use in uses]
        for use in read:
            pot = self._pots.get(use.budget)
            if pot is None:
                self._imported.setdefault(use.budget, []).append(use)
            else:
                pot.take(use)


def _use(data: Mapping[str, Any], age_ms: int, now_ms: int) -> Use:
    """Reads an entry of `BudgetBook.export_use`."""
    try:
        span = Span(data["span"])
        slots: dict[Any, int] = {str(slot): int(used) for slot, used in data["slots"].items()}
        if span is Span.HOUR:
            minute = (now_ms - age_ms) // SLOT_MS
            slots = {minute - int(age): used for age, used in slots.items()}
        counts = int(data.get("denied", 0)), int(data.get("would_deny", 0))
        return Use(str(data["budget"]), span, slots, *counts)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise ValueError(f"no use of a budget: {data!r}") from exc
