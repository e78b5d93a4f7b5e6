"""What the ledger has counted."""

from dataclasses import dataclass


@dataclass(slots=True)
class Totals:
    """Sums since the start; tokens or counts."""

    grants: int = 0
    settles: int = 0
    late_settles: int = 0
    expiries: int = 0
    refusals: int = 0
    unknown_outcomes: int = 0
    spent_tokens: int = 0
    # Taken as spent by calls without a reported cost.
    written_off_tokens: int = 0
    observations: int = 0
    stale_observations: int = 0
    # Settled envelopes that did not fit the model.
    implausible_reports: int = 0
