"""The text of messages, for people and for programs; the same at every try.

Law: a title comes from outside. A text for people shows its hidden characters, and holds
none of the signs with which chats mark links, mentions and formats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from fetcher.replies.units import (
    DATE_RANGES,
    DOMAINS,
    PRICE_TYPES,
    currency_code,
    money_words,
    value_words,
)
from protos.process.visible_text import visible

DEALS_SHOWN: Final = 20
TITLE_CHARACTERS: Final = 120
RAW_TITLE_CHARACTERS: Final = 1_000
DEALS_IN_WEBHOOK: Final = 500
# Look-alikes of the signs that Discord, Slack, Telegram and HTML act upon.
_DEFUSED: Final = str.maketrans(
    {"@": "\uff20", "<": "\u2039", ">": "\u203a", "[": "(", "]": ")", "`": "'", "*": "\u2217"}
)


@dataclass(frozen=True, slots=True)
class DealReport:
    """One deal of a message: the number of its report, the occasion, the deal as it was."""

    id: int
    occasion: str
    deal: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the outbox; ``id`` is the same at every try.

    ``content`` holds what a message without deals is about. ``total`` counts all its deals.
    """

    id: str
    kind: str
    query: str | None
    content: Mapping[str, Any]
    created_at: datetime
    deals: Sequence[DealReport]
    total: int


@dataclass(frozen=True, slots=True)
class Text:
    """A message for people, in plain text."""

    title: str
    body: str


def for_people(message: Message) -> Text:
    """Returns *message* as plain text."""
    title, lines = _words(message)
    return Text(title, "\n".join((*lines, "", f"({message.id})")))


def for_programs(message: Message) -> dict[str, object]:
    """Returns *message* as the JSON of a Standard Webhook: type, timestamp, data."""
    data: dict[str, object] = {"id": message.id, "query": message.query}
    if message.kind == "deals":
        data |= {
            "count": message.total,
            "deals": [_for_programs(report) for report in message.deals[:DEALS_IN_WEBHOOK]],
        }
    else:
        data |= dict(message.content)
    return {
        "type": {
            "deals": "deals.matched",
            "summary": "query.first_run",
            "operators": "collection.trouble",
        }.get(message.kind, "alerts.test"),
        "timestamp": message.created_at.astimezone(UTC).isoformat(),
        "data": data,
    }


def _words(message: Message) -> tuple[str, list[str]]:
    content = message.content
    match message.kind:
        case "summary":
            count = content.get("matches", 0)
            alert = _safe(str(content.get("alert", "")), 300)
            line = f"{count} deals match already. From now on, new ones are reported {alert}."
            return f"{message.query}: alerts are on", [line]
        case "operators":
            lines = [_safe(str(content.get("text", "")), 500)]
            if remedy := content.get("remedy"):
                lines.append(_safe(str(remedy), 500))
            return _safe(str(content.get("title", "trouble")), 200), lines
        case "deals":
            shown = message.deals[:DEALS_SHOWN]
            lines = [line for report in shown for line in _deal_lines(report.deal)]
            if message.total > len(shown):
                lines.append(f"and {message.total - len(shown)} more: dealfetcher deals")
            if message.total == 1:
                return f"{message.query}: {_headline(shown[0].deal)}", lines
            return f"{message.query}: {message.total} deals", lines
    return "a test of this channel", ["Alerts of the Keepa token broker arrive here."]


def _headline(deal: Mapping[str, Any]) -> str:
    value = _value(deal)
    percent = deal.get("drop_percent")
    return value if percent is None else f"{value}, {percent} % lower"


def _value(deal: Mapping[str, Any]) -> str:
    value = deal.get("value")
    if value is None:
        return "value unknown"
    return value_words(value, price_type=deal["price_type"], domain_id=deal["domain_id"])


def _deal_lines(deal: Mapping[str, Any]) -> list[str]:
    site, asin = deal["domain_id"], deal["asin"]
    parts = [_value(deal)]
    percent, period = deal.get("drop_percent"), deal.get("date_range")
    if percent is not None:
        within = f" in {DATE_RANGES[period or 0]}" if period in range(len(DATE_RANGES)) else ""
        parts.append(f"{percent} % lower{within}")
    if (profit := deal.get("profit_minor")) is not None:
        roi = deal.get("roi_percent")
        parts.append(
            f"profit {money_words(profit, site)}" + ("" if roi is None else f" ({roi} %)")
        )
    if (rank := deal.get("rank")) is not None:
        parts.append(f"rank {rank}")
    return [
        _safe(str(deal.get("title") or "no title"), TITLE_CHARACTERS),
        f"  {', '.join(parts)}",
        f"  {product_address(site, asin)}",
    ]


def product_address(domain_id: int, asin: str) -> str:
    """Returns the address of a product's page; at Keepa for an unknown site."""
    host = DOMAINS.get(domain_id)
    if host is None:
        return f"https://keepa.com/#!product/{domain_id}-{asin}"
    return f"https://www.{host}/dp/{asin}"


def _safe(text: str, characters: int) -> str:
    """Returns *text* on one line, cut, harmless in a terminal, a chat and a mail."""
    words = " ".join(text.split())
    cut = words if len(words) <= characters else f"{words[: characters - 1]}…"
    return visible(cut).translate(_DEFUSED)


def _for_programs(report: DealReport) -> dict[str, object]:
    deal = dict(report.deal)
    title = deal.get("title")
    deal["title"] = title[:RAW_TITLE_CHARACTERS] if isinstance(title, str) else None
    price_type = deal["price_type"]
    return {
        "id": report.id,
        "occasion": report.occasion,
        **deal,
        "price_type_name": PRICE_TYPES[price_type]
        if price_type in range(len(PRICE_TYPES))
        else None,
        "currency": currency_code(deal["domain_id"]),
        "url": product_address(deal["domain_id"], deal["asin"]),
    }
