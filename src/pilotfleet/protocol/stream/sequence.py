"""Sequence numbers: 32 bits that wrap around (wire.md section 11)."""

from __future__ import annotations

from typing import Final

__all__ = ["HALF", "MASK", "distance", "is_after"]

MASK: Final = 0xFFFF_FFFF
HALF: Final = 0x8000_0000
"""From here on a difference counts as negative."""


def is_after(a: int, b: int) -> bool:
    """Return whether ``a`` follows ``b`` (RFC 1982: signed difference above 0)."""
    return 0 < (a - b) & MASK < HALF


def distance(a: int, b: int) -> int:
    """Return how many steps lead from ``b`` up to ``a``."""
    return (a - b) & MASK
