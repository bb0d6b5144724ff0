"""The five figures of a fleet in words, for terminals without colour as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfleet.protocol.durations import format_duration

if TYPE_CHECKING:
    from pilotfleet.fleet.monitor.figures import Figures, PoloFigures, TaskFigures

__all__ = ["figure_lines"]


def figure_lines(figures: Figures, *, since: str = "since up") -> list[tuple[str, str]]:
    """Return the name and the words of each figure.

    Args:
        since: From when on the totals count, in words: a monitor keeps them longer
            than a fleet's own controller, which begins anew with each ``up``.
    """
    agents, tasks = figures.agents, figures.tasks
    ended = f"{tasks.completed_per_minute:g} completed, {tasks.failed_per_minute:g}"
    changes = f"{figures.trust_linked} new, {figures.trust_revoked} revoked"
    lines = [
        ("agents", f"{agents.alive} alive, {agents.late} late, {agents.lost} lost"),
        (
            "tasks/min",
            f"{ended} failed  ({since} {tasks.completed} and {tasks.failed})",
        ),
        ("errors", f"{tasks.error_rate:.1%} in five minutes{_times(tasks)}"),
        ("trust", f"{figures.trust_links} links; in the last hour {changes}"),
        ("polo", _polo(figures.polo)),
    ]
    if not figures.following:
        lines.append(("note", "no broker of the fleet is heard: these are old"))
    if figures.events_lost:
        lines.append(("note", f"{figures.events_lost} events were lost"))
    return lines


def _polo(polo: PoloFigures) -> str:
    if not polo.agents:
        return "not known yet"
    shares = f"p10 {polo.p10}, p50 {polo.p50}, p90 {polo.p90}, p99 {polo.p99}"
    return f"{shares}  ({polo.lowest} to {polo.highest}, {polo.agents} agents)"


def _times(tasks: TaskFigures) -> str:
    if tasks.p50_ms is None or tasks.p95_ms is None or tasks.p99_ms is None:
        return ""
    named = (("p50", tasks.p50_ms), ("p95", tasks.p95_ms), ("p99", tasks.p99_ms))
    return "; times " + ", ".join(f"{name} {_time(ms)}" for name, ms in named)


def _time(ms: float) -> str:
    """Return a time with about three digits."""
    if ms < 1_000:
        return f"{ms:.3g} ms"
    return f"{ms / 1_000:.3g} s" if ms < 120_000 else format_duration(ms / 1_000)
