"""A client that breaks the rules: raw HTTP/2, more requests a second than a library sends.

python -m tests.load.flood 127.0.0.1:50051 --rate 10000 --seconds 10

Each request is a lease request without an id, so the broker refuses it. The client does not
wait for answers, and does not heed the server's limit of streams.
"""

import argparse
import asyncio
import json
import signal
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from protos.tokenbroker.v1 import token_broker_pb2 as pb

# RFC 9113, sections 3.4 and 4.1: the preface, and a frame's head of nine bytes (length,
# type, flags, stream).
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES: Final = 9
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
WINDOW_BYTES: Final = 65_535
BATCH_S: Final = 0.01
PAUSE_S: Final = 0.1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header that no table holds: RFC 7541, section 6.2.2, both strings below 127 bytes."""
    parts = (text.encode() for text in (name, value))
    return b"\0" + b"".join(bytes([len(part)]) + part for part in parts)


HEADER_BLOCK: Final = b"".join(
    literal(name, value)
    for name, value in {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/tokenbroker.v1.TokenBrokerService/AcquireLease",
        ":authority": "flood",
        "content-type": "application/grpc",
        "te": "trailers",
    }.items()
)
MESSAGE: Final = pb.AcquireLeaseRequest(holder="x").SerializeToString()
# One byte for "not compressed", four for the length: gRPC over HTTP2, "Length-Prefixed-Message".
BODY: Final = struct.pack("!BI", 0, len(MESSAGE)) + MESSAGE


def request(stream: int) -> bytes:
    """A whole call on *stream*."""
    head = frame(HEADERS, END_HEADERS, stream, HEADER_BLOCK)
    return head + frame(DATA, END_STREAM, stream, BODY)


@dataclass
class Flood:
    """What was sent and what came back.

    Args:
        sent: Requests.
        per_s: Requests sent in a second.
        answered: Calls that the broker ended with a status.
        reset: Streams that the server refused to open.
        connections: Connections used, as the server may close them.
    """

    sent: int = 0
    per_s: float = 0.0
    answered: int = 0
    reset: int = 0
    connections: int = 0


class Connection:
    """One connection's side of the flood."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flood: Flood
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._flood = flood
        self._stream = 1
        self._window = WINDOW_BYTES
        writer.write(PREFACE + frame(SETTINGS, 0, 0))

    @property
    def room(self) -> int:
        """Requests that the server's window takes now."""
        return self._window // len(BODY)

    async def send(self, count: int) -> None:
        """Sends *count* requests."""
        last = self._stream + 2 * count
        self._writer.write(b"".join(map(request, range(self._stream, last, 2))))
        self._stream = last
        self._window -= count * len(BODY)
        self._flood.sent += count
        await self._writer.drain()

    async def read(self) -> None:
        """Counts what comes back, until the connection ends."""
        while True:
            head = await self._reader.readexactly(HEAD_BYTES)
            length = int.from_bytes(head[:3])
            kind, flags, stream = struct.unpack("!BBI", head[3:])
            payload = await self._reader.readexactly(length)
            self._take(kind, flags, stream, payload)

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == HEADERS and flags & END_STREAM:
            self._flood.answered += 1
        elif kind == RST_STREAM:
            self._flood.reset += 1
        elif kind in {SETTINGS, PING} and not flags & ACK:
            self._writer.write(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == WINDOW_UPDATE and not stream:
            self._window += int.from_bytes(payload)


async def flow(host: str, port: int, rate: float, flood: Flood) -> None:
    """Sends *rate* requests a second over one connection, until it ends."""
    reader, writer = await asyncio.open_connection(host, port)
    flood.connections += 1
    connection = Connection(reader, writer, flood)
    reading = asyncio.create_task(connection.read())
    began_s, begun = time.monotonic(), flood.sent
    try:
        while not reading.done():
            due = int((time.monotonic() - began_s) * rate) - (flood.sent - begun)
            if (count := min(due, connection.room)) > 0:
                await connection.send(count)
            await asyncio.sleep(BATCH_S)
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        writer.close()


async def run(address: str, rate: float, seconds: float) -> Flood:
    """Floods the broker at *address* for *seconds*, or until SIGTERM."""
    host, _, port = address.rpartition(":")
    flood, began_s = Flood(), time.monotonic()
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    await flow(host, int(port), rate, flood)
                except OSError:
                    await asyncio.sleep(PAUSE_S)
    except (TimeoutError, asyncio.CancelledError):
        flood.per_s = round(flood.sent / (time.monotonic() - began_s), 1)
    return flood


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what was sent and what came back as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("address")
    parser.add_argument("--rate", type=float, default=10_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args(arguments)
    flood = asyncio.run(run(given.address, given.rate, given.seconds))
    sys.stdout.write(json.dumps(asdict(flood)) + "\n")


if __name__ == "__main__":
    main()
