"""The four columns of the matrix: whose programs stand at which end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final

__all__ = ["DIRECTIONS", "Column", "Direction", "Maker", "Seat"]


class Maker(StrEnum):
    """Who made a program."""

    OURS = "ours"
    OFFICIAL = "official"


@dataclass(frozen=True, slots=True)
class Seat:
    """A daemon and the client that drives it."""

    client: Maker
    daemon: Maker


class Column(Enum):
    """A question that each row answers; the value is its heading."""

    OUR_DAEMON = "official client, our daemon"
    OUR_CLIENT = "our client, official daemon"
    TUNNEL = "official - ours over the tunnel"
    OFFICIAL = "both official, our rendezvous"


@dataclass(frozen=True, slots=True)
class Direction:
    """A near end, where a row's commands run, and a far end that they reach."""

    name: str
    column: Column
    near: Seat
    far: Seat


_OURS: Final = Seat(Maker.OURS, Maker.OURS)
_OFFICIAL: Final = Seat(Maker.OFFICIAL, Maker.OFFICIAL)
_OUR_DAEMON: Final = Seat(Maker.OFFICIAL, Maker.OURS)
_OUR_CLIENT: Final = Seat(Maker.OURS, Maker.OFFICIAL)

DIRECTIONS: Final = (
    Direction("official", Column.OFFICIAL, _OFFICIAL, _OFFICIAL),
    Direction("our daemon", Column.OUR_DAEMON, _OUR_DAEMON, _OUR_DAEMON),
    Direction("our client", Column.OUR_CLIENT, _OUR_CLIENT, _OUR_CLIENT),
    Direction("official to ours", Column.TUNNEL, _OFFICIAL, _OURS),
    Direction("ours to official", Column.TUNNEL, _OURS, _OFFICIAL),
)
"""The first is the reference. The tunnel is tried from both of its ends."""
