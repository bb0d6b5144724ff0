"""``pilotctl fleet …``: which command it is, and what each takes."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from pilotfleet.cli.arguments import Arguments, parse_arguments
from pilotfleet.cli.output import Output
from pilotfleet.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["main"]

EXIT_OK: Final = 0
_WHICH: Final = frozenset(["home", "name"])
"""Flags that say which fleet is meant."""


class Command(NamedTuple):
    """One fleet command."""

    usage: str
    description: str
    handler: str
    """``module:function`` below this package."""
    flags: frozenset[str] = frozenset()
    """Flags with a value."""
    switches: frozenset[str] = frozenset()
    """Flags without one, which so leave the word behind them alone."""
    most: int = 1
    """Most words that are no flags."""


COMMANDS: Final = {
    "run": Command(
        "SPEC --tasks FILE --results FILE [--home DIR] [--fresh]",
        "start a fleet, run its tasks, stop it; goes on where a killed run ended",
        "fleetrun:run",
        frozenset(["tasks", "results", "home"]),
        frozenset(["fresh"]),
    ),
    "up": Command(
        "SPEC [--home DIR] [--part I/N] [--foreground [--ready-file FILE]]",
        "start a fleet that stays up, or one machine's part of it",
        "fleetup:up",
        frozenset(["home", "part", "ready-file", "report"]),
        frozenset(["foreground"]),
    ),
    "status": Command(
        "[SPEC]",
        "show members, tasks and workers",
        "fleetstatus:status",
        _WHICH,
    ),
    "scale": Command(
        "[SPEC] workers=N",
        "have so many workers",
        "fleetstatus:scale",
        _WHICH,
        most=2,
    ),
    "submit": Command(
        '[SPEC] (--tasks FILE | --task "text" [--tag T]… [--priority N]'
        " [--deadline D]) [--batch NAME] [--results FILE] [--wait]",
        "give tasks to a fleet",
        "fleetsubmit:submit",
        _WHICH
        | frozenset(
            ["tasks", "task", "tag", "priority", "deadline", "batch", "results"]
        ),
        frozenset(["wait"]),
    ),
    "top": Command(
        "[SPEC | --monitor URL [--token-file FILE]] [--interval D] [--once]",
        "watch a fleet work, or what a pilot-monitor knows of it",
        "fleettop:top",
        _WHICH | frozenset(["interval", "monitor", "token-file"]),
        frozenset(["once"]),
    ),
    "logs": Command(
        "[MEMBER] [-f] [--lines N] [--name NAME | --home DIR]",
        "show what the programs of a fleet log",
        "fleetlogs:logs",
        _WHICH | frozenset(["lines"]),
        frozenset(["f", "follow"]),
    ),
    "rollout": Command(
        "[SPEC] [--batch N]",
        "replace the members, N at a time; with SPEC by what it says now",
        "fleetstatus:rollout",
        _WHICH | frozenset(["batch"]),
    ),
    "down": Command(
        "[SPEC] [--now]",
        "let tasks under way end, then stop a fleet",
        "fleetup:down",
        _WHICH,
        frozenset(["now"]),
    ),
    "list": Command(
        "",
        "show your fleets",
        "fleetstatus:list_fleets",
        most=0,
    ),
    "systemd": Command(
        "SPEC --out DIR [--part I/N] [--cwd DIR]",
        "write units for systemd",
        "fleetsystemd:systemd",
        frozenset(["out", "part", "cwd"]),
    ),
    "enrol": Command(
        "SPEC [--socket PATH] [--registry HOST:PORT] [--home DIR]",
        "bring the agents of a running daemon into their fleet's network",
        "fleetsystemd:enrol",
        frozenset(["socket", "registry", "home"]),
    ),
}

_HELP: Final = frozenset(["-h", "--help", "-help"])


def main(tokens: list[str], json: bool) -> int:
    """Run a fleet command and return the exit code.

    Raises:
        PilotError: What is wrong, for ``pilotctl`` to print.
    """
    output = Output(json=json)
    name = tokens[0] if tokens else ""
    command = COMMANDS.get(name)
    if _HELP.intersection(tokens):
        output.text(_usage(name) if command else _overview())
        return EXIT_OK
    if command is None:
        raise InvalidArgument(
            f"unknown fleet command: {name or '(none)'}",
            hint=f"available: {', '.join(COMMANDS)}",
        )
    words = _parse(name, command, tokens[1:])
    module, function = command.handler.split(":")
    handler: Callable[[Arguments, Output], int | None] = getattr(
        importlib.import_module(f"pilotfleet.cli.{module}"), function
    )
    return handler(words, output) or EXIT_OK


def _parse(name: str, command: Command, tokens: list[str]) -> Arguments:
    switches = {f"{dash}{word}" for word in command.switches for dash in ("-", "--")}
    # A flag takes the next word for its value, and a switch is not to.
    tokens = [f"{token}=true" if token in switches else token for token in tokens]
    words = parse_arguments(tokens)
    unknown = set(words.flags) - command.flags - command.switches
    if unknown:
        raise InvalidArgument(
            f"fleet {name}: unknown flag --{min(unknown)}", hint=_usage(name)
        )
    if len(words.positionals) > command.most:
        raise InvalidArgument(
            f"fleet {name}: too many arguments: {words.positionals[command.most]}",
            hint=_usage(name),
        )
    for flag in command.flags.intersection(words.flags):
        if words.text(flag) in ("", "true"):
            raise InvalidArgument(
                f"fleet {name}: --{flag} needs a value", hint=_usage(name)
            )
    return words


def _usage(name: str) -> str:
    command = COMMANDS[name]
    which = " [--name NAME | --home DIR]" if command.usage.startswith("[SPEC]") else ""
    return f"usage: pilotctl fleet {name} {command.usage}{which} [--json]"


def _overview() -> str:
    lines = ["usage: pilotctl fleet COMMAND …", ""]
    lines += [f"  {name:<9}{row.description}" for name, row in COMMANDS.items()]
    lines += [
        "",
        "A running fleet is named by its specification, by --name, or by --home; with",
        "exactly one fleet running none of these is needed.",
        "pilotctl fleet COMMAND --help shows what a command takes.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], json=False))
