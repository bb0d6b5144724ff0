"""Commands about networks (cli.md section 6.8)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli.arguments import read_number
from pilotfleet.cli.invocation import parse_network, parse_port, read_target
from pilotfleet.cli.registry import ask_registry, without_endpoints
from pilotfleet.errors import InvalidArgument, RegistryError
from pilotfleet.protocol.ipc.commands import (
    Command,
    ManagedSub,
    NetworkSub,
    pack_node,
    pack_port,
)

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context
    from pilotfleet.protocol.address import Address

_POLICY_KEYS: Final = ("max-members", "description", "allowed-ports")


def list_networks(context: Context, arguments: Arguments) -> None:
    """List networks."""
    _ask(context, NetworkSub.LIST, b"", "list")


def join(context: Context, arguments: Arguments) -> None:
    """Join a network; with the admin token, any node."""
    context.require(arguments, 1)
    network = _network_id(arguments)
    token = arguments.text("token")
    if arguments.has("node-id"):
        _administer(
            context,
            "join_network",
            network_id=network,
            node_id=arguments.integer("node-id", 0, least=1),
            token=token,
        )
        return
    payload = pack_port(network) + token.encode("utf-8", "replace")
    _ask(context, NetworkSub.JOIN, payload, "join")


def leave(context: Context, arguments: Arguments) -> None:
    """Leave a network."""
    context.require(arguments, 1)
    _ask(context, NetworkSub.LEAVE, pack_port(_network_id(arguments)), "leave")


def members(context: Context, arguments: Arguments) -> None:
    """List the members of a network."""
    context.require(arguments, 1)
    _ask(context, NetworkSub.MEMBERS, pack_port(_network_id(arguments)), "members")


def invite(context: Context, arguments: Arguments) -> None:
    """Invite a node to a network."""
    context.require(arguments, 2)
    network = pack_port(_network_id(arguments))
    peer = context.resolve_node(arguments.positional(1))
    _ask(context, NetworkSub.INVITE, network + pack_node(peer.node), "invite")


def invites(context: Context, arguments: Arguments) -> None:
    """List invitations to this node."""
    _ask(context, NetworkSub.POLL_INVITES, b"", "poll-invites")


def accept(context: Context, arguments: Arguments) -> None:
    """Accept an invitation."""
    _respond(context, arguments, b"\x01")


def reject(context: Context, arguments: Arguments) -> None:
    """Refuse an invitation."""
    _respond(context, arguments, b"\x00")


def create(context: Context, arguments: Arguments) -> None:
    """Create a network; the owner is its first member."""
    name = arguments.text("name")
    if not name:
        raise context.usage_error()
    # Needed whatever follows, so its absence is said first.
    context.settings.admin_token()
    request: dict[str, Any] = {
        "name": name,
        "join_rule": arguments.text("join-rule", "open"),
        "token": arguments.text("token"),
    }
    if arguments.enabled("enterprise"):
        request["enterprise"] = True
    rules = _rules(arguments)
    if rules:
        request["rules"] = rules
    if arguments.has("node-id"):
        request["node_id"] = arguments.integer("node-id", 0, least=1)
    else:
        info = context.daemon().request_json(Command.INFO)
        request["node_id"] = info.get("node_id")
    _administer(context, "create_network", **request)


def delete(context: Context, arguments: Arguments) -> None:
    """Delete a network."""
    context.require(arguments, 1)
    _administer(context, "delete_network", network_id=_network_id(arguments))


def rename(context: Context, arguments: Arguments) -> None:
    """Rename a network."""
    context.require(arguments, 2)
    name = arguments.positional(1)
    _administer(context, "rename_network", network_id=_network_id(arguments), name=name)


def promote(context: Context, arguments: Arguments) -> None:
    """Make a member an admin."""
    _administer_member(context, arguments, "promote_member")


def demote(context: Context, arguments: Arguments) -> None:
    """Make an admin a member."""
    _administer_member(context, arguments, "demote_member")


def kick(context: Context, arguments: Arguments) -> None:
    """Remove a member."""
    _administer_member(context, arguments, "kick_member")


def role(context: Context, arguments: Arguments) -> None:
    """Show a member's role."""
    context.require(arguments, 2)
    network = _network_id(arguments)
    node = _node(context, arguments).node
    _show(
        context,
        ask_registry(
            context, type="get_member_role", network_id=network, target_node_id=node
        ),
    )


def network_policy(context: Context, arguments: Arguments) -> None:
    """Show a network's policy, or change the values that are given."""
    context.require(arguments, 1)
    request: dict[str, Any] = {"network_id": _network_id(arguments)}
    given = _policy_values(arguments)
    if given:
        # Needed whatever the values are, so its absence is said first.
        context.settings.admin_token()
    if "max-members" in given:
        request["max_members"] = _max_members(given["max-members"])
    if "description" in given:
        request["description"] = given["description"]
    if "allowed-ports" in given:
        request["allowed_ports"] = _ports(given["allowed-ports"])
    if len(request) > 1:
        try:
            _administer(context, "set_network_policy", **request)
        except RegistryError as error:
            text = str(error).removeprefix(f"{context.command}: ")
            raise RegistryError(f"{context.command} set: {text}") from error
    else:
        _show(context, ask_registry(context, type="get_network_policy", **request))


def managed_status(context: Context, arguments: Arguments) -> None:
    """Show the engine of a managed network."""
    _ask_managed(context, ManagedSub.STATUS, _net(arguments), "managed status")


def managed_cycle(context: Context, arguments: Arguments) -> None:
    """Run a cycle of a managed network now."""
    context.require_flags(arguments, "force")
    _ask_managed(context, ManagedSub.CYCLE, _net(arguments), "managed cycle")


def managed_reconcile(context: Context, arguments: Arguments) -> None:
    """Compare a managed network with the registry now."""
    context.require_flags(arguments, "net")
    _ask_managed(context, ManagedSub.RECONCILE, _net(arguments), "managed reconcile")


def managed_score(context: Context, arguments: Arguments) -> None:
    """Change a node's score in a network (daemons up to 1.9.1)."""
    context.require(arguments, 1)
    node = context.resolve(arguments.positional(0)).node
    delta = arguments.integer("delta", 1)
    payload = _net(arguments) + pack_node(node) + struct.pack("!i", delta)
    topic = arguments.text("topic").encode("utf-8", "replace")
    body = context.ask(Command.MANAGED, b"\x01" + payload + topic, "managed score")
    _show(context, body)


def managed_rankings(context: Context, arguments: Arguments) -> None:
    """List a network's scores (daemons up to 1.9.1)."""
    payload = b"\x03" + _net(arguments)
    _show(context, context.ask(Command.MANAGED, payload, "managed rankings"))


def _ask(context: Context, sub: NetworkSub, payload: bytes, operation: str) -> None:
    body = context.ask(Command.NETWORK, bytes([sub]) + payload, f"network {operation}")
    # Unchanged, unlike a lookup: members of a network may see each other's endpoints.
    context.output.result(body)


def _ask_managed(
    context: Context, sub: ManagedSub, payload: bytes, operation: str
) -> None:
    _show(context, context.ask(Command.MANAGED, bytes([sub]) + payload, operation))


def _administer(context: Context, kind: str, **request: Any) -> None:
    token = context.settings.admin_token()
    _show(context, ask_registry(context, type=kind, admin_token=token, **request))


def _administer_member(context: Context, arguments: Arguments, kind: str) -> None:
    context.require(arguments, 2)
    network = _network_id(arguments)
    context.settings.admin_token()
    node = _node(context, arguments).node
    _administer(context, kind, network_id=network, target_node_id=node)


def _respond(context: Context, arguments: Arguments, answer: bytes) -> None:
    context.require(arguments, 1)
    payload = pack_port(_network_id(arguments)) + answer
    _ask(context, NetworkSub.RESPOND_INVITE, payload, "respond-invite")


def _show(context: Context, body: dict[str, Any]) -> None:
    context.output.result(without_endpoints(body))


def _network_id(arguments: Arguments) -> int:
    return parse_network(arguments.positional(0))


def _node(context: Context, arguments: Arguments) -> Address:
    target = arguments.positional(1)
    # Only a hostname needs the daemon.
    return read_target(target) or context.resolve_node(target)


def _net(arguments: Arguments) -> bytes:
    number = arguments.integer("net", 0, least=0)
    return pack_port(parse_network(str(number)))


def _policy_values(arguments: Arguments) -> dict[str, str]:
    """Return what is to be set, by ``--key value`` and by ``--set key=value``."""
    given = {key: arguments.text(key) for key in _POLICY_KEYS if arguments.has(key)}
    for pair in arguments.texts("set"):
        key, separator, value = pair.partition("=")
        key = key.replace("_", "-")
        if not separator or key not in _POLICY_KEYS:
            listed = ", ".join(name.replace("-", "_") for name in _POLICY_KEYS)
            raise InvalidArgument(
                f'invalid policy value "{pair[:40]}"',
                hint=f"write --set key=value; keys are {listed}",
            )
        given[key] = value
    return given


def _max_members(text: str) -> int:
    number = read_number(text, 0xFFFF_FFFF)
    if number is None:
        raise InvalidArgument(f'invalid max-members: "{text[:40]}" is not a number')
    return number


def _ports(text: str) -> list[int]:
    return [parse_port(part.strip()) for part in text.split(",") if part.strip()]


def _rules(arguments: Arguments) -> str:
    """Return the rules as text: the registry reads them."""
    if not arguments.has("rules-file"):
        return arguments.text("rules")
    path = arguments.text("rules-file")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"cannot read rules file: {error}") from error
