"""Folds the records of leases without an end to the holds that they lead to."""

from collections.abc import Iterator

from msgspec.structs import replace

from broker.core import records
from broker.core.records import Carried, Record


def fold(past: Iterator[Record], now_ms: int) -> Iterator[Carried]:
    """Returns the holds that *past*, the records of leases without an end, leads to."""
    holds: dict[str, Carried] = {}
    for record in past:
        match record:
            case Carried():
                holds[record.lease_id] = record
            case records.Granted(request=request):
                holds[request.lease_id] = _granted(record)
            case records.Adopted():
                holds[record.lease_id] = _adopted(record)
            case records.Renewed(lease_id=lease_id) if lease_id in holds:
                holds[lease_id] = replace(
                    holds[lease_id], expires_ms=record.expires_ms, lapsed=False
                )
            case records.Expired(lease_id=lease_id) if lease_id in holds:
                holds[lease_id] = replace(holds[lease_id], lapsed=True)
            case records.Settled():
                # Its cost is unknown, or it would have ended.
                known = holds.get(record.settlement.lease_id) or _stranger(record)
                holds[known.lease_id] = replace(known, lapsed=True)
    for hold in holds.values():
        yield replace(hold, at_ms=now_ms, lapsed=hold.lapsed or hold.expires_ms <= now_ms)


def _granted(record: records.Granted) -> Carried:
    request = record.request
    return Carried(
        record.at_ms,
        request.lease_id,
        request.holder,
        request.operation,
        record.units,
        record.tokens,
        record.overrun,
        record.at_ms,
        record.expires_ms,
        lapsed=False,
        request=request,
        proven=record.proven,
    )


def _adopted(record: records.Adopted) -> Carried:
    return Carried(
        record.at_ms,
        record.lease_id,
        record.holder,
        record.operation,
        record.units,
        record.tokens,
        0,
        record.at_ms,
        record.expires_ms,
        lapsed=False,
        request=None,
    )


def _stranger(record: records.Settled) -> Carried:
    call = record.settlement
    return Carried(
        record.at_ms,
        call.lease_id,
        call.holder,
        call.operation,
        call.units,
        max(1, call.tokens),
        0,
        record.at_ms,
        record.at_ms,
        lapsed=True,
        request=None,
    )
