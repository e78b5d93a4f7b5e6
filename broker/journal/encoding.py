"""Records as rows: a few columns to search and sum by, and the whole record as JSON."""

from dataclasses import fields
from functools import cache
from typing import Any, Final, NamedTuple, get_args

from pydantic import TypeAdapter

from broker.core import records
from broker.core.records import Record


def _kind(record: type) -> str:
    name = record.__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


KINDS: Final = {each: _kind(each) for each in get_args(Record)}
RECORDS: Final[dict[str, type]] = {kind: each for each, kind in KINDS.items()}
ABOUT_LEASE: Final = ("lease_id", "holder", "operation")


@cache
def adapter(kind: str) -> TypeAdapter[Any]:
    """Returns the conversion of one *kind* of record; built once it is needed.

    A broker writes and reads few of the kinds before its first grant.
    """
    return TypeAdapter(RECORDS[kind])


class Row(NamedTuple):
    """A record as it is stored; times in Unix ms."""

    epoch: int
    seq: int
    time_ms: int
    kind: str
    lease_id: str | None
    holder: str | None
    identity: str | None
    operation: str | None
    cost: int | None
    charged: int | None
    charged_ms: int | None
    body: str


def encode(record: Record, *, epoch: int, seq: int, offset_ms: int, signed: bool) -> Row:
    """Returns the row of *record*.

    Args:
        record: As the core made it.
        epoch: That of the ledger at that time.
        seq: Its number.
        offset_ms: Unix time less the broker's clock.
        signed: Whether holders begin with an identity.
    """
    kind = KINDS[type(record)]
    subject: Any = record
    for name in ("request", "settlement"):
        if name in record.__slots__ and getattr(record, name) is not None:
            subject = getattr(record, name)
    lease_id, holder, operation = (getattr(subject, name, None) for name in ABOUT_LEASE)
    identity = None
    if holder is not None:
        identity = holder.partition("/")[0] if signed else ""
    charged, charged_ms = charge_of(record)
    return Row(
        epoch,
        seq,
        offset_ms + record.at_ms,
        kind,
        lease_id,
        holder,
        identity,
        operation,
        cost_of(record),
        charged,
        None if charged_ms is None else offset_ms + charged_ms,
        adapter(kind).dump_json(record).decode(),
    )


def cost_of(record: Record) -> int | None:
    """Tokens that *record* counts as spent, or takes back."""
    match record:
        case records.Settled(cost=cost) | records.WrittenOff(cost=cost):
            return cost
        case records.Corrected(tokens=tokens) | records.Unrecorded(tokens=tokens):
            return tokens
    return None


def charge_of(record: Record) -> tuple[int | None, int | None]:
    """Tokens that *record* charges to shares and budgets, and the moment they count for."""
    match record:
        case (
            records.Granted(tokens=tokens, at_ms=at_ms)
            | records.Adopted(tokens=tokens, at_ms=at_ms)
            | records.Corrected(tokens=tokens, at_ms=at_ms)
        ):
            return tokens, at_ms
        case records.Revoked(tokens=tokens, granted_ms=granted_ms):
            return -tokens, granted_ms
        case records.Settled(cost=int(cost), charged=charged, granted_ms=granted_ms):
            return cost - (charged or 0), granted_ms
        case records.WrittenOff(cost=cost, tokens=tokens, granted_ms=granted_ms):
            return cost - tokens, granted_ms
    return None, None


def decode(kind: str, body: str) -> Record:
    """Returns the record of a row; its moments are on the clock of its broker.

    Raises:
        ValueError: The row is no record of this version.
    """
    if kind not in RECORDS:
        raise ValueError(f"no record is of the kind {kind!r}: it is of a newer version")
    record: Record = adapter(kind).validate_json(body)
    return record


def names(kind: str) -> tuple[str, ...]:
    """Returns the fields of a kind of record."""
    return tuple(field.name for field in fields(RECORDS[kind]))
