"""Commands that find agents: in the registry, and on this daemon."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli.agentwatch import COLUMNS, cell, watch_agents
from pilotfleet.cli.terminal import printable
from pilotfleet.errors import ConnectionFailed, InvalidArgument
from pilotfleet.protocol.ipc.listing import OP_AGENTS, AgentListing

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context

MAX_LIMIT: Final = 1000
MAX_TABLE: Final = 500
"""Rows of a table that fits the terminal; laying out more takes seconds."""


def find_agents(context: Context, arguments: Arguments) -> None:
    """Search the registry by tag, name and state."""
    if arguments.has("watch"):
        if not arguments.enabled("watch"):
            raise InvalidArgument(
                f'--watch takes no value: "{arguments.text("watch")[:40]}"',
                hint="put tags first, or write --tag TAG",
            )
        watch_agents(context, arguments)
        return
    for flag in ("count", "timeout"):
        if arguments.has(flag):
            raise InvalidArgument(
                f"--{flag} needs --watch", hint="--limit bounds the agents of a page"
            )
    limit = arguments.integer("limit", 50, least=1)
    if limit > MAX_LIMIT:
        raise InvalidArgument(
            f"invalid integer for --limit: {limit} is more than {MAX_LIMIT}",
            hint="use --cursor with next_cursor of the result for the next page",
        )
    try:
        body = context.daemon().call(
            "search",
            tags=arguments.texts("tag") + arguments.positionals,
            any=arguments.enabled("any"),
            hostname_prefix=arguments.text("hostname"),
            online=arguments.enabled("online"),
            limit=limit,
            cursor=arguments.text("cursor"),
            cached=arguments.enabled("cached"),
        )
    except ConnectionFailed as error:
        # The registry's refusals carry no code, only their text.
        if "invalid cursor" in str(error):
            raise InvalidArgument(
                f'invalid cursor "{arguments.text("cursor")[:80]}"',
                hint="--cursor takes next_cursor of the page before",
            ) from error
        if "too many tags" in str(error):
            raise InvalidArgument(str(error)) from error
        raise
    result = {
        "agents": body.get("agents") or [],
        "total": body.get("total", 0),
        "next_cursor": body.get("next_cursor", ""),
    }
    if "age_s" in body:
        result["age_s"] = body["age_s"]
    _show(context, result, result["agents"], list(COLUMNS))
    if "age_s" in body:
        context.output.note(f"as it was {body['age_s']:.1f} s ago")


def agents(context: Context, arguments: Arguments) -> None:
    """List the agents that the daemon hosts."""
    listing, rows = AgentListing(), []
    while not listing.is_complete:
        answer = context.daemon().call(OP_AGENTS, **listing.params())
        rows += listing.take(answer)
    result: dict[str, Any] = {"agents": rows, "total": len(rows)}
    missing = listing.missing_processes
    if missing:
        result["missing_processes"] = missing
    columns = ["name", "address", "hostname", "tags", "state"]
    _show(context, result, rows, columns)
    for number in missing:
        context.output.note(
            f"process {number} is being restarted: its agents are not listed"
        )


def _show(
    context: Context,
    result: dict[str, Any],
    rows: list[dict[str, Any]],
    columns: list[str],
) -> None:
    if context.json:
        context.output.result(result)
        return
    cells = [[cell(row.get(column)) for column in columns] for row in rows]
    if sys.stdout.isatty() and len(cells) > MAX_TABLE:
        _print_aligned(context, columns, cells)
    elif sys.stdout.isatty():
        _print_table(columns, cells)
    else:
        # In a pipe: one row per line, columns apart by a tabulator.
        for line in cells:
            context.output.text("\t".join(line))
    total = result.get("total", len(rows))
    context.output.note(f"{len(rows)} of {total} agents")
    if result.get("next_cursor"):
        context.output.note(f"next page: --cursor {result['next_cursor']}")


def _print_aligned(
    context: Context, columns: list[str], cells: list[list[str]]
) -> None:
    """Print rows in columns, which the terminal breaks where it ends."""
    from rich.cells import cell_len

    # As the output will print them, which changes the width.
    lines = [[printable(cell) for cell in line] for line in cells]
    lines.insert(0, [_title(column) for column in columns])
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (
            cell + " " * (width - cell_len(cell))
            for cell, width in zip(line, widths, strict=True)
        )
        context.output.text("  ".join(padded).rstrip())


def _title(column: str) -> str:
    return column.upper().replace("_", " ")


def _print_table(columns: list[str], cells: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(_title(column))
    for line in cells:
        # Text, not markup: names and tags come from other people.
        table.add_row(*(Text(printable(cell)) for cell in line))
    Console().print(table)
