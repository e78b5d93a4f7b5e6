"""The closing figures of a run.

Pure: figures in, lines out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from deploy.local.survey import SimulatorStats, Survey


@dataclass(frozen=True, slots=True)
class BrokerTotals:
    """The broker's totals since one of its starts."""

    spent_tokens: int = 0
    settles: int = 0
    refusals: int = 0


@dataclass(slots=True)
class RunTotals:
    """The figures of a run, gathered from its surveys.

    The broker's totals restart at every start, so they are kept by epoch. Counts between
    the last survey and a kill are missing here.
    """

    deals_before: int | None = None
    deals: int | None = None
    # Whether the broker has ever had Keepa's balance.
    synced: bool = False
    drift_tokens: int = 0
    foreign_tokens: int = 0
    simulator: SimulatorStats | None = None
    by_epoch: dict[int, BrokerTotals] = field(default_factory=dict)

    def note(self, survey: Survey) -> None:
        """Adds the figures of a survey; parts that did not answer change nothing."""
        if survey.deals is not None:
            self.deals = survey.deals
            if self.deals_before is None:
                self.deals_before = survey.deals
        if survey.simulator is not None:
            self.simulator = survey.simulator
        if (bucket := survey.bucket) is not None:
            totals = bucket.totals
            self.by_epoch[bucket.epoch] = BrokerTotals(
                totals.spent_tokens, totals.settles, totals.refusals
            )
            self.synced |= bucket.HasField("last_observation")
            self.drift_tokens = bucket.drift_tokens
            self.foreign_tokens = bucket.foreign_tokens

    @property
    def new_deals(self) -> int:
        """Number of deals that this run stored first."""
        return (self.deals or 0) - (self.deals_before or 0)

    @property
    def broker(self) -> BrokerTotals:
        """The broker's totals over all its starts."""
        starts = self.by_epoch.values()
        return BrokerTotals(
            spent_tokens=sum(totals.spent_tokens for totals in starts),
            settles=sum(totals.settles for totals in starts),
            refusals=sum(totals.refusals for totals in starts),
        )

    def closing_lines(self) -> Iterator[str]:
        """The end of a run, for people."""
        if self.deals is not None:
            yield f"deals   {self.deals} stored, {self.new_deals} new"
        spent, seen = self.broker, self.simulator
        if seen is None:
            yield f"tokens  {spent.spent_tokens} spent"
            yield f"calls   {spent.settles} leases settled, {spent.refusals} refused (429)"
        else:
            yield f"tokens  {spent.spent_tokens} spent per broker, {seen.spent_tokens} per Keepa"
            yield f"calls   {seen.calls} to Keepa, {seen.refused} refused (429)"
        yield f"drift   {self.drift_tokens} tokens, {self.foreign_tokens} spent by others"
