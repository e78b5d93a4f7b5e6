"""The auditor: checks every event against the model of Keepa.

After every event:

* books: opening + refill - lapsed - spent - foreign = balance, in the model;
* the ledger never counts too much: observed - reserved is at most Keepa's balance less
  everything that may still be charged, but for surprises since the observation;
* what the broker counts as spent is what Keepa charged for the settled calls, to
  the token, each once;
* liveness: if the balance covers the head and Keepa answers, the head is granted
  within a sync;
* the broker does not spin;
* reserved is the sum of the holds (checked in full as often as is cheap).

At every grant: it rests on tokens that Keepa has confirmed, or Keepa can't be
asked; and no request has waited beyond the bound of fairness.py. At every refusal:
there was a surprise. At every outcome: the request was waiting.

A surprise is what no ledger can foresee: foreign spend, a call that cost more than its
hold, a call of an earlier epoch that no client has presented yet, a grant while Keepa
could not be asked. It is counted in tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.core.leases import Denied, Granted, Lease, LeaseRequest, Outcome, Settlement
from broker.core.ledger import Ledger
from broker.core.probing import Reason
from tests.simulation.budget_audit import BudgetAudit
from tests.simulation.call import Call
from tests.simulation.errors import CheckFailedError
from tests.simulation.fairness import WaitBound
from tests.simulation.keepa_model import KeepaModel
from tests.simulation.liveness import Liveness
from tests.simulation.measures import Measures
from tests.simulation.scenario import Scenario
from tests.simulation.timeline import Timeline

if TYPE_CHECKING:
    from tests.simulation.broker_process import BrokerProcess

# More than any account holds.
FORGOTTEN_TOKENS: Final = 10**6


class Audit:
    """Sees everything, changes nothing."""

    def __init__(
        self, scenario: Scenario, timeline: Timeline, model: KeepaModel, measures: Measures
    ) -> None:
        self.surprises = 0
        # Filled for a trace only.
        self.trace: list[str] | None = None
        self.bound = WaitBound(scenario.workers, scenario.workers_per_holder)
        self._scenario, self._timeline, self._model = scenario, timeline, model
        self._measures = measures
        self._broker: BrokerProcess | None = None
        # Holds of calls that may still be charged, known to the present broker.
        self._held: dict[str, Call] = {}
        self._outstanding = 0
        self._waiting: dict[str, Call] = {}
        self._granted: dict[str, Lease] = {}
        self._settled: set[str] = set()
        self._spent = 0
        self._unsummed = 0
        self.liveness = Liveness(scenario, timeline, model)
        self.budgets = BudgetAudit(scenario.budgets, scenario.day_ms, self._fail)

    # --- what happens at Keepa ---------------------------------------------------

    def ticked(self) -> None:
        """A lump has landed."""
        self.note("tick: Keepa has %s", self._model.balance)

    def charged(self, call: Call) -> None:
        """Keepa has taken a call's cost."""
        self.note("Keepa charges %s %s", call.lease_id, call.cost)
        call.charged = True
        self._measures.charged(call)
        if call.held:
            self._release(call)
            self.surprises += max(0, call.cost - call.tokens)
        else:
            self.surprises += call.cost

    def refused(self, call: Call) -> None:
        """Keepa has refused a call."""
        self.note("Keepa refuses %s", call.lease_id)
        self._measures.refusals += 1
        if self.surprises <= call.surprises:
            self._fail("refusal", f"{call.lease_id} was refused, and nothing explains it")
        self.harmless(call)

    def struck_by_stranger(self, cost: int) -> None:
        """Another program has spent from the account."""
        self.note("a stranger spends %s", cost)
        self.surprises += cost

    # --- what happens to requests ------------------------------------------------

    def asked(self, call: Call) -> None:
        """A worker wants something."""
        self._measures.requests += 1

    def harmless(self, call: Call) -> None:
        """It will never be charged."""
        call.harmless = True
        if call.held:
            self._release(call)

    def over(self, call: Call) -> None:
        """The worker is done with it."""
        call.over = True

    def born(self) -> None:
        """A new holder."""
        self.bound.born()

    # --- what happens at the broker ------------------------------------------------

    def started(self, broker: BrokerProcess) -> None:
        """A broker has come up, knowing nothing."""
        self.note("broker starts")
        self._broker = broker
        for call in self._held.values():
            call.held = False
        self._held.clear()
        self._outstanding = self._spent = 0
        self._waiting.clear()
        self._granted.clear()
        self._settled.clear()
        self.bound.forget()
        # Keepa's earlier replies lack the calls that only the last broker counted.
        self.surprises += FORGOTTEN_TOKENS
        self.liveness.restarted()

    def probe_started(self, reason: Reason) -> None:
        """The broker asks Keepa."""
        self.note("broker asks Keepa: %s", reason.value)
        self._measures.probes[reason.value] += 1

    def probe_failed(self) -> None:
        """Keepa gave no answer: no grant is due."""
        self.note("broker's probe fails")
        self.liveness.not_starved()

    def arrives(self, broker: BrokerProcess, call: Call, request: LeaseRequest) -> None:
        """An acquire is at the broker."""
        self.note("broker gets acquire %s of %s units", call.lease_id, call.units)
        self._waiting[call.lease_id] = call
        self.bound.begins(call)
        if request.deadline_ms is not None:
            self.liveness.expect_answer(broker, request, request.deadline_ms)

    def turned_away(self, call: Call) -> None:
        """The acquire was an error."""
        self.note("broker turns %s away", call.lease_id)
        assert self._broker is not None
        # A late copy of an acquire may reach a broker that adopted its lease by a heartbeat.
        lease = self._broker.allocator.ledger.lease(call.lease_id)
        adopted = lease is not None and lease.request is None
        granted = adopted or call.lease_id in self._granted
        if not granted and not call.over and not call.harmless:
            self._fail("outcome", f"{call.lease_id} was turned away, but is new")
        self._ends(call.lease_id)

    def cancelled(self, call: Call) -> None:
        """Its last RPC has gone."""
        self.note("broker cancels %s", call.lease_id)
        self._ends(call.lease_id)

    def decided(
        self, broker: BrokerProcess, lease_id: str, outcome: Granted | Denied, call: Call | None
    ) -> None:
        """The allocator has answered a request."""
        if self._waiting.get(lease_id) is None or call is None:
            self._fail("outcome", f"{lease_id} was answered, but does not wait: {outcome}")
            return
        self._ends(lease_id)
        if isinstance(outcome, Denied):
            self.note("broker denies %s: %s", lease_id, outcome.reason.value)
            self._measures.denied(outcome)
            self.budgets.denied(outcome)
            return
        lease = outcome.lease
        if self._granted.get(lease_id) is lease:
            self.note("broker repeats its grant of %s", lease_id)
            return
        self.note("broker grants %s %s tokens", lease_id, lease.tokens)
        self._granted[lease_id] = lease
        self._check_grant(broker, call, lease)
        self.budgets.granted(broker.allocator, call, lease, self._timeline.now_ms)
        self._measures.granted(call, outcome)
        self.liveness.granted()
        self.bound.serve(call.demand.priority, lease.tokens)
        complaint = None if self._scenario.budgets else self.bound.broken_by()
        if complaint is not None:
            self._fail("wait", complaint)

    def settled(self, broker: BrokerProcess, call: Call, settlement: Settlement) -> None:
        """A settle was accepted."""
        lease_id, outcome = call.lease_id, settlement.outcome
        self.note("broker settles %s: %s", lease_id, outcome.value)
        if outcome is Outcome.NOT_SENT:
            self._ends(lease_id)
        self._adopted(call, broker.allocator.ledger.lease(lease_id))
        if outcome is Outcome.UNKNOWN or lease_id in self._settled:
            return
        self._settled.add(lease_id)
        cost = call.cost if call.charged else 0
        self._spent += cost
        self.budgets.over(call)
        lease = self._granted.get(lease_id)
        if lease is not None:
            self.bound.serve(call.demand.priority, cost - lease.tokens)

    def settle_failed(self, call: Call, error: Exception) -> None:
        """A settle failed, for which the simulated clients give no cause."""
        self._fail("settle", f"{call.lease_id} could not be settled: {error}")

    def renewed(self, call: Call, lease: Lease) -> None:
        """A heartbeat was accepted."""
        self.note("broker renews %s", call.lease_id)
        self._adopted(call, lease)

    # --- checks ----------------------------------------------------------------------

    def check(self) -> None:
        """Whatever must hold after every event."""
        model = self._model
        if model.books.balance != model.balance:
            self._fail("books", f"{model.books} do not give {model.balance}")
        broker = self._broker
        if broker is None or not broker.alive:
            return
        ledger = broker.allocator.ledger
        if ledger.totals.spent_tokens != self._spent:
            self._fail(
                "spent", f"counted {ledger.totals.spent_tokens}, really {self._spent} tokens"
            )
        if ledger.rests_on is not None and self._believed(ledger) > self._truth(ledger):
            self._explain_high(broker)
        self._unsummed += 1
        if self._unsummed > ledger.open_leases + 8:
            self._unsummed = 0
            self.check_holds(broker)
        if len(broker.allocator.waitlist):
            self.liveness.check(broker)
        else:
            self.liveness.not_starved()

    def check_holds(self, broker: BrokerProcess) -> None:
        """Reserved is the sum of the holds, and none is missing that is needed."""
        ledger = broker.allocator.ledger
        total = sum(lease.held for lease in ledger)
        if total != ledger.reserved:
            self._fail("reserved", f"{ledger.reserved} reserved, but holds sum up to {total}")
        for lease_id in list(self._held):
            if ledger.lease(lease_id) is None:
                self._unheld(self._held[lease_id])

    def check_settled(self, broker: BrokerProcess) -> None:
        """Checks the end: no request is left, and Keepa has just been asked."""
        ledger, model = broker.allocator.ledger, self._model
        if len(broker.allocator.waitlist) or self._waiting:
            self._fail("end", f"still waiting: {list(self._waiting)[:5]}")
        if ledger.open_leases or ledger.reserved:
            self._fail("end", f"{ledger.reserved} tokens stay reserved: {list(ledger)[:3]}")
        if ledger.bucket.observed != model.balance:
            self._fail("end", f"observed {ledger.bucket.observed}, really {model.balance}")

    def note(self, text: str, *details: object) -> None:
        """Adds a line to the trace."""
        if self.trace is not None:
            self.trace.append(f"{self._timeline.now_ms / 1000:11.3f}  {text % details}")

    def _check_grant(self, broker: BrokerProcess, call: Call, lease: Lease) -> None:
        ledger, scenario = broker.allocator.ledger, self._scenario
        seen = ledger.bucket.observation
        if seen is None:
            self._fail("grant", f"{lease.lease_id} was granted before Keepa ever answered")
            return
        headroom = self._believed(ledger)
        least = scenario.floor_tokens - broker.allocator.quotes.debt_tokens
        lone = ledger.in_flight_tokens(0) == lease.tokens and headroom + lease.tokens > 0
        if headroom < least or (headroom < 0 and not lone):
            if not broker.keepa_unreachable():
                self._fail(
                    "grant",
                    f"{lease.lease_id} has {lease.tokens} tokens, which leaves {headroom}"
                    " confirmed ones",
                )
            self.surprises += lease.tokens
        call.surprises = self._witness(ledger)
        call.tokens = lease.tokens
        if not call.harmless and not call.over:
            self._hold(call)

    def _explain_high(self, broker: BrokerProcess) -> None:
        """The ledger believes in more tokens than there are: is there an excuse?"""
        self.check_holds(broker)
        ledger = broker.allocator.ledger
        seen = ledger.rests_on
        assert seen is not None
        believed, truth = self._believed(ledger), self._truth(ledger)
        if believed > truth:
            self._fail(
                "high",
                f"the ledger counts on {believed} tokens (from {seen.envelope.tokens_left},"
                f" {ledger.reserved} reserved); there are {truth} (Keepa has"
                f" {self._model.balance}, {self._outstanding} may yet be charged)",
            )

    def _believed(self, ledger: Ledger) -> int:
        """The confirmed tokens that the broker counts on."""
        return ledger.headroom(0, projected=False)

    def _truth(self, ledger: Ledger) -> int:
        """The balance, and the tokens spent that no ledger can have seen yet."""
        surprise = self.surprises - self._witness(ledger)
        return self._model.balance - self._outstanding + surprise

    @staticmethod
    def _witness(ledger: Ledger) -> int:
        """Surprises that the count includes: those before the words that it rests on."""
        assert ledger.rests_on is not None
        return ledger.rests_on.envelope.surprises  # type: ignore[attr-defined, no-any-return]  # witnessed

    def _unheld(self, call: Call) -> None:
        """The ledger has dropped the hold of a call that Keepa may still charge."""
        if self.surprises <= call.surprises:
            self._fail("hold", f"the hold of {call.lease_id} is gone, its call is not")
        self._release(call)
        self.surprises += call.tokens

    # --- holds -------------------------------------------------------------------------

    def _adopted(self, call: Call, lease: Lease | None) -> None:
        """The broker may have adopted a call of an earlier broker."""
        if lease is not None and not (call.held or call.charged or call.harmless):
            call.tokens = lease.tokens
            self._hold(call)

    def _hold(self, call: Call) -> None:
        call.held = True
        self._held[call.lease_id] = call
        self._outstanding += call.tokens

    def _release(self, call: Call) -> None:
        call.held = False
        del self._held[call.lease_id]
        self._outstanding -= call.tokens

    def _ends(self, lease_id: str) -> None:
        self._waiting.pop(lease_id, None)
        self.bound.ends(lease_id)

    def _fail(self, check: str, message: str) -> None:
        raise CheckFailedError(check, message, self._timeline.now_ms)
