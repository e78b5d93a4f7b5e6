"""The stand-in without its HTTP edge: accounts, catalogues, endpoints, faults, journal."""

from collections.abc import Callable
from hashlib import sha256
from random import Random
from typing import IO, Any

from deploy.keepa_simulator.account import Account
from deploy.keepa_simulator.catalogue import Catalogue
from deploy.keepa_simulator.category_endpoint import Categories
from deploy.keepa_simulator.deal_endpoint import DealEndpoint
from deploy.keepa_simulator.exchange import Answer, Query
from deploy.keepa_simulator.faults import Fault, Faults
from deploy.keepa_simulator.finder import Finder
from deploy.keepa_simulator.journal import Journal
from deploy.keepa_simulator.kept import Kept
from deploy.keepa_simulator.options import Options, fingerprint
from deploy.keepa_simulator.product_endpoint import ProductEndpoint
from deploy.keepa_simulator.seller_endpoint import Sellers
from deploy.keepa_simulator.tracking_endpoint import Trackings

# The catalogue of this site exists from the start; others are made on first use.
_FIRST_DOMAIN = 1

# These read every product, so they run in a thread beside the server.
SLOW_PATHS = frozenset(("/query", "/bestsellers", "/search"))
# Their requests are in the journal.
SELECTING_PATHS = frozenset(("/deal", "/query"))

Endpoint = Callable[[Query], Answer]


def _phase_ms(name: str, tick_ms: int) -> int:
    """An account's own phase: 1 to tick_ms until its first lump."""
    return int.from_bytes(sha256(name.encode()).digest()[:4]) % tick_ms + 1


class Simulator:
    """The state that calls share.

    Args:
        options: Settings of the simulator.
        now_ms: The server's clock, Unix milliseconds.
        journal_file: Gets one line per call; None: no file.
        kept: What an earlier process has left; None: nothing outlives this one.
    """

    def __init__(
        self,
        options: Options,
        now_ms: int,
        journal_file: IO[str] | None = None,
        kept: Kept | None = None,
    ) -> None:
        self.options = options
        self._kept = kept
        earlier_ms = None if kept is None else kept.start_ms
        self.start_ms = now_ms if earlier_ms is None else earlier_ms
        self.rng = Random(options.seed)  # noqa: S311 - nothing secret is drawn
        self.journal = Journal(journal_file)
        self.faults = Faults(self.rng)
        for fault in options.faults:
            self.faults.set(fault, self.start_ms)
        # In the order of the given keys.
        self.accounts = {fingerprint(key): self._account(key) for key in options.api_keys}
        if kept is not None:
            for name, account in self.accounts.items():
                kept.restore(name, account)
        self.catalogues: dict[int, Catalogue] = {}
        self.catalogue(_FIRST_DOMAIN)
        self.keep()
        self.deals = DealEndpoint(self.catalogue, options.cache_ms)
        finder, categories = Finder(self.catalogue), Categories(self.catalogue)
        sellers = Sellers(self.catalogue)
        self.endpoints: dict[str, Endpoint] = {
            "/deal": self.deals.answer,
            "/product": ProductEndpoint(self.catalogue).answer,
            "/query": finder.answer,
            "/bestsellers": finder.best_sellers,
            "/category": categories.lookup,
            "/search": categories.search,
            "/seller": sellers.lookup,
            "/topseller": sellers.top,
            "/lightningdeal": sellers.lightning_deals,
            "/tracking": Trackings().answer,
        }

    def _account(self, key: str) -> Account:
        options = self.options
        account = Account(
            rate=options.rate,
            tick_ms=options.tick_ms,
            next_tick_ms=self.start_ms + _phase_ms(key, options.tick_ms),
            balance=0,
        )
        full = account.capacity
        account.balance = full if options.initial_tokens is None else options.initial_tokens
        account.opening = account.balance
        return account

    def keep(self) -> None:
        """Saves the accounts; call it after each change but a tick."""
        if self._kept is not None:
            self._kept.save(self.start_ms, self.accounts)
            for domain, catalogue in self.catalogues.items():
                self._kept.save_catalogue(catalogue, self._made_of(domain))

    def catalogue(self, domain: int) -> Catalogue:
        """The catalogue of an Amazon site; a new one is in its state at the start."""
        if domain not in self.catalogues:
            made_of = self._made_of(domain)
            copy = None if self._kept is None else self._kept.catalogue(made_of)
            self.catalogues[domain] = copy or Catalogue(**made_of)
        return self.catalogues[domain]

    def _made_of(self, domain: int) -> dict[str, Any]:
        """The arguments of a catalogue."""
        options = self.options
        return {
            "seed": options.seed,
            "domain": domain,
            "products": options.products,
            "deals": options.deals,
            "speed": options.deal_speed,
            "start_ms": self.start_ms,
        }

    def catch_up(self, now_ms: int) -> None:
        """Runs the first catalogue's events since its start, perhaps in an earlier process."""
        self.catalogue(_FIRST_DOMAIN).advance(now_ms)

    def advance(self, now_ms: int) -> None:
        """Runs the ticks and account faults that are due by *now_ms*."""
        for account in self.accounts.values():
            account.advance(now_ms)
        for fault in self.faults.on_accounts(now_ms):
            for account in self.accounts.values():
                _befall(account, fault, now_ms)
            self.keep()

    def stats(self, now_ms: int) -> dict[str, Any]:
        """All token movements and call counts so far."""
        self.advance(now_ms)
        accounts = [_account_stats(name, it, now_ms) for name, it in self.accounts.items()]
        totals = ("opening", "refilled", "lapsed", "spent", "foreign", "balance")
        return {
            "time_ms": now_ms,
            "start_ms": self.start_ms,
            "accounts": accounts,
            **{name: sum(account[name] for account in accounts) for name in totals},
            "calls": sum(self.journal.by_path.values()),
            "calls_by_path": dict(self.journal.by_path),
            "calls_by_status": dict(self.journal.by_status),
            "throttled": self.journal.by_status["429"],
            "deals": {str(domain): len(it.deals) for domain, it in self.catalogues.items()},
        }


def _befall(account: Account, fault: Fault, now_ms: int) -> None:
    match fault.kind:
        case "foreign":
            # Calls of other users of the key pass the same admission.
            if account.balance > 0:
                account.spend_elsewhere(int(fault.value("tokens")), now_ms)
        case "jump":
            account.spend_elsewhere(-int(fault.value("tokens")), now_ms)
        case "plan":
            account.change_plan(max(1, int(fault.value("rate"))), now_ms)
        case "reduction":
            account.reduce_flow(fault.value("tokens"), now_ms)


def _account_stats(name: str, account: Account, now_ms: int) -> dict[str, Any]:
    return {
        "key_fingerprint": name,
        "rate": account.rate,
        "capacity": account.capacity,
        "tick_ms": account.tick_ms,
        "token_flow_reduction": account.flow_reduction,
        "refill_in_ms": account.refill_in_ms(now_ms),
        "opening": account.opening,
        "refilled": account.refilled,
        "lapsed": account.lapsed,
        "spent": account.spent,
        "foreign": account.foreign,
        "balance": account.balance,
        "refused_calls": account.refused_calls,
    }
