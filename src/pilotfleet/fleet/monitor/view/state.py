"""What a view keeps over a restart, as bytes.

``crc32 (u32) | MessagePack``. A state of another version is as good as none: what it
said is counted anew from the broker's log, as far as that goes back.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import Final

import msgspec

from pilotfleet.errors import DecodeError
from pilotfleet.fleet.monitor.figures import PoloFigures  # noqa: TC001
from pilotfleet.fleet.monitor.samples import DirectoryAgent  # noqa: TC001

# msgspec looks at these when the program runs.
from pilotfleet.fleet.monitor.view.agents import SavedAgent  # noqa: TC001
from pilotfleet.fleet.monitor.view.tasks import SavedSeen, SavedWindow  # noqa: TC001
from pilotfleet.fleet.monitor.view.traffic import SavedHost, SavedNode  # noqa: TC001
from pilotfleet.fleet.monitor.view.trust import SavedTrust  # noqa: TC001

__all__ = ["SavedView", "decode_state", "encode_state"]

VERSION: Final = 2
_CHECK: Final = struct.Struct("!I")


class SavedView(msgspec.Struct, frozen=True, array_like=True):
    """A fleet as its view knows it."""

    version: int
    fleet: str
    now: float
    heard_since: float
    events: int
    events_lost: int
    events_refused: int
    agents: list[SavedAgent]
    directory: list[DirectoryAgent]
    tasks: SavedWindow
    times: bytes
    """Of all tasks ever, but those of the open second."""
    tags: dict[str, SavedWindow]
    seen: SavedSeen
    trust: SavedTrust
    traffic: tuple[int, int, list[SavedHost], list[SavedNode]]
    polo: PoloFigures
    brokers: dict[str, dict[str, int]]


_decoder: Final = msgspec.msgpack.Decoder(SavedView)


def encode_state(state: SavedView) -> bytes:
    """Return a state as bytes."""
    data = msgspec.msgpack.encode(state)
    return _CHECK.pack(zlib.crc32(data)) + data


def decode_state(data: bytes) -> SavedView:
    """Read what :func:`encode_state` wrote.

    Raises:
        DecodeError: It is damaged, or of another version.
    """
    if len(data) < _CHECK.size or _CHECK.unpack_from(data)[0] != zlib.crc32(data[4:]):
        raise DecodeError("damaged state of a fleet: its check sum is another")
    try:
        state = _decoder.decode(data[_CHECK.size :])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeError(f"state of a fleet in another form: {error}") from error
    if state.version != VERSION:
        raise DecodeError(f"state of a fleet in version {state.version}, not {VERSION}")
    if not (math.isfinite(state.now) and state.now >= 0):
        raise DecodeError("damaged state of a fleet: impossible time")
    return state
