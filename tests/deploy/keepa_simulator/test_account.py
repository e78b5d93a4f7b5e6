"""The simulated bucket behaves as Keepa's was measured."""

from hypothesis import given
from hypothesis import strategies as st

from deploy.keepa_simulator.account import KEEPA_TICK_MS, Account

PLAN = {"rate": 5, "tick_ms": KEEPA_TICK_MS}


def test_worked_check_of_the_recordings() -> None:
    """A balance of -249 tokens is exactly 266 one call and an hour and three quarters later."""
    refused_at_ms, refill_in_ms = 1_758_036_697_230, 45_592
    account = Account(**PLAN, balance=-249, next_tick_ms=refused_at_ms + refill_in_ms)
    account.charge(5, 1_758_042_993_375)

    assert account.balance == 266


def test_tokens_land_in_lumps() -> None:
    """No token arrives between two ticks."""
    account = Account(**PLAN, balance=10, next_tick_ms=1_000)
    account.advance(999)
    before = account.balance
    account.advance(1_000)

    assert (before, account.balance) == (10, 15)
    assert account.refill_in_ms(1_000) == KEEPA_TICK_MS


def test_a_call_runs_whatever_it_costs() -> None:
    """One token is enough to start a call that costs hundreds."""
    account = Account(**PLAN, balance=1, next_tick_ms=1_000)
    admitted = account.admit(0)
    account.charge(386, 0)

    assert admitted
    assert account.balance == -385
    assert not account.admit(0)
    assert account.refused_calls == 1


def test_refill_stops_at_sixty_ticks_worth() -> None:
    """Tokens above the capacity lapse."""
    account = Account(**PLAN, balance=298, next_tick_ms=1_000)
    account.advance(1_000 + 3 * KEEPA_TICK_MS)

    assert account.balance == account.capacity == 300
    assert (account.refilled, account.lapsed) == (20, 18)


def test_downgrade_takes_nothing_away() -> None:
    """A balance above the new capacity stays, but gets no refill."""
    account = Account(rate=20, tick_ms=1_000, balance=1_200, next_tick_ms=1_000)
    account.change_plan(5, 0)
    account.advance(5_000)

    assert account.balance == 1_200
    assert account.lapsed == account.refilled == 25


def test_flow_reduction_may_be_a_fraction() -> None:
    """Withheld fractions of a token add up over the ticks."""
    account = Account(rate=5, tick_ms=1_000, balance=0, next_tick_ms=1_000, flow_reduction=0.5)
    account.advance(4_000)

    assert account.balance == 18


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["charge", "foreign", "plan", "reduce", "wait"]),
            st.integers(0, 400),
            st.integers(0, 5_000),
        )
    )
)
def test_every_token_is_accounted_for(steps: list[tuple[str, int, int]]) -> None:
    """After any events, income less spending is the balance; lumps stop at the capacity."""
    account, now_ms = Account(rate=7, tick_ms=1_000, balance=50, next_tick_ms=300), 0
    for step, amount, elapsed_ms in steps:
        now_ms += elapsed_ms
        match step:
            case "charge":
                account.charge(amount, now_ms)
            case "foreign":
                account.spend_elsewhere(amount - 200, now_ms)
            case "plan":
                account.change_plan(amount + 1, now_ms)
            case "reduce":
                account.reduce_flow(amount / 7, now_ms)
            case _:
                account.advance(now_ms)
        moved = account.refilled - account.lapsed - account.spent - account.foreign

        assert account.opening + moved == account.balance
        assert 0 < account.refill_in_ms(now_ms) <= 1_000
