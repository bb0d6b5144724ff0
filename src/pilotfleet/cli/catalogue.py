"""The table of all commands: where each one is, what it takes, what it returns.

Dispatch, usage errors, help and ``pilotctl context`` all read this table, so a
command that is not in it does not exist. Modules are named, not imported: a command
loads only its own.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from pilotfleet.cli import catalogue_admin, catalogue_node, catalogue_traffic
from pilotfleet.cli.catalogue_errors import ERRORS

__all__ = ["COMMANDS", "GROUPS", "SECTIONS", "Spec"]

_ARGUMENT: Final = re.compile(
    r"\[(?:[^\[\]]|\[[^\]]*\])*\]|\((?:[^()])*\)|--\S+ <[^>]+>|\S+"
)


class Spec(NamedTuple):
    """One command."""

    section: str
    handler: str
    """``module:function`` below this package; none for ``fleet``, which reads its own
    words."""
    usage: str
    description: str
    returns: str
    errors: tuple[str, ...]
    """Codes it can give, besides ``internal``, which any command can."""

    @property
    def arguments(self) -> list[str]:
        """The usage, one argument each."""
        return _ARGUMENT.findall(self.usage)


SECTIONS: Final = {
    "start": "Getting started",
    "daemon": "Daemon",
    "fleet": "Fleet",
    "find": "Discovery",
    "identity": "Identity and registry",
    "trust": "Trust",
    "talk": "Communication",
    "events": "Events",
    "tasks": "Tasks",
    "network": "Networks",
    "info": "Diagnostics",
    "sign": "Request signing",
    "gateway": "IP gateway",
    "admin": "Administration",
    "left out": "Of the official program, but not of this one (each says why)",
}
"""Heading of each part of the help."""

_ROWS: Final = {
    **catalogue_node.ROWS,
    **catalogue_traffic.ROWS,
    **catalogue_admin.ROWS,
}

COMMANDS: Final = {
    name: Spec(*row, errors=ERRORS.get(name, ())) for name, row in _ROWS.items()
}
"""Every command by its words."""


def _groups() -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in COMMANDS:
        first, separator, second = name.partition(" ")
        if separator:
            groups.setdefault(first, []).append(second)
    return groups


GROUPS: Final = _groups()
"""First words of two-word commands, with the second words."""
