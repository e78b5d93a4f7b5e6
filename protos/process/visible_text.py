"""Text from outside, made safe to print for people.

Titles, holders' names and error texts come from Keepa, from files and from clients. A
terminal would execute an ESC sequence in one of them: it can rename the window, move the
cursor or hide the text before it. So every text for people shows characters that are not
plain as their codes.
"""

import re
from typing import Final

# All of Unicode's control (Cc) and line characters, and those format characters (Cf) that
# hide or reorder what stands beside them (UAX #9; Unicode 16, chapter 23). Joiners inside
# emoji and Indic words (U+200C, U+200D) are hidden, too: a name must be what it looks like.
_CODES: Final = (
    "\x00-\x1f\x7f-\x9f"  # C0 with ESC and BEL, DEL, C1 with CSI and OSC
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"  # soft hyphen, joiners, fillers
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f"  # zero width, separators, bidi marks and overrides
    "\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff0-\uffff"  # fillers, selectors, byte order mark
    "\ud800-\udfff"  # halves of pairs, which no terminal's encoding has
    "\U000e0000-\U000e0fff"  # tags, an invisible alphabet
)
_HIDDEN: Final = re.compile(f"[{_CODES}]")
_HIDDEN_BUT_LINES: Final = re.compile(f"(?![\\n\\t])[{_CODES}]")
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\x1b": "\\e", "\x07": "\\a"}


def visible(text: str, *, lines: bool = False) -> str:
    """Returns *text* with every control or hidden character as its code, a Python escape.

    Args:
        text: Text from outside.
        lines: Whether the project itself broke *text* into lines: line breaks and tabs stay.
    """
    pattern = _HIDDEN_BUT_LINES if lines else _HIDDEN
    return pattern.sub(_code, text)


def _code(found: re.Match[str]) -> str:
    character = found[0]
    number = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    if number <= 0xFF:  # noqa: PLR2004 - what two hex digits hold
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"  # noqa: PLR2004 - four
