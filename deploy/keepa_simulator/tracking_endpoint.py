"""GET or POST /tracking: products that Keepa watches; kept for the run of the simulator."""

import json
from typing import Any, Final

from deploy.keepa_simulator.exchange import Answer, Query, RequestError

# Keepa's own cost of an addition is not documented in the sources at hand; the rest is free.
_ADDED_COST: Final = 1


class Trackings:
    """Answers /tracking by its ``type``."""

    def __init__(self) -> None:
        self._by_asin: dict[str, dict[str, Any]] = {}

    def answer(self, query: Query) -> Answer:
        """Adds, removes, shows or lists trackings.

        Raises:
            RequestError: The type or what it needs is missing or malformed.
        """
        match query.parameters.get("type", ""):
            case "add":
                return self._add(query.body)
            case "remove":
                self._by_asin.pop(query.parameters.get("asin", ""), None)
                return Answer({}, 0)
            case "removeAll":
                self._by_asin.clear()
                return Answer({}, 0)
            case "get":
                found = self._by_asin.get(query.parameters.get("asin", ""))
                return Answer({"trackings": [found] if found else []}, 0)
            case "list":
                return Answer({"trackings": list(self._by_asin.values())}, 0)
            case "notification":
                return Answer({"notifications": []}, 0)
        raise RequestError(400, "type is unknown")

    def _add(self, body: str | None) -> Answer:
        try:
            wanted = json.loads(body or "")
            wanted = wanted if isinstance(wanted, list) else [wanted]
            added = {str(one["asin"]): one for one in wanted}
        except (ValueError, KeyError, TypeError):
            raise RequestError(400, "the body must be trackings with an asin") from None
        self._by_asin |= added
        return Answer({"trackings": list(added.values())}, _ADDED_COST * len(added))
