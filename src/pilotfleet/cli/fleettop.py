"""``pilotctl fleet top``: a fleet at work, on a terminal."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli.fleethome import select_home
from pilotfleet.cli.terminal import printable
from pilotfleet.errors import InvalidArgument
from pilotfleet.fleet.control import FleetControl

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.output import Output

__all__ = ["top"]

MIN_INTERVAL_S: Final = 0.1
PLAIN_WIDTH: Final = 110
MOST_MEMBERS: Final = 20
MOST_BATCHES: Final = 5
_UNREMARKABLE: Final = "running"


def top(words: Arguments, output: Output) -> None:
    """Show a fleet's numbers again and again; once where there is no terminal."""
    interval_s = words.duration("interval", 1.0)
    if interval_s < MIN_INTERVAL_S:
        raise InvalidArgument(f"--interval: at least {MIN_INTERVAL_S:g}s")
    control = FleetControl(select_home(words, words.positional(0)))
    status = asyncio.run(control.status())
    if output.json:
        output.result(status)
    elif words.has("once") or not sys.stdout.isatty():
        _print_plain(status)
    else:
        _live(control, interval_s)


def _live(control: FleetControl, interval_s: float) -> None:
    # Imported here: it takes longer than everything else the command needs.
    from rich.live import Live

    async def show() -> None:
        with Live(screen=True, auto_refresh=False) as live:
            while True:
                live.update(_frame(await control.status()), refresh=True)
                await asyncio.sleep(interval_s)

    try:
        asyncio.run(show())
    except KeyboardInterrupt:
        return  # The way to leave it.


def _print_plain(status: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(
        file=sys.stdout, no_color=True, width=PLAIN_WIDTH, highlight=False
    )
    console.print(_frame(status))


def _frame(status: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    headline = printable(_headline(status))
    parts: list[RenderableType] = [Text(headline, style="bold")]
    parts += [_numbers(status), _members(status["members"])]
    if status["batches"]:
        parts.append(_batches(status["batches"][-MOST_BATCHES:]))
    if status["clusters"]:
        parts.append(_clusters(status["clusters"][:MOST_MEMBERS]))
    if status["slowest"]:
        parts.append(_slowest(status["slowest"]))
    return Group(*parts)


def _headline(status: dict[str, Any]) -> str:
    trouble = f"  {status['trouble']}" if status["trouble"] else ""
    return f"{status['name']}  {status['pattern']}  {status['state']}{trouble}"


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
