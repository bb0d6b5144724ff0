"""Commands about networks, policies and member tags (cli.md section 6.8)."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli.arguments import read_number
from pilotfleet.cli.failures import UsageError
from pilotfleet.cli.registry import ask_registry, without_endpoints
from pilotfleet.errors import InvalidArgument, NotFound
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

JOIN_RULES: Final = ("open", "token", "invite")
POLICY_GET: Final = 0
POLICY_SET: Final = 1


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
    peer = context.resolve(arguments.positional(1))
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
        raise UsageError(f"usage: pilotctl {context.command} {context.usage}")
    rule = arguments.text("join-rule", "open")
    if rule not in JOIN_RULES:
        raise InvalidArgument(f'unknown join rule "{rule}" (use open, token or invite)')
    # Needed whatever follows, so its absence is said first.
    context.settings.admin_token()
    request: dict[str, Any] = {"name": name, "join_rule": rule}
    if arguments.has("token"):
        request["token"] = arguments.text("token")
    if arguments.enabled("enterprise"):
        request["enterprise"] = True
    rules = _rules(arguments)
    if rules is not None:
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
    node = context.resolve(arguments.positional(1)).node
    _show(
        context,
        ask_registry(
            context, type="get_member_role", network_id=network, target_node_id=node
        ),
    )


def network_policy(context: Context, arguments: Arguments) -> None:
    """Show a network's policy, or change it."""
    context.require(arguments, 1)
    request: dict[str, Any] = {"network_id": _network_id(arguments)}
    if arguments.has("max-members"):
        request["max_members"] = arguments.integer("max-members", 0, least=0)
    if arguments.has("description"):
        request["description"] = arguments.text("description")
    if arguments.has("allowed-ports"):
        request["allowed_ports"] = _ports(arguments.text("allowed-ports"))
    if len(request) > 1:
        _administer(context, "set_network_policy", **request)
    else:
        _show(context, ask_registry(context, type="get_network_policy", **request))


def managed_status(context: Context, arguments: Arguments) -> None:
    """Show the engine of a managed network."""
    _ask_managed(context, ManagedSub.STATUS, _net(arguments), "managed status")


def managed_cycle(context: Context, arguments: Arguments) -> None:
    """Run a cycle of a managed network now."""
    _ask_managed(context, ManagedSub.CYCLE, _net(arguments), "managed cycle")


def managed_reconcile(context: Context, arguments: Arguments) -> None:
    """Compare a managed network with the registry now."""
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


def policy_get(context: Context, arguments: Arguments) -> None:
    """Show the policy that the daemon applies in a network."""
    payload = bytes([POLICY_GET]) + _net(arguments)
    _ask_managed(context, ManagedSub.POLICY, payload, "policy get")


def policy_set(context: Context, arguments: Arguments) -> None:
    """Give a network a policy."""
    policy = json.dumps(_policy(arguments)).encode()
    token = context.settings.admin_token().encode()
    payload = bytes([POLICY_SET]) + _net(arguments) + pack_port(len(token))
    _ask_managed(context, ManagedSub.POLICY, payload + token + policy, "policy set")


def policy_validate(context: Context, arguments: Arguments) -> None:
    """Check a policy's form without a daemon."""
    policy = _policy(arguments)
    if policy.get("version") != 1:
        raise InvalidArgument("expr_policy: version must be 1")
    rules = policy.get("rules")
    if not isinstance(rules, list) or not rules:
        raise InvalidArgument("expr_policy: rules must not be empty")
    context.output.result({"valid": True, "rules": len(rules)}, "policy is valid")


def member_tags_get(context: Context, arguments: Arguments) -> None:
    """Show the tags of a network's member."""
    payload = bytes([POLICY_GET]) + _net(arguments) + _member(context, arguments)
    _ask_managed(context, ManagedSub.MEMBER_TAGS, payload, "member-tags get")


def member_tags_set(context: Context, arguments: Arguments) -> None:
    """Set the tags of a network's member."""
    tags = [tag for tag in arguments.text("tags").split(",") if tag]
    payload = bytes([POLICY_SET]) + _net(arguments) + _member(context, arguments)
    payload += json.dumps(tags, separators=(",", ":")).encode()
    _ask_managed(context, ManagedSub.MEMBER_TAGS, payload, "member-tags set")


def _ask(context: Context, sub: NetworkSub, payload: bytes, operation: str) -> None:
    body = context.ask(Command.NETWORK, bytes([sub]) + payload, f"network {operation}")
    _show(context, body)


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
    node = context.resolve(arguments.positional(1)).node
    _administer(context, kind, network_id=network, target_node_id=node)


def _respond(context: Context, arguments: Arguments, answer: bytes) -> None:
    context.require(arguments, 1)
    payload = pack_port(_network_id(arguments)) + answer
    _ask(context, NetworkSub.RESPOND_INVITE, payload, "respond-invite")


def _show(context: Context, body: dict[str, Any]) -> None:
    context.output.result(without_endpoints(body))


def _network_id(arguments: Arguments) -> int:
    return _parse_network(arguments.positional(0))


def _net(arguments: Arguments) -> bytes:
    return pack_port(_parse_network(arguments.text("net", "0")))


def _parse_network(text: str) -> int:
    number = read_number(text, 0xFFFF)
    if number is None:
        raise InvalidArgument(
            f'invalid network_id "{text[:40]}": not a number up to 65535'
        )
    return number


def _member(context: Context, arguments: Arguments) -> bytes:
    target = arguments.text("node")
    if not target:
        raise InvalidArgument("--node is required")
    return pack_node(context.resolve(target).node)


def _ports(text: str) -> list[int]:
    from pilotfleet.cli.invocation import parse_port

    return [parse_port(part.strip()) for part in text.split(",") if part.strip()]


def _rules(arguments: Arguments) -> Any:
    if arguments.has("rules-file"):
        return _load_json("--rules-file", _read(arguments.text("rules-file")))
    if arguments.has("rules"):
        return _load_json("--rules", arguments.text("rules"))
    return None


def _policy(arguments: Arguments) -> dict[str, Any]:
    if arguments.has("file"):
        policy = _load_json("--file", _read(arguments.text("file")))
    elif arguments.has("inline"):
        policy = _load_json("--inline", arguments.text("inline"))
    else:
        raise InvalidArgument("either --file or --inline is required")
    if not isinstance(policy, dict):
        raise InvalidArgument("policy must be a JSON object")
    return policy


def _load_json(flag: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"invalid JSON for {flag}: {error}") from error


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError as error:
        raise NotFound(f"file not found: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"cannot read {path}: {error}") from error
