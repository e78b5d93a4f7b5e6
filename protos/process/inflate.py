"""Decompressing the body of an HTTP reply while it comes, in bounded memory."""

import zlib
from collections.abc import Iterator
from typing import Final

PIECE_BYTES: Final = 256 * 1024
# For zlib: gzip or zlib, by the header; and deflate without any header, which some servers
# send under that name (RFC 9110, section 8.4.1.2).
_WITH_HEADER: Final = zlib.MAX_WBITS | 32
_BARE_DEFLATE: Final = -zlib.MAX_WBITS
_DEFLATE_METHOD: Final = 8


class BodyError(Exception):
    """The body is cut, late, or not decodable; the message is for people."""


class BodyTooLargeError(BodyError):
    """The body has more bytes than allowed, on the wire or decompressed."""


class Inflate:
    """Decompresses a body piece by piece; one without an encoding passes through.

    Args:
        encoding: The reply's Content-Encoding, in lower case.
        bytes_max: Most bytes, decompressed.

    Raises:
        BodyError: The encoding is unknown.
    """

    def __init__(self, encoding: str, bytes_max: int) -> None:
        if encoding not in {"gzip", "x-gzip", "deflate", "identity", ""}:
            raise BodyError("the reply has an encoding that was not asked for")
        self._plain = encoding in {"identity", ""}
        self._deflate = encoding == "deflate"
        self._room = bytes_max
        self._stream = zlib.decompressobj(_WITH_HEADER)
        self._started = False

    def feed(self, chunk: bytes) -> bytes:
        """Returns what *chunk* decompresses to.

        Raises:
            BodyError: It is damaged; BodyTooLargeError is one such.
        """
        return b"".join(self.pieces(chunk))

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """Yields the same in pieces of bounded size: a chunk may become a thousand times as long.

        Raises as `feed` does.
        """
        if self._plain:
            self._room -= len(chunk)
            yield chunk
            return
        if not self._started and self._deflate and chunk[0] & 0x0F != _DEFLATE_METHOD:
            self._stream = zlib.decompressobj(_BARE_DEFLATE)
        self._started = True
        while chunk:
            if self._stream.eof:
                # A gzip file may have several members (RFC 1952, section 2.2).
                self._stream = zlib.decompressobj(_WITH_HEADER)
            try:
                piece = self._stream.decompress(chunk, min(self._room + 1, PIECE_BYTES))
            except zlib.error:
                raise BodyError("the reply's compression is damaged") from None
            self._room -= len(piece)
            if self._room < 0:
                raise BodyTooLargeError
            yield piece
            chunk = self._stream.unused_data or self._stream.unconsumed_tail

    def finish(self) -> None:
        """Checks that the body has ended. Raises BodyError if it is cut."""
        if self._started and not self._stream.eof:
            raise BodyError("the reply is cut")
