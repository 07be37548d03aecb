"""The rule for every text that enters Vigil, and for foreign text that Vigil shows to people. Pure.

A *name* identifies something and is refused if it contains a character that people cannot see or that AWS services
refuse. A *message* is for people, and what cannot be stored in it is replaced. A *JSON text* is data of the client and
is only refused if UTF-8 cannot encode it.
"""

from __future__ import annotations

import re
from functools import cache

REPLACEMENT = "\ufffd"
MAX_NAME_CHARS = 128

NAME_CLASS = (
    r"\u0000-\u001F\u007F-\u009F"  # Control characters.
    r"\u061C\u200E\u200F\u202A-\u202E\u2066-\u2069"  # Unicode's property Bidi_Control.
    r"\uFDD0-\uFDEF\uFFFE\uFFFF"  # Noncharacters of the first plane.
)
"""The inside of a character class: the characters that no name contains, in the notation of JSON Schema and Python.

The last two code points of each further plane are noncharacters, too. No notation for them is common to both.
"""
NAME_PATTERN = f"^[^{NAME_CLASS}]+$"
LABEL_PATTERN = f"^[^{NAME_CLASS}]*$"
QUEUE_PATTERN = f"^[^{NAME_CLASS}/%]+$"
NAME_RULE = "must contain no control characters, bidi controls or noncharacters"
SURROGATE_RULE = "must not contain half of a surrogate pair"

_HIGH_NONCHARACTERS = "".join(chr(plane << 16 | low) for plane in range(1, 17) for low in (0xFFFE, 0xFFFF))
_UNNAMEABLE = re.compile(f"[{NAME_CLASS}{_HIGH_NONCHARACTERS}\ud800-\udfff]")
_UNPRINTABLE = re.compile(f"[{NAME_CLASS}{_HIGH_NONCHARACTERS}\ud800-\udfff\u2028\u2029]")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_ESCAPE_SEQUENCE = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor movements, clearing.
    "|(?:\x1b[]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\\\|\x9c)"  # OSC, DCS, SOS, PM and APC.
    "|\x1b[ -/]*[0-Z^-~]"  # Other sequences of ESC, without the introducers of the two above.
)
"""ECMA-48, https://ecma-international.org/publications-and-standards/standards/ecma-48/"""


def is_name(text: str, max_chars: int = MAX_NAME_CHARS) -> bool:
    """Return whether a text obeys the rule for names and has 1 to `max_chars` characters."""
    return 0 < len(text) <= max_chars and obeys_name_rule(text)


def obeys_name_rule(text: str) -> bool:
    """Return whether a text contains only characters of names."""
    return _UNNAMEABLE.search(text) is None


def is_encodable(text: str) -> bool:
    """Return whether a text contains no half of a surrogate pair, so that UTF-8 can encode it."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def sanitize(text: str) -> str:
    """Replace NUL characters and halves of surrogate pairs, which neither the API nor a log accepts."""
    return _UNSTORABLE.sub(REPLACEMENT, text)


def printable(text: str, *, keep: str = "") -> str:
    """Make a foreign text safe for a terminal or a drawing.

    Escape sequences are removed. Any other control character, bidi control or noncharacter becomes U+FFFD, so that
    nothing can form a new sequence or change the order of the text around it.

    Args:
        text: The text.
        keep: Control characters to leave unchanged, such as line feeds.
    """
    return _unprintable_except(keep).sub(REPLACEMENT, _ESCAPE_SEQUENCE.sub("", text))


@cache
def _unprintable_except(keep: str) -> re.Pattern[str]:
    if not keep:
        return _UNPRINTABLE
    return re.compile(f"(?![{re.escape(keep)}]){_UNPRINTABLE.pattern}")
