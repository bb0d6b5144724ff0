"""Lists of agent names, as ``worker-[1-500],scout``."""

from __future__ import annotations

import re
from typing import Final

from pilotfleet.errors import InvalidArgument

__all__ = ["MAX_IDENTITIES", "expand_names"]

MAX_IDENTITIES: Final = 20_000

_RANGE: Final = re.compile(r"([^\[\],]*)\[(\d{1,9})-(\d{1,9})\]([^\[\],]*)")


def expand_names(text: str) -> list[str]:
    """Return the names that a list with ranges stands for.

    Raises:
        InvalidArgument: A name is empty or named twice, a range is malformed or
            runs backwards, or there are too many.
    """
    names: list[str] = []
    for item in text.split(","):
        names += _expand(item.strip())
        if len(names) > MAX_IDENTITIES:
            raise InvalidArgument(f"more than {MAX_IDENTITIES} agents in {text!r}")
    if len(set(names)) != len(names):
        raise InvalidArgument(f"an agent is named twice in {text!r}")
    return names


def _expand(item: str) -> list[str]:
    match = _RANGE.fullmatch(item)
    if match is None:
        if not item or set(item) & set("[]"):
            raise InvalidArgument(f"{item!r} is not a name or a range as w-[1-9]")
        return [item]
    first, last = int(match[2]), int(match[3])
    if not first <= last < first + MAX_IDENTITIES:
        raise InvalidArgument(f"range {item!r} is backwards or too long")
    return [f"{match[1]}{number}{match[4]}" for number in range(first, last + 1)]
