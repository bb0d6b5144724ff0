"""Commands for the registry's administrator (cli.md section 6.8, registry.md 7.1).

All of them talk to the registry directly and need its admin token.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli.failures import LeftOut, UsageError
from pilotfleet.cli.invocation import parse_network
from pilotfleet.cli.registry import ask_registry
from pilotfleet.errors import InvalidArgument, NotFound, RegistryError

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context

_NOT_SUPPORTED: Final = "not supported: "
"""How our registry begins the text of what it leaves out on purpose."""
_IDP_USAGE: Final = (
    "usage: pilotctl idp set --type <oidc|saml|entra_id|ldap|webhook> --url <URL>"
    " [--issuer URL] [--client-id ID] [--tenant-id ID] [--domain D]"
)
_IDP_TYPES: Final = frozenset(["oidc", "saml", "entra_id", "ldap", "webhook"])
_EXPORT_USAGE: Final = (
    "usage: pilotctl audit-export set --format <json|splunk_hec|syslog_cef>"
    " --endpoint <URL> [--splunk-token T] [--index I] [--source S]"
)


def audit(context: Context, arguments: Arguments) -> None:
    """Show what was changed in networks, newest first."""
    request: dict[str, Any] = {}
    if arguments.has("network"):
        request["network_id"] = arguments.integer("network", 0, least=0)
    if arguments.has("limit"):
        request["limit"] = arguments.integer("limit", 100, least=1)
    _administer(context, "get_audit_log", **request)


def provision(context: Context, arguments: Arguments) -> None:
    """Make a network, or change it, as a blueprint says."""
    context.require(arguments, 1)
    context.settings.admin_token()
    blueprint = _read_object(arguments.positional(0), "blueprint", "blueprint")
    _administer(context, "provision_network", blueprint=blueprint)


def deprovision(context: Context, arguments: Arguments) -> None:
    """Delete the network of a name."""
    context.require(arguments, 1)
    name = arguments.positional(0)
    context.settings.admin_token()
    listed = ask_registry(context, type="list_networks").get("networks") or ()
    found = [row["id"] for row in listed if row.get("name") == name]
    if not found:
        raise NotFound(f'network "{name}" not found')
    _administer(context, "delete_network", network_id=found[0])


def provision_status(context: Context, arguments: Arguments) -> None:
    """Show all networks and how they are set up."""
    _administer(context, "get_provision_status")


def idp(context: Context, arguments: Arguments) -> None:
    """Show the identity provider, or set it."""
    context.require(arguments, 1)
    action = arguments.positional(0)
    if action == "get":
        _administer(context, "get_idp_config")
        return
    if action != "set":
        raise InvalidArgument(f"unknown idp subcommand: {action} (use get or set)")
    context.settings.admin_token()
    kind, url = arguments.text("type"), arguments.text("url")
    if kind not in _IDP_TYPES or not url:
        raise UsageError(_IDP_USAGE)
    fields = ("issuer", "client-id", "tenant-id", "domain")
    values = {flag.replace("-", "_"): arguments.text(flag) for flag in fields}
    _administer(context, "set_idp_config", idp_type=kind, url=url, **values)


def audit_export(context: Context, arguments: Arguments) -> None:
    """Show where the audit log is sent, set that, or stop it."""
    context.require(arguments, 1)
    action = arguments.positional(0)
    if action == "get":
        _administer(context, "get_audit_export")
        return
    if action not in ("set", "disable"):
        raise InvalidArgument(
            f"unknown audit-export subcommand: {action} (use get, set, or disable)"
        )
    context.settings.admin_token()
    flags = {
        "format": "format",
        "endpoint": "endpoint",
        "token": "splunk-token",
        "index": "index",
        "source": "source",
    }
    values = dict.fromkeys(flags, "")
    if action == "set":
        values = {key: arguments.text(flag) for key, flag in flags.items()}
        if not values["format"] or not values["endpoint"]:
            raise UsageError(_EXPORT_USAGE)
    _administer(context, "set_audit_export", **values)


def directory_sync(context: Context, arguments: Arguments) -> None:
    """Make a network's members and roles follow a directory."""
    context.require(arguments, 1)
    context.settings.admin_token()
    path = arguments.positional(0)
    directory = _read_object(path, "directory file", "directory file")
    network = directory.get("network_id", 0)
    if arguments.has("network"):
        network = arguments.integer("network", 0, least=0)
    if not network:
        raise InvalidArgument("network_id required (use --network or set in file)")
    remove = arguments.enabled("remove-unlisted")
    _administer(
        context,
        "directory_sync",
        network_id=network,
        entries=directory.get("entries"),
        remove_unlisted=remove or directory.get("remove_unlisted") is True,
    )


def directory_status(context: Context, arguments: Arguments) -> None:
    """Show how many members of a network a directory knows."""
    context.require(arguments, 1)
    network = parse_network(arguments.positional(0))
    _administer(context, "directory_status", network_id=network)


def refuse(context: Context, arguments: Arguments) -> None:
    """Say why a command of the official program is not offered here."""
    from pilotfleet.cli.catalogue_admin import LEFT_OUT

    name = context.command
    raise LeftOut(
        f"{name} is not supported: {LEFT_OUT[name]}",
        hint="docs/reference/cli.md lists what pilotfleet leaves out, and why",
    )


def _administer(context: Context, kind: str, **request: Any) -> None:
    token = context.settings.admin_token()
    try:
        body = ask_registry(context, type=kind, admin_token=token, **request)
    except RegistryError as error:
        if _NOT_SUPPORTED in str(error):
            raise LeftOut(str(error)) from error
        raise
    context.output.result(body)


def _read_object(path: str, reading: str, parsing: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InvalidArgument(f"read {reading}: open {path}: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"parse {parsing}: {error}") from error
    if not isinstance(value, dict):
        raise InvalidArgument(f"parse {parsing}: {path} does not hold an object")
    return value
