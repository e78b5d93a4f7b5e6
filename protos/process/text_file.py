"""Text files written by people: UTF-8, with or without a mark; else a clear error."""

import codecs
from pathlib import Path
from typing import Final

REMEDY: Final = "save it as UTF-8"
# The longer marks first: a mark of UTF-32 begins with that of UTF-16.
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16, which Windows calls Unicode"),
    (codecs.BOM_UTF16_BE, "UTF-16, which Windows calls Unicode"),
)


class NotUtf8Error(ValueError):
    """A text in another encoding; the message names encoding and remedy, and quotes nothing."""


def decode_text(raw: bytes) -> str:
    """Returns the text of a file's content, without the mark that some editors put first.

    Raises:
        NotUtf8Error: It is in another encoding, or no text.
    """
    if b"\0" not in raw:
        try:
            return raw.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError:
            pass
    # Outside the handler: the original error holds the content, which may be a secret.
    raise NotUtf8Error(f"{_probable_encoding(raw)}: {REMEDY}")


def read_text(path: Path) -> str:
    """Returns the text in *path*.

    Raises:
        OSError: It can't be read.
        NotUtf8Error: As `decode_text`.
    """
    return decode_text(path.read_bytes())


def _probable_encoding(raw: bytes) -> str:
    for mark, name in _MARKS:
        if raw.startswith(mark):
            return f"it is {name}, not UTF-8"
    if b"\0" in raw:
        # In UTF-16, every other byte of mostly Latin text is zero.
        zeros = max(raw[::2].count(0), raw[1::2].count(0))
        if zeros * 4 > len(raw):
            return "it is probably UTF-16, not UTF-8"
        return "it is no text: it holds zero bytes"
    try:
        raw.decode("cp1252")
    except UnicodeDecodeError:
        return "it is not UTF-8"
    # Windows has quotes and dashes where Latin-1 has control characters.
    if any(0x80 <= byte <= 0x9F for byte in raw):  # noqa: PLR2004 - the C1 range
        return "it is probably Windows-1252, not UTF-8"
    return "it is probably Latin-1 (ISO 8859-1), not UTF-8"
