"""The available rules: the value that each checks, and the three shapes of its limit.

A rule on a number or an amount of money (minor units) is {"min": …, "max": …}, on words or
codes {"include": […], "exclude": […]}, on a yes or no {"is": true}. Each may add "unknown":
"pass", "reject" or "pending" (wait for the product's details). The default is "reject".
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast

from fetcher.queries.profit import ProfitEstimate
from fetcher.queries.reader import DURATION_UNITS_MS, BadKeyError, Section, duration_words
from fetcher.replies.deals import Deal
from fetcher.replies.products import Product
from fetcher.replies.record import INT32_MAX
from fetcher.replies.units import MS_PER_MINUTE, money_words

Value = int | bool | tuple[int, ...] | str
OnUnknown = Literal["pass", "reject", "pending"]
Kind = Literal["number", "money", "duration", "codes", "words", "phrases", "truth"]

ON_UNKNOWN: Final = ("pass", "reject", "pending")
LONGEST_MS: Final = 3_650 * DURATION_UNITS_MS["d"]


@dataclass(frozen=True, slots=True)
class Facts:
    """The data that rules check; ``now_ms`` is the Unix time up to which ages count."""

    deal: Deal
    product: Product | None
    profit: ProfitEstimate | None
    now_ms: int


@dataclass(frozen=True, slots=True)
class Fact:
    """One value that a rule can check: how to find it, and its kind.

    ``needs_price``: the value is unknown if the deal's price type is no price.
    """

    kind: Kind
    find: Callable[[Facts], Value | None]
    needs_product: bool = False
    needs_price: bool = False


@dataclass(frozen=True, slots=True)
class Condition:
    """One rule of one query: a fact with its limit."""

    name: str
    limit: str
    on_unknown: OnUnknown
    least: int | None = None
    most: int | None = None
    include: tuple[int | str, ...] = ()
    exclude: tuple[int | str, ...] = ()
    wanted: bool | None = None

    @property
    def needs_product(self) -> bool:
        """Whether only the product's details hold the value."""
        return FACTS[self.name].needs_product

    @property
    def needs_price(self) -> bool:
        """Whether the value is unknown if the price type is a rank, a rating or a count."""
        return FACTS[self.name].needs_price

    @property
    def unknown_words(self) -> str:
        """What happens to a deal with an unknown value."""
        words = {"pass": "unknown passes", "reject": "unknown rejects"}
        return words.get(self.on_unknown, "unknown waits for details")

    def value(self, facts: Facts) -> Value | None:
        """Returns the value that the rule checks; None if unknown."""
        return FACTS[self.name].find(facts)

    def accepts(self, value: Value) -> bool:
        """Returns whether a known *value* is within the limit."""
        match FACTS[self.name].kind, value:
            case "truth", _:
                return value is self.wanted
            case "codes", tuple():
                held: frozenset[int | str] = frozenset(value)
                return self._accepts_any(held.__contains__)
            case "codes", _:
                return self._accepts_any(lambda code: code == value)
            case "words", str():
                word = value.casefold()
                return self._accepts_any(lambda listed: str(listed).casefold() == word)
            case "phrases", str():
                padded = _padded(value)
                return self._accepts_any(lambda phrase: _padded(str(phrase)) in padded)
        assert isinstance(value, int)
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )

    def _accepts_any(self, holds: Callable[[int | str], bool]) -> bool:
        if any(holds(item) for item in self.exclude):
            return False
        return not self.include or any(holds(item) for item in self.include)

    def shown(self, value: Value) -> str:
        """Returns a known *value* in words for people."""
        match FACTS[self.name].kind, value:
            case "duration", int():
                return duration_words(value // MS_PER_MINUTE * MS_PER_MINUTE)
            case _, tuple():
                return ", ".join(map(str, value))
            case _, bool():
                return "yes" if value else "no"
        return str(value)


def limit_words(name: str, text: str, domain_id: int) -> str:
    """Returns a limit or value of the rule *name* for people, with the site's currency.

    *text* comes from a `RuleFailure`, with amounts in minor units: "<= 2000".
    """
    if name not in FACTS or FACTS[name].kind != "money":
        return text
    return re.sub(r"-?\d+", lambda found: money_words(int(found[0]), domain_id), text)


def _padded(text: str) -> str:
    """Returns the words of *text*, case folded, between single blanks: whole words match."""
    letters = (char if char.isalnum() else " " for char in text.casefold())
    return f" {' '.join(''.join(letters).split())} "


def read_condition(name: str, limits: object, *, path: str = "rules") -> Condition:
    """Reads one entry of "rules", or of another object at *path* that is written like them.

    Raises:
        BadKeyError: an unknown rule, or an unreadable limit.
    """
    Section({name: limits}, path).allow_only(tuple(FACTS))
    section = Section(limits, f"{path}.{name}")
    kind = FACTS[name].kind
    section.allow_only((*_KEYS[kind], "unknown"))
    if not any(section.has(key) for key in _KEYS[kind]):
        raise BadKeyError(f"{path}.{name}", f"give at least one of {', '.join(_KEYS[kind])}")
    on_unknown = cast("OnUnknown", section.choice("unknown", ON_UNKNOWN) or "reject")
    match kind:
        case "number" | "money" | "duration":
            return _read_range(name, section, on_unknown)
        case "truth":
            wanted = section.flag("is")
            limit = f"is {'yes' if wanted else 'no'}"
            return Condition(name, limit, on_unknown, wanted=wanted)
    return _read_lists(name, section, on_unknown)


_KEYS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "number": ("min", "max"),
    "money": ("min", "max"),
    "duration": ("min", "max"),
    "codes": ("include", "exclude"),
    "words": ("include", "exclude"),
    "phrases": ("include", "exclude"),
    "truth": ("is",),
}


def _read_range(name: str, section: Section, on_unknown: OnUnknown) -> Condition:
    if FACTS[name].kind == "duration":
        least = section.duration_ms("min", least_ms=0, most_ms=LONGEST_MS)
        most = section.duration_ms("max", least_ms=0, most_ms=LONGEST_MS)
        shown: Callable[[int], str] = duration_words
    else:
        least = section.whole("min", least=-INT32_MAX, most=INT32_MAX)
        most = section.whole("max", least=-INT32_MAX, most=INT32_MAX)
        shown = str
    if least is not None and most is not None and least > most:
        raise BadKeyError(section.key("min"), "is above max; exchange them")
    ends = ((">=", least), ("<=", most))
    limit = " and ".join(f"{sign} {shown(end)}" for sign, end in ends if end is not None)
    return Condition(name, limit, on_unknown, least=least, most=most)


def _read_lists(name: str, section: Section, on_unknown: OnUnknown) -> Condition:
    read = section.ids if FACTS[name].kind == "codes" else section.words
    include, exclude = read("include"), read("exclude")
    if not include and not exclude:
        raise BadKeyError(section.key("exclude"), "the list is empty; fill it or remove the rule")
    parts = (("one of", include), ("none of", exclude))
    limit = " and ".join(f"{word} {', '.join(map(str, some))}" for word, some in parts if some)
    return Condition(name, limit, on_unknown, include=tuple(include), exclude=tuple(exclude))


def _either(name: str) -> Callable[[Facts], Value | None]:
    """Finds the product's value, which is younger; the deal's if that is unknown."""

    def find(facts: Facts) -> Value | None:
        value = None if facts.product is None else getattr(facts.product, name)
        return cast("Value | None", getattr(facts.deal, name) if value is None else value)

    return find


def _of_deal(name: str) -> Callable[[Facts], Value | None]:
    return lambda facts: cast("Value | None", getattr(facts.deal, name))


def _of_product(name: str) -> Callable[[Facts], Value | None]:
    return lambda facts: cast("Value | None", getattr(facts.product, name, None))


def _of_profit(name: str) -> Callable[[Facts], Value | None]:
    return lambda facts: cast("Value | None", getattr(facts.profit, name, None))


def _age(name: str) -> Callable[[Facts], Value | None]:
    def find(facts: Facts) -> Value | None:
        since_ms: int | None = getattr(facts.deal, name)
        # Some times run slightly ahead of the server's clock.
        return None if since_ms is None else max(0, facts.now_ms - since_ms)

    return find


def _categories(facts: Facts) -> tuple[int, ...] | None:
    """Finds the deal's root category and all its others; unknown if it has none."""
    root = _either("root_category")(facts)
    roots = (root,) if isinstance(root, int) else ()
    return (*roots, *facts.deal.categories) or None


FACTS: Final[Mapping[str, Fact]] = {
    "price": Fact("money", _of_deal("price_minor"), needs_price=True),
    "drop": Fact("money", _of_deal("drop_minor"), needs_price=True),
    "drop_percent": Fact("number", _of_deal("drop_percent")),
    "last_drop": Fact("money", _of_deal("last_drop_minor"), needs_price=True),
    "rank": Fact("number", _either("rank")),
    "rank_drops_30": Fact("number", _of_deal("rank_drops_30")),
    "rank_drops_90": Fact("number", _either("rank_drops_90")),
    "rating": Fact("number", _either("rating")),
    "reviews": Fact("number", _either("reviews")),
    "category": Fact("codes", _categories),
    "title": Fact("phrases", _either("title")),
    "condition": Fact("codes", _of_deal("condition")),
    "deal_age": Fact("duration", _age("creation_ms")),
    "data_age": Fact("duration", _age("last_update_ms")),
    "new_offers": Fact("number", _either("new_offers")),
    "used_offers": Fact("number", _either("used_offers")),
    "amazon": Fact("truth", _either("amazon_offers")),
    "brand": Fact("words", _of_product("brand"), needs_product=True),
    "total_offers": Fact("number", _of_product("total_offers"), needs_product=True),
    "fba_offers": Fact("number", _of_product("fba_offers"), needs_product=True),
    "fbm_offers": Fact("number", _of_product("fbm_offers"), needs_product=True),
    "sellers": Fact("number", _of_product("sellers"), needs_product=True),
    "buy_box_amazon": Fact("truth", _of_product("buy_box_is_amazon"), needs_product=True),
    "monthly_sold": Fact("number", _of_product("monthly_sold"), needs_product=True),
    "rank_average_90": Fact("number", _of_product("rank_average_90"), needs_product=True),
    "profit": Fact("money", _of_profit("profit_minor"), needs_product=True, needs_price=True),
    "roi_percent": Fact("number", _of_profit("roi_percent"), needs_product=True, needs_price=True),
}
