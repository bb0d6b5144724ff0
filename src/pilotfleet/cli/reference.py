"""What pilotctl says about itself: help, ``context``, ``quickstart``, ``version``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pilotfleet import __version__
from pilotfleet.cli.catalogue import COMMANDS, GROUPS, SECTIONS
from pilotfleet.errors import NotFound

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.catalogue import Spec
    from pilotfleet.cli.invocation import Context

CONTEXT_VERSION: Final = "1.4"
"""Version of the catalogue's form, as the official 1.18 program states it."""

EXTRAS: Final = frozenset(["admin", "network"])
"""Sections that the official program keeps behind ``extras``; ours needs none."""

_ERROR_CODES: Final = {
    "already_exists": "the daemon, name or port is there already",
    "auth_required": "the admin token is missing",
    "broadcast_failed": "the daemon refused a broadcast",
    "connection_failed": "the daemon refused, or a peer cannot be reached (retry)",
    "internal": "a local failure",
    "invalid_argument": "bad input (do not retry)",
    "not_found": "a name does not resolve, or the thing does not exist",
    "not_implemented": "the daemon or this program does not offer it",
    "not_running": "no daemon answers on the socket",
    "permission_denied": "refused by policy",
    "timeout": "no answer in time (retry with a longer --timeout)",
    "trust_required": "the peer is private and does not trust this node",
}
_ENVIRONMENT: Final = {
    "PILOT_ADMIN_TOKEN": "token of the registry's administrator",
    "PILOT_AGENT": "name of the hosted agent to act as, like --agent",
    "PILOT_DAEMON_BIN": "path of pilot-daemon",
    "PILOT_HOME": "folder that holds .pilot (default: the home folder)",
    "PILOT_REGISTRY": "registry address (default: 127.0.0.1:9000)",
    "PILOT_SOCKET": "path of the daemon's socket",
}
_GLOBAL_FLAGS: Final = {
    "--json": "print results and errors as JSON; may stand anywhere",
    "--agent": "act as this agent of the daemon",
    "--verbose": "name the socket on stderr (-v)",
}
_QUICKSTART: Final = """\
Getting started with pilotfleet:

  1. Start a rendezvous and a daemon on this machine:
       pilot-rendezvous &
       pilotctl daemon start --hostname alice

  2. Find agents and ask one for trust:
       pilotctl find-agents --tag worker
       pilotctl handshake <node_id> "why"

  3. Talk to it:
       pilotctl ping <node_id>
       pilotctl task submit <node_id> --task "what to do"
       pilotctl events subscribe --topic "fleet.*"

A whole fleet at once:  pilotctl fleet run fleet.toml
All commands:           pilotctl --help"""


def full_help() -> str:
    """Return the help for all commands."""
    lines = [
        "pilotctl - command line of pilotfleet, agents on the Pilot Protocol",
        "",
        "usage: pilotctl [--json] [--agent NAME] <command> [arguments] [flags]",
    ]
    for section, heading in SECTIONS.items():
        lines += ["", f"{heading}:"]
        lines += [
            f"  pilotctl {name} {_shortened(spec.usage)}".rstrip()
            for name, spec in COMMANDS.items()
            if spec.section == section
        ]
    lines += ["", "Global flags:", *_listed(_GLOBAL_FLAGS)]
    lines += ["", "Environment:", *_listed(_ENVIRONMENT)]
    lines += ["", "pilotctl <command> --help explains one command."]
    return "\n".join(lines)


def command_help(words: list[str]) -> str:
    """Return the help for one command, trying two words first."""
    for name in (" ".join(words[:2]), words[0]):
        spec = COMMANDS.get(name)
        if spec is not None:
            lines = [f"Usage: pilotctl {name} {spec.usage}".rstrip()]
            lines += ["", f"{spec.description}.", "", f"Returns: {spec.returns}"]
            return "\n".join(lines)
    if words[0] in GROUPS:
        lines = [f"Usage: pilotctl {words[0]} <subcommand>", "", "Subcommands:"]
        for second in GROUPS[words[0]]:
            spec = COMMANDS[f"{words[0]} {second}"]
            lines.append(f"  {second:<14}{spec.description}")
        return "\n".join(lines)
    return (
        f'No specific help for "{words[0]}" - run pilotctl --help'
        " for the full command list."
    )


def context(context: Context, arguments: Arguments) -> None:
    """Describe all commands, or one, for programs."""
    words = arguments.positionals
    if words[:1] == ["extras"]:
        words = words[1:]
    if words:
        name = " ".join(words)
        spec = COMMANDS.get(name)
        if spec is None:
            raise NotFound(
                f'unknown command "{name}" — valid: {", ".join(sorted(COMMANDS))}'
            )
        context.output.result(_entry(spec))
        return
    core = {n: _entry(s) for n, s in COMMANDS.items() if s.section not in EXTRAS}
    extras = {n: _entry(s) for n, s in COMMANDS.items() if s.section in EXTRAS}
    context.output.result(
        {
            "version": CONTEXT_VERSION,
            "note": "every command works with and without 'extras'",
            "commands": core,
            "extras": {"commands": extras},
            "error_codes": _ERROR_CODES,
            "global_flags": _GLOBAL_FLAGS,
            "environment": _ENVIRONMENT,
            "config_file": "~/.pilot/config.json",
        }
    )


def quickstart(context: Context, arguments: Arguments) -> None:
    """Print the first steps."""
    context.output.text(_QUICKSTART)


def version(context: Context, arguments: Arguments) -> None:
    """Print the bare version, whatever the mode."""
    context.output.text(__version__)


def extras_list() -> str:
    """Return what ``pilotctl extras`` alone prints."""
    lines = ["pilotctl extras <command> is the same as pilotctl <command>.", ""]
    lines += [
        f"  {name:<20}{spec.description}"
        for name, spec in COMMANDS.items()
        if spec.section in EXTRAS
    ]
    return "\n".join(lines)


def _entry(spec: Spec) -> dict[str, Any]:
    return {
        "args": spec.arguments,
        "description": spec.description,
        "returns": spec.returns,
    }


def _shortened(usage: str) -> str:
    return usage if len(usage) <= 64 else f"{usage[:60].rsplit(' ', 1)[0]} ..."


def _listed(items: dict[str, str]) -> list[str]:
    return [f"  {name:<20}{text}" for name, text in items.items()]
