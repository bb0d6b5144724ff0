"""What pilotctl says about itself: help, ``context``, ``quickstart``, ``version``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pilotfleet import __version__
from pilotfleet.cli.catalogue import COMMANDS, GROUPS, SECTIONS
from pilotfleet.cli.catalogue_admin import LEFT_OUT
from pilotfleet.cli.catalogue_errors import EXPLAINED
from pilotfleet.errors import NotFound

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.catalogue import Spec
    from pilotfleet.cli.invocation import Context

CONTEXT_VERSION: Final = "1.4"
"""Version of the catalogue's form, as the official 1.18 program states it."""

OPERATOR: Final = frozenset(
    """
    audit audit-export bench broadcast clear-hostname clear-tags clear-webhook connect
    connections deprovision dgram directory-status directory-sync disconnect health idp
    listen peers provision provision-status recv send set-tags set-webhook traceroute
    """.split()  # noqa: SIM905 - a list of names is easier to read so
)
"""Commands that the official program files under ``extras``, besides the groups."""
_OPERATOR_GROUPS: Final = frozenset(["gateway", "managed", "member-tags", "policy"])
_MEMBER_NETWORK: Final = frozenset(
    """
    accept create invite invites join leave list members reject
    """.split()  # noqa: SIM905 - a list of names is easier to read so
)
"""Of the networks' commands, those that it does not file there."""

_ENVIRONMENT: Final = {
    "PILOT_ADMIN_TOKEN": "token of the registry's administrator",
    "PILOT_AGENT": "name of the hosted agent to act as, like --agent",
    "PILOT_DAEMON_BIN": "path of pilot-daemon",
    "PILOT_GATEWAY_BIN": "path of pilot-gateway",
    "PILOT_HOME": "folder that holds .pilot (default: the home folder)",
    "PILOT_REGISTRY": "registry address (default: 127.0.0.1:9000)",
    "PILOT_SOCKET": "path of the daemon's socket",
}
_NOTE: Final = (
    "Every command works with and without 'extras'. 'errors' lists the codes a command"
    " can give; any command can give 'internal'."
)
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
    extras = {n: _entry(s) for n, s in COMMANDS.items() if _is_operator(n)}
    context.output.result(
        {
            "version": CONTEXT_VERSION,
            "note": _NOTE,
            "commands": {name: _entry(spec) for name, spec in COMMANDS.items()},
            "extras": {
                "description": "Operator and admin commands; 'pilotctl extras"
                " <command>' and 'pilotctl <command>' are the same.",
                "commands": extras,
            },
            "app_store": {
                "description": f"Not supported: {LEFT_OUT['appstore']}.",
                "subcommands": {},
            },
            "pilot_gateway": _gateway(),
            "error_codes": EXPLAINED,
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
        if _is_operator(name)
    ]
    return "\n".join(lines)


def _entry(spec: Spec) -> dict[str, Any]:
    return {
        "args": spec.arguments,
        "description": spec.description,
        "returns": spec.returns,
        "errors": list(spec.errors),
    }


def _is_operator(name: str) -> bool:
    first, _, second = name.partition(" ")
    if first == "network":
        return second not in _MEMBER_NETWORK
    return first in OPERATOR or first in _OPERATOR_GROUPS


def _gateway() -> dict[str, Any]:
    return {
        "binary": "pilot-gateway",
        "description": "IP gateway: local IP addresses for Pilot addresses, so that"
        " ordinary TCP programs can use them.",
        "commands": {
            second: _entry(COMMANDS[f"gateway {second}"])
            for second in GROUPS["gateway"]
        },
    }


def _shortened(usage: str) -> str:
    return usage if len(usage) <= 64 else f"{usage[:60].rsplit(' ', 1)[0]} ..."


def _listed(items: dict[str, str]) -> list[str]:
    return [f"  {name:<20}{text}" for name, text in items.items()]
