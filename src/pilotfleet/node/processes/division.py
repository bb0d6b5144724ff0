"""Which process hosts which agent.

An agent's tasks are kept by the process that hosts it. So its place follows from its
name alone: agents that come and go do not move the others.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from pilotfleet.node.config import AgentSpec, HostConfig

__all__ = ["divide", "process_homes", "process_of", "sort_key"]

_NUMBERED: Final = re.compile(r"(.*?)([0-9]{1,18})", re.ASCII | re.DOTALL)
FOLDER: Final = "processes"


def process_of(name: str, count: int) -> int:
    """Return the process, from 1 to ``count``, that hosts the agent ``name``.

    Numbered agents take turns, so that every process has as many as the others.
    """
    numbered = _NUMBERED.fullmatch(name)
    if numbered is not None:
        return (int(numbered[2]) - 1) % count + 1
    return zlib.crc32(name.encode(errors="surrogatepass")) % count + 1


def divide(config: HostConfig, count: int) -> dict[int, HostConfig]:
    """Return what each process hosts; one that would host nothing is left out."""
    hosted: dict[int, list[AgentSpec]] = {}
    for spec in config.agents:
        hosted.setdefault(process_of(spec.name, count), []).append(spec)
    homes = process_homes(config.home, count)
    return {
        number: replace(
            config, home=homes[number], agents=tuple(hosted[number]), socket=None
        )
        for number in sorted(hosted)
    }


def process_homes(home: Path, count: int) -> dict[int, Path]:
    """Return where each process keeps what belongs to it as a whole."""
    if count == 1:
        return {1: home}
    folder = home / FOLDER
    return {number: folder / f"{number}-of-{count}" for number in range(1, count + 1)}


def sort_key(name: str) -> tuple[str, int]:
    """Order agents by prefix and number: ``w-2`` comes before ``w-10``."""
    numbered = _NUMBERED.fullmatch(name)
    return (name, -1) if numbered is None else (numbered[1], int(numbered[2]))
