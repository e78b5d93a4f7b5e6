"""Records as rows: a few columns to search and sum by, and the whole record as JSON."""

from typing import Any, Final, NamedTuple, get_args

import msgspec

from broker.core import records
from broker.core.records import Record


def _kind(record: type) -> str:
    name = record.__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


KINDS: Final = {each: _kind(each) for each in get_args(Record)}
RECORDS: Final[dict[str, type[msgspec.Struct]]] = {kind: each for each, kind in KINDS.items()}
DECODERS: Final[dict[str, msgspec.json.Decoder[Record]]] = {
    kind: msgspec.json.Decoder(each, strict=False) for each, kind in KINDS.items()
}
ENCODER: Final = msgspec.json.Encoder()
ABOUT_LEASE: Final = ("lease_id", "holder", "operation")


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
        if name in record.__struct_fields__ and getattr(record, name) is not None:
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
        ENCODER.encode(record).decode(),
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
    if kind not in DECODERS:
        raise ValueError(f"no record is of the kind {kind!r}: it is of a newer version")
    try:
        return DECODERS[kind].decode(body)
    except msgspec.DecodeError as exc:
        raise ValueError(f"no record of the kind {kind!r}: {exc}") from exc


def names(kind: str) -> tuple[str, ...]:
    """Returns the fields of a kind of record."""
    fields: tuple[str, ...] = RECORDS[kind].__struct_fields__
    return fields
