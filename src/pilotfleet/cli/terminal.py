"""Text from other people on its way to a terminal.

Hostnames, task texts, errors and logs come from whoever is on the network. A terminal
obeys what is in them: it moves its cursor, changes its title, even types.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["escaped", "printable"]

# Controls but for newline and tabulator, and what turns the direction of text.
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def printable(text: str) -> str:
    """Return a text without what would steer a terminal."""
    return _UNPRINTABLE.sub("\ufffd", text)


def escaped(text: str) -> str:
    r"""Return JSON that means the same, with ``\u009b`` for what steers a terminal."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
