"""Converts messages to plain data, for `-o json`.

Fields have the contract's names. Durations become seconds, times ISO 8601, and enums
their short names in small letters; integers stay integers.
"""

import json
from collections.abc import Mapping
from datetime import UTC
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

# Any, because the descriptors' class differs between protobuf's implementations.
Field = Any


def to_json(message: Message, *, indent: int | None = 2) -> str:
    """The whole *message* as JSON text, fields without a value included."""
    return json.dumps(plain(message), indent=indent)


def plain(message: Message) -> dict[str, Any]:
    """The whole *message* as a dict; unset messages are None."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def seconds(duration: Duration) -> float:
    """*duration* in seconds."""
    return duration.seconds + duration.nanos / 1e9


def _field(message: Message, field: Field) -> Any:
    value = getattr(message, field.name)
    if isinstance(value, Mapping):
        return {key: _value(field, item) for key, item in sorted(value.items())}
    if field.is_repeated:
        return [_value(field, item) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _value(field, value)


def _value(field: Field, value: Any) -> Any:
    match value:
        case Duration():
            return round(seconds(value), 3)
        case Timestamp():
            return value.ToDatetime(UTC).isoformat(timespec="milliseconds")
        case Message():
            return plain(value)
        case int() if field.enum_type is not None:
            names = {entry.number: entry.name for entry in field.enum_type.values}
            # All names of an enum share a prefix: PRIORITY_HIGH becomes `high`.
            prefix = names[0].removesuffix("UNSPECIFIED")
            return names.get(value, str(value)).removeprefix(prefix).lower()
        case _:
            return value
