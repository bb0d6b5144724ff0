"""``pilotctl fleet top``: a fleet at work, on a terminal."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.cli.fleetfigures import figure_lines
from pilotfleet.cli.fleethome import select_home
from pilotfleet.cli.monitorclient import MonitorClient, read_token
from pilotfleet.cli.terminal import printable
from pilotfleet.errors import InvalidArgument
from pilotfleet.fleet.control import FleetControl
from pilotfleet.fleet.monitor.figures import Figures

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType
    from rich.table import Table

    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.output import Output

__all__ = ["top"]

MIN_INTERVAL_S: Final = 0.1
MAX_INTERVAL_S: Final = 86_400.0
PLAIN_WIDTH: Final = 110
MOST_MEMBERS: Final = 20
MOST_BATCHES: Final = 5
_UNREMARKABLE: Final = "running"


def top(words: Arguments, output: Output) -> None:
    """Show a fleet's numbers again and again; once where there is no terminal."""
    interval_s = words.duration("interval", 1.0)
    if not MIN_INTERVAL_S <= interval_s <= MAX_INTERVAL_S:
        raise InvalidArgument(f"--interval: at least {MIN_INTERVAL_S:g}s, at most 24h")
    is_once = words.has("once") or not sys.stdout.isatty()
    if words.has("monitor"):
        _top_of_monitor(words, output, None if is_once else interval_s)
        return
    if words.has("token-file"):
        raise InvalidArgument("--token-file goes with --monitor only")
    control = FleetControl(select_home(words, words.positional(0)))
    status = asyncio.run(control.status())
    if output.json:
        output.result(status)
    elif is_once:
        _print_plain(_frame(status))
    else:
        _live(lambda: _frame(asyncio.run(control.status())), interval_s)


def _top_of_monitor(words: Arguments, output: Output, interval_s: float | None) -> None:
    """Show what a ``pilot-monitor`` knows, which may watch a fleet from elsewhere."""
    if words.positionals or words.has("home"):
        raise InvalidArgument(
            "--monitor shows what the monitor watches, not a SPEC or --home",
            hint="choose one of its fleets with --name",
        )
    client = MonitorClient(
        words.text("monitor"),
        token=read_token(words.text("token-file")) if words.has("token-file") else "",
        fleet=words.text("name"),
    )
    figures = client.figures()
    if output.json:
        output.result({"figures": msgspec.to_builtins(figures)})
    elif interval_s is None:
        _print_plain(_monitor_frame(figures))
    else:
        _live(lambda: _monitor_frame(client.figures()), interval_s)


def _live(frame: Callable[[], RenderableType], interval_s: float) -> None:
    # Imported here: it takes longer than everything else the command needs.
    from rich.live import Live

    try:
        with Live(screen=True, auto_refresh=False) as live:
            while True:
                live.update(frame(), refresh=True)
                time.sleep(interval_s)
    except KeyboardInterrupt:
        return  # The way to leave it.


def _print_plain(frame: RenderableType) -> None:
    from rich.console import Console

    console = Console(
        file=sys.stdout, no_color=True, width=PLAIN_WIDTH, highlight=False
    )
    console.print(frame)


def _monitor_frame(figures: Figures) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    headline = Text(printable(figures.fleet), style="bold")
    traffic = figures.traffic
    versions = ", ".join(f"{n} x {name}" for name, n in figures.versions.items())
    table = _figures(figures, since="ever")
    _row(
        table,
        "tunnels",
        f"{traffic.tunnels}; {traffic.sent_per_s / 1e6:.3g} MB/s sent,"
        f" {traffic.received_per_s / 1e6:.3g} MB/s received",
    )
    _row(table, "versions", versions or "not known yet")
    return Group(headline, table)


def _figures(figures: Figures, *, since: str = "since up") -> Table:
    table = _table("FIGURE", "")
    for name, words in figure_lines(figures, since=since):
        _row(table, name, words)
    return table


def _frame(status: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    headline = printable(_headline(status))
    figures = msgspec.convert(status["figures"], Figures)
    parts: list[RenderableType] = [Text(headline, style="bold"), _figures(figures)]
    parts += [_numbers(status), _members(status["members"])]
    if status["batches"]:
        parts.append(_batches(status["batches"][-MOST_BATCHES:]))
    if status["clusters"]:
        parts.append(_clusters(status["clusters"][:MOST_MEMBERS]))
    if status["slowest"]:
        parts.append(_slowest(status["slowest"]))
    return Group(*parts)


def _headline(status: dict[str, Any]) -> str:
    more = "".join(f"  {status[k]}" for k in ("monitor", "trouble") if status.get(k))
    return f"{status['name']}  {status['pattern']}  {status['state']}{more}"


def _numbers(status: dict[str, Any]) -> Table:
    tasks, workers = status["tasks"], status["workers"]
    states = status["health"]["agents"]
    agents = ", ".join(f"{count} {state}" for state, count in states.items())
    table = _table("", "AGENTS", "WORKERS", "BUSY", "TASKS/S", "ERRORS", "OPEN", "DONE")
    _row(
        table,
        agents or "no health yet",
        *(str(status["agents"]), str(workers.get("workers", "-"))),
        *(str(workers.get("busy", "-")), f"{status['tasks_per_second']:g}"),
        f"{status['error_rate']:.1%}",
        *(str(tasks["open"]), str(tasks["succeeded"] + tasks["failed"])),
    )
    return table


def _members(members: list[dict[str, Any]]) -> Table:
    """Return the members, those in trouble first; the rest is counted."""
    table = _table("MEMBER", "STATE", "AGENTS", "RESTARTS", "LAST EXIT")
    ranked = sorted(
        members, key=lambda row: (row["state"] == _UNREMARKABLE, -row["restarts"])
    )
    for row in ranked[:MOST_MEMBERS]:
        _row(
            table,
            *(row["name"], row["state"], str(row["agents"]), str(row["restarts"])),
            row["last_exit"] or "-",
        )
    if len(members) > MOST_MEMBERS:
        _row(table, f"and {len(members) - MOST_MEMBERS} more", "", "", "", "")
    return table


def _batches(batches: list[dict[str, Any]]) -> Table:
    table = _table("BATCH", "TASKS", "OPEN", "SUCCEEDED", "FAILED", "RETRIED")
    keys = ("name", "tasks", "open", "succeeded", "failed", "retried")
    for batch in batches:
        _row(table, *(str(batch[key]) for key in keys))
    return table


def _clusters(clusters: list[dict[str, Any]]) -> Table:
    keys = list(clusters[0])
    table = _table(*(key.upper().replace("_", " ") for key in keys))
    for cluster in clusters:
        _row(table, *(str(cluster.get(key, "")) for key in keys))
    return table


def _slowest(tasks: list[dict[str, Any]]) -> Table:
    table = _table("SLOWEST TASK", "AGENT", "MS")
    for task in tasks:
        _row(table, task["id"], task["agent"] or "-", f"{task['ms']:g}")
    return table


def _table(*heads: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for head in heads:
        table.add_column(head, no_wrap=True)
    return table


def _row(table: Table, *cells: str) -> None:
    """Add a row of text, not markup: what is in it may come from other people."""
    from rich.text import Text

    table.add_row(*(Text(printable(cell)) for cell in cells))
