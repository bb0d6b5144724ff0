"""Arithmetic on Ed25519's curve (RFC 8032, section 5.1): slow, and not for secrets.

Tests make with it the signatures and keys that no honest program makes.
"""

from __future__ import annotations

import hashlib
from typing import Final, TypeAlias

__all__ = [
    "BASE",
    "IDENTITY",
    "ORDER",
    "PRIME",
    "SMALL_ORDER",
    "Point",
    "add",
    "challenge",
    "encode",
    "multiply",
]

Point: TypeAlias = tuple[int, int]

PRIME: Final = 2**255 - 19
ORDER: Final = 2**252 + 27742317777372353535851937790883648493
"""Of the base point; the whole group has eight times as many points."""
_D: Final = -121665 * pow(121666, -1, PRIME) % PRIME
_ROOT: Final = pow(2, (PRIME - 1) // 4, PRIME)
"""A square root of -1."""


def add(one: Point, other: Point) -> Point:
    """Return the sum of two points."""
    (x1, y1), (x2, y2) = one, other
    both = _D * x1 * x2 * y1 * y2
    x = (x1 * y2 + x2 * y1) * pow(1 + both, -1, PRIME)
    y = (y1 * y2 + x1 * x2) * pow(1 - both, -1, PRIME)
    return x % PRIME, y % PRIME


def multiply(factor: int, point: Point) -> Point:
    """Return a multiple of a point."""
    result = IDENTITY
    while factor:
        if factor & 1:
            result = add(result, point)
        point = add(point, point)
        factor >>= 1
    return result


def encode(point: Point, *, y_added: int = 0, sign: int | None = None) -> bytes:
    """Return the 32 bytes of a point.

    ``y_added`` and ``sign`` make an encoding that no program should write:
    the prime added to y, or another sign bit where x is zero.
    """
    x, y = point
    top = (x & 1 if sign is None else sign) << 255
    return (y + y_added | top).to_bytes(32, "little")


def challenge(r: bytes, key: bytes, message: bytes) -> int:
    """Return the hash that a signature answers."""
    digest = hashlib.sha512(r + key + message).digest()
    return int.from_bytes(digest, "little") % ORDER


def _with_y(y: int) -> Point:
    """Return the point with this y and the even x.

    Raises:
        ValueError: No point has it.
    """
    square = (y * y - 1) * pow(_D * y * y + 1, -1, PRIME) % PRIME
    x = pow(square, (PRIME + 3) // 8, PRIME)
    if x * x % PRIME != square:
        x = x * _ROOT % PRIME
    if x * x % PRIME != square:
        raise ValueError(f"no point has y = {y}")
    return (PRIME - x if x & 1 else x), y


def _torsion() -> tuple[Point, ...]:
    """Return the points of order 1, 2, 4 and 8, each a multiple of the last one."""
    y = 2
    while True:
        try:
            # What is left of any point without its part in the large subgroup.
            generator = multiply(ORDER, _with_y(y))
        except ValueError:
            y += 1
            continue
        if multiply(4, generator) != IDENTITY:
            return tuple(multiply(number, generator) for number in range(8))
        y += 1


IDENTITY: Final = (0, 1)
BASE: Final = _with_y(4 * pow(5, -1, PRIME) % PRIME)
SMALL_ORDER: Final = _torsion()
"""The eight points whose multiple by 8 is the identity, which comes first."""
