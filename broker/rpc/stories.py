"""Turns the journal's records into messages, each with a sentence for people."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from broker.core import records
from broker.core.bucket import Envelope
from broker.core.leases import LeaseRequest, Outcome
from broker.journal.questions import SpendRow, Told
from broker.rpc.replies import duration
from broker.rpc.requests import OUTCOMES
from protos.tokenbroker.v1 import token_broker_pb2 as pb

WIRE_OUTCOMES: Final = {outcome: number for number, outcome in OUTCOMES.items()}
# Fields of the records that have one of the same name in the message.
PLAIN: Final = ("lease_id", "holder", "operation", "units", "tokens", "cost", "available")
ENDINGS: Final = {
    Outcome.REPLIED: "Keepa replied",
    Outcome.REFUSED: "Keepa refused the call (429)",
    Outcome.NOT_SENT: "the call was not sent",
    Outcome.UNKNOWN: "the call was sent, and its cost is unknown",
}


def story(told: Sequence[Told], *, start: int, size: int) -> pb.ExplainLeaseResponse:
    """A page of a story; one entry more than its *size* shows that another follows."""
    response = pb.ExplainLeaseResponse(events=[event(each) for each in told[:size]])
    if len(told) > size:
        response.next_page_token = str(start + size)
    return response


def spend(total: int, rows: Sequence[SpendRow], *, start: int, size: int) -> pb.ListSpendResponse:
    """A page of sums, likewise."""
    response = pb.ListSpendResponse(
        total_tokens=total,
        rows=[
            pb.SpendRow(
                key=row.key,
                tokens=row.tokens,
                calls=row.calls,
                refusals=row.refusals,
                denials=row.denials,
                written_off_tokens=row.written_off_tokens,
            )
            for row in rows[:size]
        ],
    )
    if len(rows) > size:
        response.next_page_token = str(start + size)
    return response


def event(told: Told) -> pb.LeaseEvent:
    """One record."""
    record: Any = told.record
    message = pb.LeaseEvent(
        time=Timestamp(seconds=told.time_ms // 1000, nanos=told.time_ms % 1000 * 1_000_000),
        epoch=told.epoch,
        kind=told.kind,
        text=text(told.record),
    )
    # A field of the record itself goes before the request or settlement that it refers to.
    for part in (getattr(record, "request", None), getattr(record, "settlement", None), record):
        for name in PLAIN:
            value = getattr(part, name, None)
            if value is not None:
                setattr(message, name, value)
    if isinstance(record, records.Waited):
        message.tokens = record.needs
    message.reason = getattr(record, "reason", None) or getattr(record, "doubt", None) or ""
    if (waited_ms := getattr(record, "waited_ms", None)) is not None:
        message.waited.CopyFrom(duration(waited_ms))
    if isinstance(record, records.Settled):
        call = record.settlement
        message.outcome = WIRE_OUTCOMES[call.outcome]
        if call.envelope is not None:
            message.envelope.CopyFrom(envelope(call.envelope))
    return message


def envelope(said: Envelope) -> pb.Envelope:
    """Keepa's count as the contract has it."""
    time_ms = said.server_time_ms
    return pb.Envelope(
        server_time=Timestamp(seconds=time_ms // 1000, nanos=time_ms % 1000 * 1_000_000),
        processing_time=duration(said.processing_ms),
        tokens_left=said.tokens_left,
        tokens_consumed=said.tokens_consumed,
        refill_in=duration(said.refill_in_ms),
        refill_rate=said.refill_rate,
        token_flow_reduction=said.token_flow_reduction,
    )


def text(record: records.Record) -> str:
    """*record* in words; empty for those that concern no lease."""
    words = TEXTS.get(type(record), "")
    return words if isinstance(words, str) else words(record)


def _waited(record: records.Waited) -> str:
    asking = "; Keepa is being asked for its count" if record.asking else ""
    priority = record.request.priority.name.lower()
    return (
        f"asked for {_wanted(record.request)} at priority {priority}; waits"
        f" ({record.reason.replace('_', ' ')}): {record.available} tokens are available,"
        f" {record.needs} are needed{asking}"
    )


def _settled(record: records.Settled) -> str:
    call = record.settlement
    parts = [f"settled{' late' if record.late else ''}: {ENDINGS[call.outcome]}"]
    if record.cost is not None:
        parts.append(f"cost {record.cost} tokens")
    if (said := call.envelope) is not None:
        parts.append(f"Keepa had {said.tokens_left} tokens left")
    if record.doubt is not None:
        parts.append(f"the reply did not fit the count ({record.doubt})")
    return ", ".join(parts)


def _wanted(request: LeaseRequest) -> str:
    return _units(request.units, request.least)


def _units(most: int, least: int | None = None) -> str:
    number = f"{most}" if least in {None, most} else f"{least} to {most}"
    return f"{number} {'unit' if number == '1' else 'units'}"


TEXTS: Final[dict[type, str | Callable[[Any], str]]] = {
    records.Waited: _waited,
    records.Granted: lambda record: (
        f"granted {record.tokens} tokens for {_units(record.units)} after"
        f" {record.waited_ms / 1000:.3f} s; asked for {_wanted(record.request)}"
    ),
    records.Denied: lambda record: (
        f"denied after {record.waited_ms / 1000:.3f} s ({record.reason.replace('_', ' ')}):"
        f" {record.available} tokens were available"
    ),
    records.Settled: _settled,
    records.WrittenOff: lambda record: (
        f"given up: no settle came; Keepa's count shows {record.cost - record.unwitnessed} of the"
        f" {record.tokens} tokens held"
        + (
            f"; {record.unwitnessed} more count as spent, because a full bucket may hide them"
            if record.unwitnessed
            else ""
        )
    ),
    records.Carried: lambda record: (
        f"taken over after a restart: {'lapsed ' if record.lapsed else ''}hold of"
        f" {record.tokens} tokens"
    ),
    records.Corrected: lambda record: (
        f"a late settle replaces the write-off of {-record.tokens} tokens"
    ),
    records.Revoked: "taken back: the grant never reached its client",
    records.Renewed: "renewed by a heartbeat",
    records.Adopted: "taken over from its client's heartbeat: an earlier epoch granted it",
    records.Expired: "lapsed: its client fell silent; the tokens stay held",
    records.Abandoned: "given up by its client before a grant",
}
