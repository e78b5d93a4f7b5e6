"""The body of an HTTP reply, read within bounds: bytes on the wire, bytes decoded, time.

The timeouts of `requests` limit a single read, and its decoding reads on while nothing
comes out. So this module reads and decompresses a body piece by piece.
"""

import time
import zlib
from typing import Final

import requests
import urllib3.exceptions

CHUNK_BYTES: Final = 64 * 1024
# For zlib: gzip or zlib, by the header; and deflate without any header, which some servers
# send under that name (RFC 9110, section 8.4.1.2).
_WITH_HEADER: Final = zlib.MAX_WBITS | 32
_BARE_DEFLATE: Final = -zlib.MAX_WBITS
_DEFLATE_METHOD: Final = 8


class BodyError(Exception):
    """The body is cut, late, or not decodable; the message is for people."""


class BodyTooLargeError(BodyError):
    """The body has more bytes than allowed, on the wire or decompressed."""


def read_body(response: requests.Response, *, bytes_max: int, deadline_s: float) -> bytes:
    """Returns the decompressed body of a streamed *response*, of at most *bytes_max* bytes.

    Never holds more than that and a chunk in memory, for any Content-Length.

    Args:
        response: Requested with ``stream=True``, its body not yet read.
        bytes_max: Most bytes, before and after decompression.
        deadline_s: When the body must be complete, on the monotonic clock.

    Raises:
        BodyError: The body can't be read in full; BodyTooLargeError is one such.
    """
    body, received = bytearray(), 0
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    inflate = _Inflate(encoding, bytes_max)
    while chunk := _receive(response):
        received += len(chunk)
        if received > bytes_max:
            raise BodyTooLargeError
        body += inflate.feed(chunk)
        if time.monotonic() > deadline_s:
            raise BodyError("the reply took too long to arrive in full")
    inflate.finish()
    return bytes(body)


def _receive(response: requests.Response) -> bytes:
    """Returns the bytes of one read of the socket, still compressed; empty at the end."""
    try:
        # read1 returns what has come: single bytes must not delay the deadline's check.
        return response.raw.read1(CHUNK_BYTES, decode_content=False) or b""
    except urllib3.exceptions.ReadTimeoutError:
        reason = "no answer within the read timeout"
    except (urllib3.exceptions.HTTPError, OSError) as exc:
        reason = f"the connection broke before the reply was complete ({type(exc).__name__})"
    # Outside the handler: the original error may name the URL, and the key in it.
    raise BodyError(reason)


class _Inflate:
    """Decompresses a body piece by piece; one without an encoding passes through."""

    def __init__(self, encoding: str, bytes_max: int) -> None:
        if encoding not in {"gzip", "x-gzip", "deflate", "identity", ""}:
            raise BodyError("the reply has an encoding that was not asked for")
        self._plain = encoding in {"identity", ""}
        self._deflate = encoding == "deflate"
        self._room = bytes_max
        self._stream = zlib.decompressobj(_WITH_HEADER)
        self._started = False

    def feed(self, chunk: bytes) -> bytes:
        if self._plain:
            self._room -= len(chunk)
            return chunk
        if not self._started and self._deflate and chunk[0] & 0x0F != _DEFLATE_METHOD:
            self._stream = zlib.decompressobj(_BARE_DEFLATE)
        self._started = True
        out = bytearray()
        while chunk:
            if self._stream.eof:
                # A gzip file may have several members (RFC 1952, section 2.2).
                self._stream = zlib.decompressobj(_WITH_HEADER)
            try:
                piece = self._stream.decompress(chunk, self._room + 1)
            except zlib.error:
                raise BodyError("the reply's compression is damaged") from None
            out += piece
            self._room -= len(piece)
            if self._room < 0:
                raise BodyTooLargeError
            chunk = self._stream.unused_data or self._stream.unconsumed_tail
        return bytes(out)

    def finish(self) -> None:
        if self._started and not self._stream.eof:
            raise BodyError("the reply is cut")
