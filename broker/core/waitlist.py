"""Which request is served next: start-time fair queueing in tokens, in two levels.

Priority classes share by weight; inside a class holders share equally, or, where
identities have weights, identities by weight and the holders of each equally; inside
a holder it is first come, first served. Every class and every holder carries a
tag: the tokens it has been served, on a common scale. The smallest tag is the
head, and no request overtakes the head for being smaller than it.

A holder that comes back after idling starts at the current virtual time: time
away saves up no credit. Tokens it was served ahead of its turn are remembered
until the others have caught up.

A holder with a call under way is not idle: it keeps its turn, within `CREDIT_CALLS` of
the largest charges, if it comes back soon. The last tokens of a tick are kept for it
for a moment, if it is served before those that wait: else whichever loop is fastest
would get them every time.

Theory: start-time fair queueing (Goyal, Vin, Cheng 1996). Tags of backlogged
holders differ by at most the largest request.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import Final, TypeAlias

from msgspec import Struct, field

from broker.core.leases import LeaseRequest, Priority
from broker.core.ledger import LONG_AGO_MS
from broker.core.probing import PATIENCE_MS
from broker.core.quotes import Quote, TooLarge

# Most requests that keep a place while their client is away; the oldest gives way.
ABSENT_MAX: Final = 10_000

# Stale deadlines beyond this, and beyond those that count, are cleared away.
STALE_MAX: Final = 64

# A holder that asks again so soon after a grant was not idle between.
KEPT_MS: Final = 60_000
# How much of its turn it keeps then, in charges of the largest size lately seen. One is not
# enough where costs scatter: a call that is refunded lets others pass by as much.
CREDIT_CALLS: Final = 2
# Tokens are kept so long at most for a holder that is to come back, counted from its grant,
# and so long from the end of its call: a worker in a loop asks again at once.
YIELD_MS: Final = 2_000
RETURN_MS: Final = 250

# Weights 8 : 4 : 1, as the tag advance per token served, in whole numbers.
TAG_PER_TOKEN: Final = {Priority.HIGH: 1, Priority.NORMAL: 2, Priority.LOW: 8}


class Waiting(Struct, eq=False):
    """A request that waits since `since_ms` of the broker's clock."""

    request: LeaseRequest
    since_ms: int
    # By what was known when it was priced last.
    offer: Quote | TooLarge
    # Where it is queued; set by the class that it joins.
    group: "Group | None" = None

    @property
    def quote(self) -> Quote:
        """Its price, whether it can ever fit or not."""
        return self.offer.least if isinstance(self.offer, TooLarge) else self.offer

    @property
    def due_ms(self) -> int:
        """When it is answered even if Keepa stays silent."""
        due_ms = self.since_ms + PATIENCE_MS
        answer_by_ms = self.request.answer_by_ms
        return due_ms if answer_by_ms is None else min(due_ms, answer_by_ms)


class Place(Struct):
    """What is remembered of a holder: its tag, when it was served last, and how much then.

    `back_ms` is when it is expected back at the latest.
    """

    tag: int
    served_ms: int = LONG_AGO_MS
    served_tokens: int = 0
    back_ms: int = LONG_AGO_MS


class Flow(Struct, eq=False):
    """The requests of one holder in one class."""

    holder: str
    place: Place
    arrival: int
    queue: deque[Waiting] = field(default_factory=deque)

    @property
    def tag(self) -> int:
        """The smallest is served next."""
        return self.place.tag

    def __lt__(self, other: "Flow") -> bool:
        # A flow that was left and taken up again ties with its own stale entry in the heap.
        return self.arrival < other.arrival


class Absent(Struct, frozen=True):
    """A request with its client away, and its holder's place when it left."""

    waiting: Waiting
    tag: int
    arrival: int
    until_ms: int


# A heap entry, tag and arrival first; stale when the flow's tag has moved on. A plain tuple:
# one is made with every arrival.
Tagged: TypeAlias = tuple[int, int, Flow]


class PriorityClass:
    """The flows of one class; where identities have weights, of one identity in it."""

    def __init__(self) -> None:
        self.tag = 0
        # Start tag of the request last served: where newcomers begin.
        self.virtual_time = 0
        self.flows: dict[str, Flow] = {}
        # Of holders that do not wait, but were served lately, or ahead of virtual time.
        self.places: dict[str, Place] = {}
        # Those of them that are expected back; the one served first comes first.
        self._expected: dict[str, Place] = {}
        # The largest charge of late.
        self.largest = 0
        self._heap: list[Tagged] = []
        self._arrivals = 0
        self._places_max = 64

    def join(self, waiting: Waiting) -> None:
        """Queues *waiting* behind its holder's earlier requests."""
        holder = waiting.request.holder
        flow = self.flows.get(holder)
        if flow is None:
            place = self._come_back(holder, waiting.since_ms)
            self._arrivals += 1
            flow = self.flows[holder] = Flow(holder, place, self._arrivals)
            self._push(flow)
        flow.queue.append(waiting)

    def rejoin(self, absent: Absent) -> None:
        """Queues a request where it stood, as if it had never left."""
        waiting = absent.waiting
        flow = self.flows.get(waiting.request.holder)
        if flow is None:
            self._expected.pop(waiting.request.holder, None)
            place = self.places.pop(waiting.request.holder, None) or Place(absent.tag)
            flow = Flow(waiting.request.holder, place, absent.arrival)
            self.flows[flow.holder] = flow
            self._push(flow)
        elif absent.arrival < flow.arrival:
            flow.arrival = absent.arrival
            self._push(flow)
        earlier = sum(other.since_ms < waiting.since_ms for other in flow.queue)
        flow.queue.insert(earlier, waiting)

    def leave(self, waiting: Waiting) -> None:
        """Takes *waiting* out, served or not."""
        holder = waiting.request.holder
        flow = self.flows[holder]
        flow.queue.remove(waiting)
        if not flow.queue:
            place = flow.place
            del self.flows[holder]
            self.places[holder] = place
            if place.back_ms > LONG_AGO_MS:
                self._expected[holder] = place

    def serve(self, waiting: Waiting, tokens: int, now_ms: int) -> None:
        """Takes out *waiting*, which is at the front, and charges its holder *tokens* tokens."""
        flow = self.flows[waiting.request.holder]
        place = flow.place
        self.virtual_time = max(self.virtual_time, place.tag)
        self.largest = max(tokens, self.largest * 63 // 64)
        place.served_ms, place.served_tokens = now_ms, tokens
        place.back_ms = now_ms + YIELD_MS
        place.tag += tokens
        if len(self.places) > 2 * len(self.flows) + self._places_max:
            self._forget_places(now_ms)
        self.leave(waiting)
        if flow.queue:
            self._push(flow)

    def settled(self, holder: str, tokens: int, now_ms: int) -> None:
        """A call of *holder* is over; it cost *tokens* more (or less) than it was charged."""
        flow = self.flows.get(holder)
        if flow is not None:
            if tokens:
                flow.place.tag += tokens
                self._push(flow)
            return
        place = self.places.get(holder)
        if place is None:
            if tokens > 0:
                self.places[holder] = Place(self.virtual_time + tokens)
            return
        place.tag = self._start_tag(place, now_ms) + tokens
        place.back_ms = min(place.back_ms, now_ms + RETURN_MS)

    def yields_until(self, waiting: Waiting, left_tokens: int, now_ms: int) -> int | None:
        """Until when *waiting* has to wait for a holder that is served before it; None: go on.

        Args:
            waiting: The head.
            left_tokens: What its grant would leave; enough for any other call is no reason.
            now_ms: The broker's clock.
        """
        if left_tokens >= self.largest:
            return None
        expected, tag = self._expected, self.flows[waiting.request.holder].tag
        for holder, place in list(expected.items()):
            if place.back_ms <= now_ms:
                del expected[holder]
            elif place.tag < tag and place.served_tokens > left_tokens:
                return place.back_ms
        return None

    def _come_back(self, holder: str, now_ms: int) -> Place:
        """The place of a holder that begins to wait."""
        self._expected.pop(holder, None)
        place = self.places.pop(holder, None)
        if place is None:
            return Place(self.virtual_time)
        place.tag = self._start_tag(place, now_ms)
        return place

    def _start_tag(self, place: Place, now_ms: int) -> int:
        """Where it starts: it has saved up nothing, but its own turn if it was not idle."""
        is_kept = now_ms - place.served_ms <= KEPT_MS
        credit = CREDIT_CALLS * self.largest if is_kept else 0
        return max(place.tag, self.virtual_time - credit)

    def _forget_places(self, now_ms: int) -> None:
        """Forgets what no longer makes a difference; looks again when there are twice as many."""
        self.places = {
            holder: place
            for holder, place in self.places.items()
            if place.tag > self.virtual_time or now_ms - place.served_ms <= KEPT_MS
        }
        self._expected = {
            holder: place for holder, place in self._expected.items() if place.back_ms > now_ms
        }
        self._places_max = max(64, 2 * len(self.places))

    def first(self) -> Flow | None:
        """The flow with the smallest tag; None without any."""
        heap = self._heap
        while heap:
            if self._counts(heap[0]):
                return heap[0][2]
            heappop(heap)
        return None

    def by_tag(self) -> Iterator[Flow]:
        """All flows, smallest tag first; lazily, so that the first costs little.

        The heap is walked from its root: a node comes after its parent.
        """
        heap = self._heap
        last: Flow | None = None
        border = [(heap[0], 0)] if self.first() is not None else []
        while border:
            entry, place = heappop(border)
            for child in (2 * place + 1, 2 * place + 2):
                if child < len(heap):
                    heappush(border, (heap[child], child))
            # A tag that moved and came back is entered twice.
            if entry[2] is not last and self._counts(entry):
                last = entry[2]
                yield last

    def future(self) -> Iterator[Waiting]:
        """All requests, in the order of service if each is charged its quote."""
        coming = self.by_tag()
        served: list[tuple[int, int, int, Flow]] = []
        flow = next(coming, None)
        while flow is not None or served:
            if flow is not None and (not served or (flow.tag, flow.arrival) < served[0][:2]):
                tag, arrival, place, current = flow.tag, flow.arrival, 0, flow
                flow = next(coming, None)
            else:
                tag, arrival, place, current = heappop(served)
            waiting = current.queue[place]
            yield waiting
            if place + 1 < len(current.queue):
                heappush(served, (tag + waiting.quote.tokens, arrival, place + 1, current))

    def _counts(self, entry: Tagged) -> bool:
        """Whether *entry* is not stale."""
        tag, arrival, flow = entry
        return (
            tag == flow.place.tag
            and arrival == flow.arrival
            and self.flows.get(flow.holder) is flow
        )

    def _push(self, flow: Flow) -> None:
        heappush(self._heap, (flow.place.tag, flow.arrival, flow))
        if len(self._heap) > 4 * len(self.flows) + 64:
            self._heap = [(f.place.tag, f.arrival, f) for f in self.flows.values()]
            heapify(self._heap)


class Group(Struct, eq=False):
    """The holders of one identity; `tag` is what they were served together, by weight.

    It stays while they idle: what they were served ahead of their turn is remembered.
    """

    weight: float
    arrival: int
    holders: PriorityClass
    tag: float = 0.0
    served_ms: int = LONG_AGO_MS

    @property
    def claim(self) -> tuple[float, int]:
        """The smallest is served next."""
        return self.tag, self.arrival


class WeightedClass:
    """One class: identities share it by weight, and the holders of an identity equally.

    Without weights all holders are one group, and share equally.
    """

    def __init__(self, weights: Mapping[str, float], tag: int = 0) -> None:
        """Starts empty.

        Args:
            weights: The weight of each identity; any other has 1.
            tag: What the class has been served so far.
        """
        self.tag = tag
        # How many of its requests wait.
        self.waiting = 0
        self._weights = weights
        self._virtual_time = 0.0
        self._groups: dict[str, Group] = {}

    def group(self, holder: str) -> Group:
        """The group of *holder*."""
        name = holder.partition("/")[0] if self._weights else ""
        group = self._groups.get(name)
        if group is None:
            group = Group(self._weights.get(name, 1.0), len(self._groups), PriorityClass())
            self._groups[name] = group
        return group

    def join(self, waiting: Waiting) -> None:
        """Queues *waiting* behind its holder's earlier requests."""
        waiting.group = group = self.group(waiting.request.holder)
        if not group.holders.flows:
            group.tag = self._start_tag(group, waiting.since_ms)
        group.holders.join(waiting)

    def serve(self, waiting: Waiting, tokens: int, now_ms: int) -> None:
        """Takes out *waiting*, and charges *tokens* for it."""
        group = waiting.group
        assert group is not None
        self._virtual_time = max(self._virtual_time, group.tag)
        group.tag += tokens / group.weight
        group.served_ms = now_ms
        group.holders.serve(waiting, tokens, now_ms)

    def settled(self, holder: str, tokens: int, now_ms: int) -> None:
        """A call of *holder* is over; it cost *tokens* more (or less) than it was charged."""
        group = self.group(holder)
        if not group.holders.flows:
            group.tag = self._start_tag(group, now_ms)
        group.tag += tokens / group.weight
        group.holders.settled(holder, tokens, now_ms)

    def _start_tag(self, group: Group, now_ms: int) -> float:
        """Where *group* starts when it begins to wait; as for its holders."""
        is_kept = now_ms - group.served_ms <= KEPT_MS
        credit = CREDIT_CALLS * group.holders.largest / group.weight if is_kept else 0.0
        return max(group.tag, self._virtual_time - credit)

    def first(self) -> Flow | None:
        """The flow with the best claim; None without any."""
        busy = [group for group in self._groups.values() if group.holders.flows]
        return min(busy, key=attrgetter("claim")).holders.first() if busy else None

    def by_tag(self) -> Iterator[Flow]:
        """All flows, best claim first; lazily."""
        for group in sorted(self._groups.values(), key=lambda group: group.claim):
            yield from group.holders.by_tag()

    def future(self) -> Iterator[Waiting]:
        """All requests, in the order of service if each is charged its quote."""
        claims = {name: group.claim for name, group in self._groups.items()}
        futures = {name: group.holders.future() for name, group in self._groups.items()}
        while futures:
            name = min(futures, key=claims.__getitem__)
            waiting = next(futures[name], None)
            if waiting is None:
                del futures[name]
                continue
            yield waiting
            tag, arrival = claims[name]
            claims[name] = tag + waiting.quote.tokens / self._groups[name].weight, arrival


class Waitlist:
    """All requests that wait, in the order in which they will be served."""

    def __init__(self, caller: Callable[[str], str] = str) -> None:
        """Starts with nothing queued.

        Args:
            caller: The caller behind a holder, for `waits_of`.
        """
        self._caller = caller
        # How many requests wait, by caller.
        self._waits: dict[str, int] = {}
        self._weights: dict[str, float] = {}
        self._classes = {priority: WeightedClass(self._weights) for priority in Priority}
        self._waiting: dict[str, Waiting] = {}
        # Soonest to be forgotten first: all are kept equally long.
        self._absent: dict[str, Absent] = {}
        self._virtual_time = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, lease_id: str) -> bool:
        return lease_id in self._waiting

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._waiting.values())

    def waits_of(self, holder: str) -> int:
        """How many requests of the caller behind *holder* wait."""
        return self._waits.get(self._caller(holder), 0)

    def get(self, lease_id: str) -> Waiting | None:
        """The request waiting under *lease_id*."""
        return self._waiting.get(lease_id)

    def add(self, waiting: Waiting) -> None:
        """Queues *waiting*; its lease_id must be new."""
        assert waiting.request.lease_id not in self._waiting
        klass = self._classes[waiting.request.priority]
        if not klass.waiting:
            klass.tag = max(klass.tag, self._virtual_time)
        klass.join(waiting)
        self._enter(waiting, klass)

    def remove(self, lease_id: str) -> Waiting | None:
        """Takes a request out unserved; None if it does not wait."""
        self._absent.pop(lease_id, None)
        waiting = self._waiting.get(lease_id)
        if waiting is not None:
            self._leave(waiting)
            self._holders_of(waiting).leave(waiting)
        return waiting

    def park(self, lease_id: str, until_ms: int) -> None:
        """Takes a waiting request out, but keeps its place for `restore`.

        Until then it neither is the head nor delays others.
        """
        waiting = self._waiting[lease_id]
        self._leave(waiting)
        holders = self._holders_of(waiting)
        flow = holders.flows[waiting.request.holder]
        self._absent[lease_id] = Absent(waiting, flow.tag, flow.arrival, until_ms)
        holders.leave(waiting)
        if len(self._absent) > ABSENT_MAX:
            del self._absent[next(iter(self._absent))]

    def find(self, lease_id: str) -> Waiting | None:
        """The request under *lease_id*: waiting, or absent with its place kept."""
        waiting = self._waiting.get(lease_id)
        return self.absent(lease_id) if waiting is None and self._absent else waiting

    def absent(self, lease_id: str) -> Waiting | None:
        """The request with its place kept under *lease_id*."""
        absent = self._absent.get(lease_id)
        return None if absent is None else absent.waiting

    def restore(self, lease_id: str) -> Waiting | None:
        """Puts an absent request back in its place; None if there is none."""
        absent = self._absent.pop(lease_id, None)
        if absent is None:
            return None
        waiting = absent.waiting
        klass = self._classes[waiting.request.priority]
        waiting.group = klass.group(waiting.request.holder)
        waiting.group.holders.rejoin(absent)
        self._enter(waiting, klass)
        return waiting

    def forget_absent(self, now_ms: int) -> None:
        """Gives up the places that have been kept long enough."""
        while self._absent:
            lease_id, absent = next(iter(self._absent.items()))
            if absent.until_ms > now_ms:
                return
            del self._absent[lease_id]

    def serve(self, waiting: Waiting, tokens: int, now_ms: int) -> None:
        """Takes *waiting* out and charges *tokens* for it."""
        priority = waiting.request.priority
        klass = self._classes[priority]
        self._leave(waiting)
        self._virtual_time = max(self._virtual_time, klass.tag)
        klass.tag += tokens * TAG_PER_TOKEN[priority]
        klass.serve(waiting, tokens, now_ms)

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Lets identities share each class by these weights; without any, holders share equally.

        Those that wait keep their order, and begin anew at the same virtual time.
        """
        if weights == self._weights:
            return
        waiting = list(self.order())
        self._weights = dict(weights)
        self._classes = {
            priority: WeightedClass(self._weights, klass.tag)
            for priority, klass in self._classes.items()
        }
        for each in waiting:
            self._classes[each.request.priority].join(each)
            self._classes[each.request.priority].waiting += 1

    @staticmethod
    def _holders_of(waiting: Waiting) -> PriorityClass:
        assert waiting.group is not None
        return waiting.group.holders

    def _enter(self, waiting: Waiting, klass: WeightedClass) -> None:
        self._waiting[waiting.request.lease_id] = waiting
        klass.waiting += 1
        caller = self._caller(waiting.request.holder)
        self._waits[caller] = self._waits.get(caller, 0) + 1

    def _leave(self, waiting: Waiting) -> None:
        request = waiting.request
        assert self._waiting[request.lease_id] is waiting
        del self._waiting[request.lease_id]
        self._classes[request.priority].waiting -= 1
        caller = self._caller(request.holder)
        waits = self._waits[caller] - 1
        if waits:
            self._waits[caller] = waits
        else:
            del self._waits[caller]

    def settled(self, priority: Priority, holder: str, tokens: int, now_ms: int) -> None:
        """A call is over that really cost *tokens* more (or less, if negative)."""
        klass = self._classes[priority]
        if tokens and not klass.waiting:
            klass.tag = max(klass.tag, self._virtual_time)
        klass.tag += tokens * TAG_PER_TOKEN[priority]
        klass.settled(holder, tokens, now_ms)

    def yields_until(self, head: Waiting, left_tokens: int, now_ms: int) -> int | None:
        """Until when *head* waits for a holder before it that is to come back; None: go on."""
        assert head.group is not None
        until_ms = head.group.holders.yields_until(head, left_tokens, now_ms)
        deadline_ms = head.request.deadline_ms
        if until_ms is not None and deadline_ms is not None and deadline_ms <= until_ms:
            return None
        return until_ms

    def head(self) -> Waiting | None:
        """The request to serve next; None if none waits."""
        if len(self._waiting) <= 1:
            return next(iter(self._waiting.values()), None)
        busy = [klass for klass in self._classes.values() if klass.waiting]
        # In the order of the classes, which settles ties.
        first = min(busy, key=attrgetter("tag")).first()
        assert first is not None
        return first.queue[0]

    def queues(self) -> Iterator[Sequence[Waiting]]:
        """The requests of every holder in the order of service, best claim first; lazily."""
        busy = [klass for klass in self._classes.values() if klass.waiting]
        # In the order of the classes, which settles ties.
        for klass in sorted(busy, key=lambda klass: klass.tag):
            for flow in klass.by_tag():
                yield flow.queue

    def order(self) -> Iterator[Waiting]:
        """All requests, in the order of service if no further ones come; lazily.

        Assumes that each is charged its quote; changes nothing.
        """
        tags = {priority: klass.tag for priority, klass in self._classes.items()}
        futures = {priority: klass.future() for priority, klass in self._classes.items()}
        while futures:
            # In the order of the classes, which settles ties.
            priority = min(futures, key=tags.__getitem__)
            waiting = next(futures[priority], None)
            if waiting is None:
                del futures[priority]
                continue
            yield waiting
            tags[priority] += waiting.quote.tokens * TAG_PER_TOKEN[priority]


class Deadlines:
    """Deadlines of the requests that wait, soonest first; a repeated request moves its own."""

    def __init__(self) -> None:
        # Entries of requests that were answered or moved are stale, and few.
        self._soonest: list[tuple[int, str]] = []
        self._deadlines: dict[str, int] = {}
        # Past their deadline, but their first decision still awaits a probe.
        self._overdue: dict[str, Waiting] = {}

    def add(self, request: LeaseRequest) -> None:
        """Takes note of when *request* wants its answer, if it has a deadline."""
        lease_id, deadline_ms = request.lease_id, request.deadline_ms
        if deadline_ms == self._deadlines.get(lease_id):
            return
        self.drop(lease_id)
        if deadline_ms is None:
            return
        self._deadlines[lease_id] = deadline_ms
        heappush(self._soonest, (deadline_ms, lease_id))
        if len(self._soonest) > 2 * len(self._deadlines) + STALE_MAX:
            self._soonest = [(due_ms, name) for name, due_ms in self._deadlines.items()]
            heapify(self._soonest)

    def drop(self, lease_id: str) -> None:
        """It has its answer, or needs none."""
        self._overdue.pop(lease_id, None)
        self._deadlines.pop(lease_id, None)

    def are_due(self, now_ms: int) -> bool:
        """Whether a request may be out of time."""
        return bool(self._overdue or (self._soonest and self._soonest[0][0] <= now_ms))

    def passed(self, waitlist: Waitlist, now_ms: int, *, undecided: bool) -> list[Waiting]:
        """The requests out of time; while *undecided*, only those that can't await a probe."""
        while self._soonest and self._soonest[0][0] <= now_ms:
            deadline_ms, lease_id = heappop(self._soonest)
            waiting = waitlist.get(lease_id)
            if waiting is not None and self._deadlines.get(lease_id) == deadline_ms:
                self._overdue[lease_id] = waiting
        overdue = self._overdue.values()
        return [waiting for waiting in overdue if not undecided or waiting.due_ms <= now_ms]

    def next_wake_ms(self) -> int | None:
        """When the next request runs out of time."""
        due_ms = self._soonest[0][0] if self._soonest else None
        if self._overdue:
            overdue_ms = min(waiting.due_ms for waiting in self._overdue.values())
            due_ms = overdue_ms if due_ms is None else min(due_ms, overdue_ms)
        return due_ms
