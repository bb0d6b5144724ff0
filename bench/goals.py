"""The numbers that pilotfleet must reach, and what was measured of them.

The goals and the claims are those of the design's table of numbers; the claims are
those of the article on fleets of OpenClaw agents over the Pilot Protocol.

Rates and times are by the wall clock. Only the two shares of a core are processor time:
dividing by that would tell what a machine with nothing else to do might reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.report import Table, cell_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.report import Target


NONE = "-"
"""Nothing claimed, nothing measured."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One number of the table."""

    key: str
    what: str
    unit: str
    part: str
    """The benchmark that measures it."""
    limit: float | None
    """None: what the official programs reach in the same run."""
    claim: str = NONE
    """What the article says."""
    is_lowest: bool = False
    """Whether more is better: otherwise the limit is the highest allowed."""

    @property
    def text(self) -> str:
        """The goal in words."""
        sign = "≥" if self.is_lowest else "≤"
        limit = "official" if self.limit is None else with_unit(self.limit, self.unit)
        return f"{sign} {limit}"

    def is_reached(self, value: float, official: float | None) -> bool | None:
        """Return whether a figure is good enough; None without anything to compare."""
        limit = official if self.limit is None else self.limit
        if limit is None:
            return None
        return value >= limit if self.is_lowest else value <= limit


def _most(
    key: str, what: str, unit: str, part: str, limit: float, claim: str = NONE
) -> Goal:
    return Goal(key, what, unit, part, limit, claim)


def _least(key: str, what: str, unit: str, part: str, limit: float | None) -> Goal:
    return Goal(key, what, unit, part, limit, is_lowest=True)


MB_8, PER_TUNNEL, SLIGHTLY = "~8 MB", "2 to 3 MB", "“increases slightly”"
STAGGER = "staggered over 30 to 60 s for 1,000"

GOALS = (
    _most(
        *("memory_idle_slope_kib", "one more idle agent, 1,000 to 10,000", "KiB"),
        *("hosts", 16, MB_8),
    ),
    _most(
        *("memory_idle_1000_kib", "idle agent of 1,000, host included", "KiB"),
        *("hosts", 64, MB_8),
    ),
    _most(
        *("memory_active3_kib", "active agent, 3 tunnels", "KiB"),
        *("hosts", 48, "~15 MB"),
    ),
    _most(
        *("memory_busy10_kib", "busy agent, 10 tunnels", "KiB"),
        *("hosts", 128, "~35 MB"),
    ),
    _most("memory_tunnel_kib", "one idle tunnel", "KiB", "hosts", 8, PER_TUNNEL),
    _most(
        *("cpu_idle_percent", "processor of an idle agent, of a core", "%"),
        *("hosts", 0.001, "< 0.1 %"),
    ),
    _most("files_idle", "open files of an idle agent", "", "hosts", 1, "3"),
    _most(
        *("start_1000_s", "1,000 agents registered and findable", "s"),
        *("hosts", 5, STAGGER),
    ),
    _most("start_10000_s", "10,000 agents registered and findable", "s", "hosts", 60),
    _most("rtt_ms", "echo round trip, small, median", "ms", "tunnel", 0.4),
    _least("goodput_mb_s", "goodput of a stream, one way", "MB/s", "tunnel", 100),
    _least("goodput_echo_mb_s", "goodput of a stream, echoed", "MB/s", "tunnel", 60),
    _least(
        *("goodput_official_peer_mb_s", "goodput to an official peer", "MB/s"),
        *("tunnel", None),
    ),
    _most("info_ms", "`pilotctl info`, median", "ms", "commands", 80),
    _most(
        *("search_p99_1k_ms", "search by tag, 1,000 agents, p99", "ms"),
        *("discovery", 2, SLIGHTLY),
    ),
    _most(
        *("search_p99_10k_ms", "search by tag, 10,000 agents, p99", "ms"),
        *("discovery", 2, SLIGHTLY),
    ),
    _most(
        *("search_p99_100k_ms", "search by tag, 100,000 agents, p99", "ms"),
        *("discovery", 2, SLIGHTLY),
    ),
    _least("lookups_per_s", "registry: lookups", "/s", "registry", 25_000),
    _least("heartbeats_per_s", "registry: heartbeats", "/s", "registry", 25_000),
    _least(
        *("first_registrations_per_s", "registry: first registrations", "/s"),
        *("registry", 2_000),
    ),
    _least(
        *("batch_heartbeats_per_s", "registry: heartbeats in batches", "/s"),
        *("registry", 100_000),
    ),
    _most("connection_kib", "registry: an idle connection", "KiB", "registry", 16),
    _most("node_kib", "registry: a node", "KiB", "registry", 2),
    _most(
        *("events_10000_core_percent", "broker, 10,000 publishers each 10 s", "%"),
        *("events", 15),
    ),
    _least("events_fanout_per_s", "broker: deliveries", "/s", "events", 50_000),
    _least("tasks_1000_per_s", "tasks, hub and 1,000 workers", "/s", "tasks", 1_500),
    _most(
        *("herd_search_p99_ms", "search while 10,000 start at once, p99", "ms"),
        *("herd", 100),
    ),
    _most("herd_start_s", "10,000 that start at once are all up", "s", "herd", 60),
)
"""In the order of the design's table."""

BY_KEY = {goal.key: goal for goal in GOALS}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A goal beside what was measured of it."""

    key: str
    what: str
    unit: str
    official: float | None
    """Measured in the same run; None where they cannot do the job."""
    claim: str
    goal: str
    value: float | None
    """None: not measured."""
    is_reached: bool | None
    method: str
    command: str


def outcomes(targets: Iterable[Target]) -> list[Outcome]:
    """Return every goal with what was measured of it."""
    found = {target.key: target for target in targets}
    return [_outcome(goal, found.get(goal.key)) for goal in GOALS]


def unknown_keys(targets: Iterable[Target]) -> list[str]:
    """Return the keys of targets that no goal has."""
    return sorted({target.key for target in targets} - set(BY_KEY))


def goals_table(found: Sequence[Outcome]) -> Table:
    """Return the table that the documentation begins with."""
    columns = (
        *("what", "official 1.18.0, measured", "article's claim", "goal"),
        *("pilotfleet, measured", "reached", "how", "command"),
    )
    words = {True: "yes", False: "no", None: NONE}
    rows = [
        (
            outcome.what,
            _measured(outcome.official, outcome.unit),
            outcome.claim,
            outcome.goal,
            _measured(outcome.value, outcome.unit),
            words[outcome.is_reached],
            outcome.method or NONE,
            f"`{outcome.command}`",
        )
        for outcome in found
    ]
    return Table("Goals", columns, list(rows))


def with_unit(value: float, unit: str) -> str:
    """Return a figure as it is read."""
    number = cell_text(int(value) if value == int(value) else value)
    space = "" if unit.startswith("/") else " "
    return f"{number}{space}{unit}".rstrip()


def _measured(value: float | None, unit: str) -> str:
    return NONE if value is None else with_unit(value, unit)


def _outcome(goal: Goal, target: Target | None) -> Outcome:
    value = target.value if target else None
    official = target.official if target else None
    return Outcome(
        key=goal.key,
        what=goal.what,
        unit=goal.unit,
        official=official,
        claim=goal.claim,
        goal=goal.text,
        value=value,
        is_reached=None if value is None else goal.is_reached(value, official),
        method=target.method if target else "",
        command=f"python -m bench {goal.part}",
    )
