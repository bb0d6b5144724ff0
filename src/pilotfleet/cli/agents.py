"""Commands that find agents: in the registry, and on this daemon."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pilotfleet.cli.terminal import printable
from pilotfleet.errors import ConnectionFailed, InvalidArgument, NotSupported

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context

MAX_LIMIT = 1000


def find_agents(context: Context, arguments: Arguments) -> None:
    """Search the registry by tag, name and state."""
    if arguments.has("watch"):
        raise NotSupported(
            "find-agents --watch is not implemented yet",
            hint="ask again with the same tags for the current state",
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
    columns = ["address", "hostname", "tags", "polo", "online", "last_seen"]
    _show(context, result, result["agents"], columns)


def agents(context: Context, arguments: Arguments) -> None:
    """List the agents that the daemon hosts."""
    rows = context.daemon().call("agents").get("agents") or []
    columns = ["name", "address", "hostname", "tags", "state"]
    _show(context, {"agents": rows, "total": len(rows)}, rows, columns)


def _show(
    context: Context,
    result: dict[str, Any],
    rows: list[dict[str, Any]],
    columns: list[str],
) -> None:
    if context.json:
        context.output.result(result)
        return
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    if sys.stdout.isatty():
        _print_table(columns, cells)
    else:
        # In a pipe: one row per line, columns apart by a tabulator.
        for line in cells:
            context.output.text("\t".join(line))
    total = result.get("total", len(rows))
    context.output.note(f"{len(rows)} of {total} agents")
    if result.get("next_cursor"):
        context.output.note(f"next page: --cursor {result['next_cursor']}")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return "-" if value in (None, "") else str(value)


def _print_table(columns: list[str], cells: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.upper().replace("_", " "))
    for line in cells:
        # Text, not markup: names and tags come from other people.
        table.add_row(*(Text(printable(cell)) for cell in line))
    Console().print(table)
