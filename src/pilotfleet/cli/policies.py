"""Commands about expression policies and member tags (cli.md section 6.8)."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from pilotfleet.cli.failures import IoFailure
from pilotfleet.cli.invocation import parse_network, read_target
from pilotfleet.cli.registry import ask_registry, without_endpoints
from pilotfleet.errors import AuthRequired, InvalidArgument, RegistryError
from pilotfleet.protocol.ipc.commands import (
    Command,
    ManagedSub,
    pack_node,
    pack_port,
)
from pilotfleet.protocol.policy import EVENTS, Policy, PolicyError, load_policy

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context

GET = 0
SET = 1


def get(context: Context, arguments: Arguments) -> None:
    """Show the policy that the daemon applies in a network."""
    context.require_flags(arguments, "net")
    payload = bytes([ManagedSub.POLICY, GET]) + pack_port(_network(arguments))
    _show(context, context.ask(Command.MANAGED, payload, "policy get"))


def set_policy(context: Context, arguments: Arguments) -> None:
    """Give a network a policy, once it is found valid."""
    context.require_flags(arguments, "net")
    network, text = _network(arguments), _document(arguments)
    try:
        load_policy(text)
    except PolicyError as error:
        raise InvalidArgument(f"policy validation: {error}") from None
    # Both are told: the registry keeps it for all members, the daemon may apply it at
    # once.
    token = _store(context, network, text).encode()
    payload = bytes([ManagedSub.POLICY, SET]) + pack_port(network)
    payload += pack_port(len(token)) + token + text.encode()
    _show(context, context.ask(Command.MANAGED, payload, "policy set"))


def validate(context: Context, arguments: Arguments) -> None:
    """Check a policy without a daemon."""
    try:
        policy = load_policy(_document(arguments))
    except PolicyError as error:
        stage = "validation" if error.is_form else "compilation"
        raise InvalidArgument(f"{stage} failed: {error}") from None
    data = {
        "valid": True,
        "version": 1,
        "rules": len(policy),
        "events": dict.fromkeys(sorted(policy.events), True),
    }
    context.output.result(data, f"policy is valid ({len(policy)} rules)")


def test(context: Context, arguments: Arguments) -> None:
    """Tell what a policy says of one event."""
    context.require_flags(arguments, "file", "event")
    try:
        policy = load_policy(_document(arguments))
    except PolicyError as error:
        raise InvalidArgument(f"policy: {error}") from None
    event = _event(arguments)
    context.output.result({"directives": _decide(policy, event)})


def member_tags_get(context: Context, arguments: Arguments) -> None:
    """Show the tags of one member, or of all."""
    context.require_flags(arguments, "net")
    network = pack_port(_network(arguments))
    target = arguments.text("node", "0")
    node = 0 if target == "0" else context.resolve(target).node
    payload = bytes([ManagedSub.MEMBER_TAGS, GET]) + network + pack_node(node)
    _show(context, context.ask(Command.MANAGED, payload, "member-tags get"))


def member_tags_set(context: Context, arguments: Arguments) -> None:
    """Set the tags of a member: as the administrator, else as the own node."""
    context.require_flags(arguments, "net", "node", "tags")
    network, target = _network(arguments), arguments.text("node")
    tags = [tag for tag in arguments.text("tags").split(",") if tag]
    try:
        token = context.settings.admin_token()
    except AuthRequired:
        payload = bytes([ManagedSub.MEMBER_TAGS, SET]) + pack_port(network)
        payload += pack_node(context.resolve(target).node)
        payload += json.dumps(tags, separators=(",", ":")).encode()
        _show(context, context.ask(Command.MANAGED, payload, "member-tags set"))
        return
    # Only a hostname needs the daemon.
    node = (read_target(target) or context.resolve(target)).node
    body = ask_registry(
        context,
        type="set_member_tags",
        admin_token=token,
        network_id=network,
        target_node_id=node,
        tags=tags,
    )
    _show(context, body)


def _store(context: Context, network: int, policy: str) -> str:
    """Give the registry the policy; return the admin token, or nothing."""
    try:
        token = context.settings.admin_token()
    except AuthRequired:
        # The network's owner needs none where the registry knows who asks.
        token = ""
    request: dict[str, Any] = {"network_id": network, "expr_policy": policy}
    if token:
        request["admin_token"] = token
    try:
        ask_registry(context, type="set_expr_policy", **request)
    except RegistryError as error:
        problem = str(error).removeprefix(f"{context.command}: ")
        raise RegistryError(f"set policy on registry: {problem}") from error
    return token


def _network(arguments: Arguments) -> int:
    return parse_network(str(arguments.integer("net", 0, least=0)))


def _document(arguments: Arguments) -> str:
    if arguments.text("inline"):
        return arguments.text("inline")
    path = arguments.text("file")
    if not path:
        raise InvalidArgument("provide --file or --inline")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise IoFailure(f"reading policy file: {error}") from error


def _event(arguments: Arguments) -> dict[str, Any]:
    try:
        event = json.loads(arguments.text("event"))
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"event JSON: {error}") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        listed = ", ".join(EVENTS)
        raise InvalidArgument(f"event must have a 'type' field ({listed})")
    return event


def _decide(policy: Policy, event: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        directives = policy.decide(event["type"], event, wall=time.time())
    except InvalidArgument as error:
        raise InvalidArgument(f"evaluation: {error}") from None
    return [directive._asdict() for directive in directives]


def _show(context: Context, body: dict[str, Any]) -> None:
    context.output.result(without_endpoints(body))
