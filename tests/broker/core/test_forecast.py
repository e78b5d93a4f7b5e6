"""ETAs: ticks, what open calls will give back, and the order of service."""

from itertools import count

from broker.core.bucket import TICK_GUARD_MS
from broker.core.costs import SAMPLES_MIN
from broker.core.forecast import CallTimes, Forecast, Return, Ticks
from broker.core.quotes import Quote
from broker.core.waitlist import Waiting
from tests.broker.builders import envelope, request, settlement, synced

numbers = count()


def waiting(quote: Quote) -> Waiting:
    """A request that waits for what *quote* names."""
    return Waiting(request(f"w{next(numbers)}"), 0, quote)


def etas(
    *quotes: Quote, available: int, returns: tuple[Return, ...] = (), call_ms: float = 1_000
) -> list[int | None]:
    """When each is served; every minute brings 10 tokens."""
    forecast = Forecast(
        available=available,
        lump=10,
        ticks=Ticks(60_000, 60_000),
        returns=returns,
        call_ms=call_ms,
    )
    return list(forecast.etas_ms([waiting(quote) for quote in quotes]).values())


def test_what_calls_give_back_serves_before_the_tick() -> None:
    """A dear hold that will likely cost little is not counted as spent."""
    assert etas(Quote(1, 5, 5), available=2, returns=(Return(700, 4),)) == [700]


def test_a_call_to_come_gives_back_too() -> None:
    """Of two that hold ten for what likely costs five, the second follows a call later."""
    dear = Quote(1, 10, 10, likely=0.5)

    assert etas(dear, dear, available=15) == [0, 1_000]


def test_who_may_overrun_waits_for_the_calls_in_flight() -> None:
    """Beside others a call needs its worst cost; alone, or with plenty, only its price."""
    risky = Quote(1, 5, 5, worst=3.0)

    assert etas(risky, available=10) == [0]
    assert etas(risky, risky, available=10) == [0, 1_000]
    assert etas(risky, risky, available=20) == [0, 0]


def test_without_refill_only_what_comes_back_counts() -> None:
    """It is unknown when an account without refill will have more."""
    forecast = Forecast(
        available=0, lump=0, ticks=Ticks(0, 60_000), returns=[Return(50, 5)], call_ms=1
    )
    served, unserved = waiting(Quote(1, 5, 5)), waiting(Quote(1, 5, 5))

    assert list(forecast.etas_ms([served, unserved]).values()) == [50, None]


def test_the_usual_duration_follows_slowly() -> None:
    """The first call sets it; a single slow one hardly moves it."""
    times = CallTimes()
    times.learn(400)
    assert times.usual_ms == 400
    times.learn(2_000)

    assert times.usual_ms == 500


def test_everybody_gets_an_eta_in_order_of_service() -> None:
    """ETAs fall on ticks, count what is before one, and change when things change."""
    allocator = synced(2, refill_in=10_000)
    for number in range(3):
        allocator.acquire(request(f"w{number}", holder=f"h{number}"), 0)
    etas = list(allocator.etas_ms(0).values())
    allocator.cancel("w0", 10)

    tick_ms = 10_000 + TICK_GUARD_MS
    assert etas == [tick_ms, tick_ms + 60_200, tick_ms + 120_400]
    assert list(allocator.etas_ms(10).values()) == [tick_ms - 10, tick_ms + 60_190]


def test_an_eta_does_not_count_a_settled_call_twice() -> None:
    """Whether a reply includes its neighbour is unsure for a grant, not for a forecast."""
    allocator = synced(10, refill_in=10_000)
    for _ in range(SAMPLES_MIN):
        allocator.costs.learn("deal", 1, 5, 0)
    for lease_id in ("a", "b", "next"):
        allocator.acquire(request(lease_id, holder=lease_id), 0)
    for lease_id, left in (("a", 5), ("b", 0)):
        said = envelope(left, at=100, took=50, consumed=5, refill_in=9_850)
        allocator.settle(settlement(lease_id, said=said, holder=lease_id), 160)

    assert allocator.ledger.reserved == 5
    assert allocator.etas_ms(160) == {"next": 10_000 + TICK_GUARD_MS - 160}
