"""Keepa out of reach: said once, waited for with growing pauses."""

from typing import Final

import structlog

from fetcher.errors import FetcherError, KeepaResponseError, KeepaUnavailableError
from fetcher.work.shared import Workplace

log = structlog.get_logger(__name__)

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0


class KeyRefusedError(FetcherError):
    """Keepa refuses the key itself: nothing will work until a person acts."""

    def __init__(self, exc: KeepaResponseError) -> None:
        super().__init__(
            f"Keepa refuses the key ({exc}): check KEEPA_API_KEY and the subscription"
        )


class Outage:
    """How long Keepa has been failing, as one thread sees it."""

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self._failures = 0

    def over(self) -> None:
        """Keepa has answered."""
        if self._failures > 1:
            log.info("Keepa answers again")
        self._failures = 0

    def pause(self, exc: KeepaUnavailableError) -> None:
        """Wait a little longer each time."""
        if self._failures == 0:
            log.warning("Keepa is not available: trying again", problem=str(exc))
        pause_s = min(FIRST_PAUSE_S * 2 ** min(self._failures, 10), LONGEST_PAUSE_S)
        self._failures += 1
        self._workplace.doing = "waiting for Keepa"
        self._workplace.rest(pause_s)
