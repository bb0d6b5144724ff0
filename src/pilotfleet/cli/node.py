"""Commands about the own node and the registry."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

from pilotfleet.cli.arguments import read_number
from pilotfleet.cli.invocation import read_target
from pilotfleet.cli.registry import ask_registry, without_endpoints
from pilotfleet.errors import DaemonError, InvalidArgument, NotFound, NotRunning
from pilotfleet.protocol.durations import format_duration
from pilotfleet.protocol.ipc.commands import Command, pack_connection, pack_node

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context

MAX_TAGS = 3
WEBHOOK_FILE = "webhook_url"


def info(context: Context, arguments: Arguments) -> None:
    """Show the daemon's state."""
    body = without_endpoints(context.ask(Command.INFO, b"", "info"))
    context.output.result(body, None if context.json else _info_text(body))


def health(context: Context, arguments: Arguments) -> None:
    """Show the daemon's health, which it answers from memory."""
    context.output.result(context.ask(Command.HEALTH, b"", "health"))


def peers(context: Context, arguments: Arguments) -> None:
    """List the nodes that the daemon has tunnels to."""
    limit = arguments.integer("limit", 20)
    wanted = arguments.text("search")
    body = context.ask(Command.INFO, b"", "info")
    rows = [
        {
            "node_id": row.get("node_id"),
            "encrypted": bool(row.get("encrypted")),
            "authenticated": bool(row.get("authenticated")),
            "relay": bool(row.get("relay")),
        }
        for row in body.get("peer_list") or ()
        if wanted in str(row.get("node_id"))
    ]
    encrypted = sum(row["encrypted"] for row in rows)
    shown = rows if arguments.enabled("all") or limit <= 0 else rows[:limit]
    lines = [f"Peers — {len(rows)} ({encrypted} encrypted)", ""]
    lines += [
        f"  node {row['node_id']}"
        + (" · encrypted" if row["encrypted"] else " · plain")
        + (" · authenticated" if row["authenticated"] else "")
        + (" · relay" if row["relay"] else "")
        for row in shown
    ]
    if len(shown) < len(rows):
        lines.append(f"  … {len(rows) - len(shown)} more (--all)")
    context.output.result(
        {"peers": rows, "total": len(rows), "encrypted": encrypted}, "\n".join(lines)
    )


def connections(context: Context, arguments: Arguments) -> None:
    """List the daemon's streams."""
    body = context.ask(Command.INFO, b"", "info")
    rows = body.get("conn_list") or []
    lines = [f"{'ID':>6}  {'LOCAL':>6}  {'REMOTE':<24}  {'STATE':<12}  SENT/RECEIVED"]
    for row in rows:
        remote = f"{row.get('remote_addr')}:{row.get('remote_port')}"
        lines.append(
            f"{row.get('id')!s:>6}  {row.get('local_port')!s:>6}  {remote:<24}"
            f"  {row.get('state')!s:<12}"
            f"  {row.get('bytes_sent')}/{row.get('bytes_recv')}"
        )
    context.output.result({"connections": rows, "total": len(rows)}, "\n".join(lines))


def disconnect(context: Context, arguments: Arguments) -> None:
    """Close one of the daemon's streams."""
    context.require(arguments, 1)
    text = arguments.positional(0)
    number = read_number(text, 0xFFFF_FFFF)
    if number is None:
        raise InvalidArgument(f'invalid connection ID: "{text[:40]}" is not a number')
    context.daemon().request(Command.CLOSE, pack_connection(number))
    context.output.result({"conn_id": number}, f"disconnected {number}")


def lookup(context: Context, arguments: Arguments) -> None:
    """Show a node's registry record."""
    context.require(arguments, 1)
    target = arguments.positional(0)
    # Only a hostname needs the daemon.
    address = read_target(target) or context.resolve_node(target)
    body = ask_registry(context, type="lookup", node_id=address.node)
    context.output.result(without_endpoints(body))


def find(context: Context, arguments: Arguments) -> None:
    """Find a node by its hostname."""
    context.require(arguments, 1)
    name = arguments.positional(0)
    body = context.find_hostname(name)
    if body is None:
        raise NotFound(
            f'cannot find "{name}" — hostname not found or no mutual trust',
            hint=f'establish trust first: pilotctl handshake {name} "reason"',
        )
    data = {key: body.get(key) for key in ("hostname", "node_id", "address", "public")}
    visible = "public" if data["public"] else "private"
    text = (
        f"Hostname:  {data['hostname']}\nNode ID:   {data['node_id']}\n"
        f"Address:   {data['address']}\nVisible:   {visible}"
    )
    context.output.result(data, text)


def register(context: Context, arguments: Arguments) -> None:
    """Register with the registry, which the daemon does by itself as well."""
    request: dict[str, Any] = {"listen_addr": arguments.positional(0)}
    context.output.result(
        without_endpoints(ask_registry(context, type="register", **request))
    )


def deregister(context: Context, arguments: Arguments) -> None:
    """Remove the node from the registry."""
    context.output.result(context.ask(Command.DEREGISTER, b"", "deregister"))


def rotate_key(context: Context, arguments: Arguments) -> None:
    """Give the node a new identity key."""
    context.output.result(context.ask(Command.ROTATE_KEY, b"", "rotate_key"))


def set_public(context: Context, arguments: Arguments) -> None:
    """Let everybody find and reach the node."""
    body = context.ask(Command.SET_VISIBILITY, b"\x01", "set_visibility")
    context.output.result(body)


def set_private(context: Context, arguments: Arguments) -> None:
    """Let only trusted peers find and reach the node."""
    body = context.ask(Command.SET_VISIBILITY, b"\x00", "set_visibility")
    context.output.result(body)


def set_hostname(context: Context, arguments: Arguments) -> None:
    """Name the node."""
    if not arguments.first:
        context.require(arguments, 1)
    # The official program takes the first token as it is: "-a" is a bad name.
    name = arguments.first
    body = context.ask(
        Command.SET_HOSTNAME, name.encode("utf-8", "replace"), "set_hostname"
    )
    if context.agent is None:
        # The configuration is that of the default agent.
        context.settings.update(hostname=name)
    hostname = body.get("hostname", name)
    data = {"hostname": hostname, "node_id": body.get("node_id")}
    context.output.result(data, f"hostname set: {hostname}")


def clear_hostname(context: Context, arguments: Arguments) -> None:
    """Take the node's name away."""
    context.ask(Command.SET_HOSTNAME, b"", "set_hostname")
    if context.agent is None:
        context.settings.update(hostname=None)
    context.output.result({"hostname": ""}, "hostname cleared")


def set_tags(context: Context, arguments: Arguments) -> None:
    """Set the tags under which the node is found."""
    context.require(arguments, 1)
    tags = arguments.positionals
    if len(tags) > MAX_TAGS:
        raise InvalidArgument(
            f"set-tags: maximum {MAX_TAGS} tags allowed, got {len(tags)}"
        )
    body = context.ask(Command.SET_TAGS, _compact(tags), "set_tags")
    data = {"node_id": body.get("node_id"), "tags": body.get("tags") or tags}
    context.output.result(data, f"tags set: {', '.join(tags)}")


def clear_tags(context: Context, arguments: Arguments) -> None:
    """Remove all tags of the node."""
    context.ask(Command.SET_TAGS, b"[]", "set_tags")
    context.output.result({"tags": []}, "tags cleared")


def enable_tasks(context: Context, arguments: Arguments) -> None:
    """Advertise that the node takes tasks."""
    context.output.result(context.ask(Command.SET_TASK_EXEC, b"\x01", "set_task_exec"))


def disable_tasks(context: Context, arguments: Arguments) -> None:
    """Advertise that the node takes no tasks."""
    context.output.result(context.ask(Command.SET_TASK_EXEC, b"\x00", "set_task_exec"))


def my_polo(context: Context, arguments: Arguments) -> None:
    """Show the node's reputation."""
    score = context.ask(Command.MY_POLO, b"", "my_polo").get("polo_score", 0)
    context.output.result({"polo_score": score}, f"My polo score: {score}")


def prefer_direct(context: Context, arguments: Arguments) -> None:
    """Let the next connection to a peer try a direct tunnel again."""
    from pilotfleet.cli.connection import is_too_old
    from pilotfleet.errors import NotSupported

    context.require(arguments, 1)
    peer = context.resolve_node(arguments.positional(0))
    try:
        body = context.ask(Command.PREFER_DIRECT, pack_node(peer.node), "prefer_direct")
    except DaemonError as error:
        if is_too_old(error):
            raise NotSupported("the daemon is too old for prefer-direct") from error
        raise
    context.output.result(body)


def set_webhook(context: Context, arguments: Arguments) -> None:
    """Let the daemon post its events to a URL."""
    context.require(arguments, 1)
    url = arguments.positional(0)
    if not url.startswith(("http://", "https://")):
        raise InvalidArgument("webhook URL must start with http:// or https://")
    _apply_webhook(context, url)


def clear_webhook(context: Context, arguments: Arguments) -> None:
    """Stop posting events."""
    _apply_webhook(context, "")


def _apply_webhook(context: Context, url: str) -> None:
    try:
        context.ask(Command.SET_WEBHOOK, url.encode(), "set_webhook")
        applied = True
    except NotRunning:
        applied = False
        # What a daemon kept when it last ran, and would use beside our setting.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(context.settings.directory, WEBHOOK_FILE))
    # Not before the daemon has had its say: it may refuse the URL.
    context.settings.update(webhook=url or None)
    state = "applied" if applied else "saved; applies when the daemon starts"
    text = f"webhook {url or 'cleared'} ({state})"
    context.output.result({"webhook": url, "applied": applied}, text)


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("utf-8", "replace")


def _info_text(body: dict[str, Any]) -> str:
    uptime = format_duration(float(body.get("uptime_secs") or 0))
    networks = [
        f"  {row.get('network_id')}: {row.get('address')}"
        for row in body.get("networks") or ()
    ]
    peers = f"{body.get('encrypted_peers')} encrypted"
    relayed = f"{body.get('relay_peer_count', 0)} relayed"
    sent = f"{body.get('bytes_sent')} bytes, {body.get('pkts_sent')} packets"
    received = f"{body.get('bytes_recv')} bytes, {body.get('pkts_recv')} packets"
    lines = [
        f"● pilot-daemon {body.get('version', '')} · up {uptime}",
        "",
        "identity",
        f"  Node ID:      {body.get('node_id')}",
        f"  Address:      {body.get('address')}",
        f"  Hostname:     {body.get('hostname') or '-'}",
        f"  Public key:   {body.get('public_key', '')}",
        "",
        "network",
        f"  Peers:        {body.get('peers')} ({peers}, {relayed})",
        f"  Connections:  {body.get('connections')}",
        f"  Ports:        {body.get('ports')}",
        *(["", "networks", *networks] if networks else []),
        "",
        "traffic",
        f"  Sent:         {sent}",
        f"  Received:     {received}",
    ]
    return "\n".join(lines)
