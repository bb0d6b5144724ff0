"""``pilotctl find-agents --watch``: who is there, and from then on what changes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pilotfleet.cli.streams import open_deadline
from pilotfleet.errors import InvalidArgument, TimedOut, error_from_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.connection import Deadline
    from pilotfleet.cli.invocation import Context

__all__ = ["COLUMNS", "cell", "watch_agents"]

COLUMNS = ("address", "hostname", "tags", "polo", "online", "last_seen")
"""Of an agent, in the order in which people get them."""

_KINDS = ("removed", "added", "changed")
_PAGE_FLAGS = ("cursor", "limit", "cached")


def watch_agents(context: Context, arguments: Arguments) -> None:
    """Print one line for each change until there are enough, or time is up.

    Raises:
        InvalidArgument: A flag was given that is for one page of an answer.
        NotSupported: The daemon is an official one.
        ConnectionFailed: The registry, or later the daemon, went away.
    """
    for flag in _PAGE_FLAGS:
        if arguments.has(flag):
            raise InvalidArgument(
                f"--watch does not go together with --{flag}",
                hint="a watch tells all agents that fit, and then every change",
            )
    count = arguments.integer("count", 0, least=0)
    deadline = open_deadline(arguments)
    query = {
        "tags": arguments.texts("tag") + arguments.positionals,
        "any": arguments.enabled("any"),
        "hostname_prefix": arguments.text("hostname"),
        "online": arguments.enabled("online"),
    }
    context.daemon().call("watch", **query)
    if sys.stderr.isatty():
        context.output.note("watching; Ctrl-C ends")
    for number, change in enumerate(_changes(context, deadline), start=1):
        _print(context, change)
        if number == count:
            break


def cell(value: Any) -> str:
    """Return a value of a row as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return "-" if value in (None, "") else str(value)


def _changes(context: Context, deadline: Deadline) -> Iterator[dict[str, Any]]:
    while True:
        try:
            push = context.daemon().receive_push(deadline=deadline)
        except TimedOut:
            return
        failure = push.get("error")
        if isinstance(failure, dict):
            raise error_from_fields(failure)
        for kind in _KINDS:
            for row in push.get(kind) or ():
                yield {"change": kind, "agent": row}


def _print(context: Context, change: dict[str, Any]) -> None:
    if context.json:
        context.output.line(change)
        return
    cells = [cell(change["agent"].get(column)) for column in COLUMNS]
    context.output.text("\t".join([change["change"], *cells]))
