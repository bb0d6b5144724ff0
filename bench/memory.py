"""Memory of an idle agent: 200 in one process, and official daemons side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.report import Figure
from tests.support.programs import world

if TYPE_CHECKING:
    from tests.support.programs import Program, World

AGENTS = 200
OFFICIAL_DAEMONS = 10


def measure() -> list[Figure]:
    """Return resident and proportional memory per idle agent, in KiB."""
    with world() as net:
        net.start_rendezvous()
        base = _memory(net.start_daemon("one", "--agents", "1"))
        many = _memory(
            net.start_daemon("many", "--agents", str(AGENTS), "--agent-prefix", "m-")
        )
        official = _official(net)
    slope = {kind: (many[kind] - base[kind]) / (AGENTS - 1) for kind in base}
    method = f"/proc/PID/smaps_rollup; {AGENTS} agents in one process"
    return [
        Figure(
            "memory of an idle agent, host included (RSS)",
            "KiB",
            many["Rss"] / AGENTS,
            official["Rss"],
            f"{method}; mean of {OFFICIAL_DAEMONS} official daemons",
        ),
        Figure(
            "memory of an idle agent, host included (PSS)",
            "KiB",
            many["Pss"] / AGENTS,
            official["Pss"],
            f"{method}; mean of {OFFICIAL_DAEMONS} official daemons",
        ),
        Figure(
            f"memory of one more idle agent (1 to {AGENTS})",
            "KiB",
            slope["Rss"],
            official["Rss"],
            "growth of RSS; an official agent is a process of its own",
        ),
    ]


def _official(net: World) -> dict[str, float]:
    daemons = [
        net.start_official_daemon(f"official-{number}")
        for number in range(OFFICIAL_DAEMONS)
    ]
    figures = [_memory(daemon) for daemon in daemons]
    return {
        kind: sum(figure[kind] for figure in figures) / OFFICIAL_DAEMONS
        for kind in ("Rss", "Pss")
    }


def _memory(program: Program) -> dict[str, float]:
    """Return resident and proportional set size in KiB."""
    text = Path(f"/proc/{program.process.pid}/smaps_rollup").read_text()
    fields = (line.split() for line in text.splitlines()[1:])
    return {
        words[0].rstrip(":"): float(words[1])
        for words in fields
        if words[0] in ("Rss:", "Pss:")
    }
