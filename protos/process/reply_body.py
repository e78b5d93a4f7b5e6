"""The body of an HTTP reply, read within bounds: bytes on the wire, bytes decoded, time.

The timeouts of `requests` limit a single read, and its decoding reads on while nothing
comes out. So this module reads and decompresses a body piece by piece.
"""

import time
from typing import Final

import requests
import urllib3.exceptions

from protos.process.inflate import BodyError, BodyTooLargeError, Inflate

CHUNK_BYTES: Final = 64 * 1024


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
    inflate = Inflate(encoding, bytes_max)
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
