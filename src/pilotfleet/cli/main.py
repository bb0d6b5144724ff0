"""pilotctl: from a command line to a command, and to an exit code.

Exit codes (cli.md section 2.1): 0 success, 1 an error that was reported, 2 no
command or, in text mode, an unknown one.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

from pilotfleet.cli.arguments import parse_arguments, parse_invocation
from pilotfleet.cli.catalogue import COMMANDS, GROUPS
from pilotfleet.cli.failures import UnknownCommand
from pilotfleet.cli.output import Output
from pilotfleet.errors import InvalidArgument, PilotError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from pilotfleet.cli.arguments import Arguments, Invocation
    from pilotfleet.cli.invocation import Context

    Handler = Callable[[Context, Arguments], int | None]

__all__ = ["main"]

EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
EXIT_BROKEN_PIPE: Final = 128 + signal.SIGPIPE

_HELP: Final = frozenset(["-h", "--help", "-help"])
_VERSION: Final = frozenset(["--version", "-version"])
_CONTEXT_HINT: Final = "run 'pilotctl context' for the full command list"


def main(tokens: list[str] | None = None) -> int:
    """Run one command line and return the exit code."""
    tokens = sys.argv[1:] if tokens is None else tokens
    output = Output(json="--json" in tokens or "-json" in tokens)
    try:
        return _run(tokens, output)
    except PilotError as error:
        output.error(error)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Nobody reads any more. Python would complain again while it shuts down
        # and flushes, so give it something to flush into.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _run(tokens: list[str], output: Output) -> int:
    invocation = parse_invocation(tokens)
    words = invocation.tokens
    if not words:
        return _print_help(sys.stderr, EXIT_USAGE)
    if words[0] in _HELP:
        return _print_help(sys.stdout, 0)
    if words[0] in _VERSION:
        words = ["version", *words[1:]]
    if words[0] == "extras":
        words = words[1:]
        if not words:
            from pilotfleet.cli.reference import extras_list

            output.text(extras_list())
            return 0
    if words[0] == "fleet":
        fleet = importlib.import_module("pilotfleet.cli.fleet")
        code: int = fleet.main(words[1:], invocation.json)
        return code
    if _HELP.intersection(words):
        from pilotfleet.cli.reference import command_help

        sys.stderr.write(command_help(words) + "\n")
        return 0
    return _dispatch(invocation, words, output)


def _dispatch(invocation: Invocation, words: list[str], output: Output) -> int:
    name, rest = words[0], words[1:]
    if name in GROUPS and (name not in COMMANDS or rest[:1] in _seconds(name)):
        name, rest = _find_subcommand(name, rest)
    spec = COMMANDS.get(name)
    if spec is None:
        return _unknown(name, output)
    from pilotfleet.cli.invocation import Context

    module, function = spec.handler.split(":")
    handler: Handler = getattr(
        importlib.import_module(f"pilotfleet.cli.{module}"), function
    )
    context = Context(invocation, output, command=name, usage=spec.usage)
    try:
        return handler(context, parse_arguments(rest)) or 0
    finally:
        context.close()


def _seconds(name: str) -> list[list[str]]:
    return [[second] for second in GROUPS[name]]


def _find_subcommand(group: str, rest: list[str]) -> tuple[str, list[str]]:
    """Return the two words as a command's name, and what follows."""
    available = GROUPS[group]
    # The official programs word these four in a way of their own each.
    if group == "trusted" and rest[:1] != ["list"]:
        raise InvalidArgument(
            "usage: pilotctl trusted list", hint="available: pilotctl trusted list"
        )
    if not rest and group == "daemon":
        listed = " | ".join(available)
        raise InvalidArgument(
            "missing subcommand", hint=f"available: pilotctl daemon {listed}"
        )
    if not rest and group in ("gateway", "task"):
        listed = ", ".join(available)
        raise InvalidArgument("missing subcommand", hint=f"available: {listed}")
    if not rest:
        raise InvalidArgument(
            f"usage: pilotctl {group} <subcommand>",
            hint=f"available: {', '.join(available)}",
        )
    if rest[0] not in available:
        raise InvalidArgument(
            f"unknown {group} subcommand: {rest[0]}",
            hint=f"available: {', '.join(available)}",
        )
    return f"{group} {rest[0]}", rest[1:]


def _unknown(name: str, output: Output) -> int:
    if output.json:
        raise UnknownCommand(f"unknown command: {name}", hint=_CONTEXT_HINT)
    sys.stderr.write(f"unknown command: {name}\n\n")
    return _print_help(sys.stderr, EXIT_USAGE)


def _print_help(stream: TextIO, code: int) -> int:
    from pilotfleet.cli.reference import full_help

    stream.write(full_help() + "\n")
    return code
