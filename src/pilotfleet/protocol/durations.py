"""Durations as the official program reads and writes them (cli.md section 1.2)."""

from __future__ import annotations

import re
from typing import Final

from pilotfleet.errors import InvalidArgument

__all__ = ["format_duration", "parse_duration"]

_UNITS: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_NUMBER: Final = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_PART: Final = re.compile(f"({_NUMBER})(ns|us|µs|μs|ms|s|m|h)")
_PARTS: Final = re.compile(f"([+-]?)((?:{_PART.pattern})+)")
_BARE: Final = re.compile(f"[+-]?{_NUMBER}")
_MAX_TEXT: Final = 64


def parse_duration(
    text: str, name: str, *, needs_unit: bool = False, allow_negative: bool = False
) -> float:
    """Return the seconds of ``1m30s``, ``300ms`` or, without unit, ``2.5``.

    Args:
        text: The duration.
        name: What it was given to, for the message.
        needs_unit: Take no number without a unit but ``0``, as in files.
        allow_negative: For the flags where it means "without limit".

    Raises:
        InvalidArgument: The text is not a duration.
    """
    seconds = _read(text) if len(text) <= _MAX_TEXT else None
    lacks_unit = needs_unit and text != "0" and _BARE.fullmatch(text)
    if seconds is None or lacks_unit:
        raise InvalidArgument(
            f'invalid duration for {name}: invalid duration "{text[:_MAX_TEXT]}"',
            hint="use a number with a unit, like 500ms, 30s, 1m30s or 2h",
        )
    if seconds < 0 and not allow_negative:
        raise InvalidArgument(f'invalid duration for {name}: "{text}" is negative')
    return seconds


def format_duration(seconds: float) -> str:
    """Return a short text for people: ``696.8µs``, ``1.5s``, ``2h3m``."""
    for limit, unit, scale in ((1e-3, "µs", 1e6), (1.0, "ms", 1e3)):
        if seconds < limit:
            return f"{seconds * scale:.4g}{unit}"
    if seconds < 60:
        return f"{seconds:.3g}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m"
    return f"{minutes}m{rest}s"


def _read(text: str) -> float | None:
    if _BARE.fullmatch(text):
        return float(text)
    match = _PARTS.fullmatch(text)
    if match is None:
        return None
    total = sum(
        float(number) * _UNITS[unit] for number, unit in _PART.findall(match[2])
    )
    return -total if match[1] == "-" else total
