"""Commands about trust between nodes (cli.md section 6.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pilotfleet.cli.invocation import read_target
from pilotfleet.errors import DaemonError, NotFound
from pilotfleet.protocol.ipc.commands import Command, HandshakeSub, pack_node

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context
    from pilotfleet.protocol.address import Address

DEFAULT_ROWS = 20


def handshake(context: Context, arguments: Arguments) -> None:
    """Ask a node for trust."""
    context.require(arguments, 1)
    data = _answer(context, arguments, HandshakeSub.SEND, "handshake")
    status = data["status"]
    if status == "sent":
        text = f"handshake request sent to node {data['node_id']}"
    else:
        text = f"handshake with node {data['node_id']}: {status}"
    context.output.result(data, text)


def approve(context: Context, arguments: Arguments) -> None:
    """Accept a request for trust."""
    context.require(arguments, 1)
    data = _answer(context, arguments, HandshakeSub.APPROVE, "approve")
    context.output.result(data, f"approved node {data['node_id']}")


def reject(context: Context, arguments: Arguments) -> None:
    """Refuse a request for trust."""
    context.require(arguments, 1)
    data = _answer(context, arguments, HandshakeSub.REJECT, "reject")
    context.output.result(data, f"rejected node {data['node_id']}")


def untrust(context: Context, arguments: Arguments) -> None:
    """Take trust back."""
    context.require(arguments, 1)
    node = context.resolve_node(arguments.positional(0)).node
    payload = bytes([HandshakeSub.REVOKE]) + pack_node(node)
    context.ask(Command.HANDSHAKE, payload, "revoke")
    context.output.result({"node_id": node}, f"trust with node {node} revoked")


def pending(context: Context, arguments: Arguments) -> None:
    """List requests for trust that wait for an answer."""
    body = context.ask(Command.HANDSHAKE, bytes([HandshakeSub.PENDING]), "pending")
    rows = body.get("pending") or []
    lines = [f"Pending handshakes — {len(rows)}", ""]
    lines += [
        f"  node {row.get('node_id')} · {_when(row.get('received_at'))}"
        f" · {row.get('justification') or '(no reason given)'}"
        for row in rows
    ]
    if rows:
        lines += ["", "approve with: pilotctl approve <node_id>"]
    context.output.result({"pending": rows}, "\n".join(lines))


def trust(context: Context, arguments: Arguments) -> None:
    """List the trusted nodes, newest first."""
    wanted = arguments.text("search")
    body = context.ask(Command.HANDSHAKE, bytes([HandshakeSub.TRUSTED]), "trusted")
    limit = arguments.integer("limit", DEFAULT_ROWS)
    rows = [
        row
        for row in body.get("trusted") or ()
        if wanted in str(row.get("node_id")) or wanted in str(row.get("hostname", ""))
    ]
    rows.sort(key=lambda row: row.get("approved_at") or 0, reverse=True)
    # Programs get everything unless they ask for less.
    is_limited = limit > 0 and (arguments.has("limit") or not context.json)
    shown = rows[:limit] if is_limited else rows
    context.output.result(
        {"trusted": shown, "total": len(rows)}, _trust_text(shown, len(rows))
    )


def trusted_list(context: Context, arguments: Arguments) -> None:
    """List the agents that are trusted without being asked: none here.

    The official program has a built-in list of its vendor's service agents.
    """
    context.output.result({"trusted": [], "count": 0}, "no built-in agents")


def _answer(
    context: Context, arguments: Arguments, sub: HandshakeSub, operation: str
) -> dict[str, Any]:
    target = arguments.positional(0)
    node = (
        _asked(context, target)
        if sub is HandshakeSub.SEND
        else context.resolve_node(target)
    ).node
    payload = bytes([sub]) + pack_node(node)
    if sub is not HandshakeSub.APPROVE:
        payload += arguments.positional(1).encode("utf-8", "replace")
    body = context.ask(Command.HANDSHAKE, payload, operation)
    return {"node_id": body.get("node_id", node), "status": body.get("status")}


def _asked(context: Context, target: str) -> Address:
    """Resolve the node that is asked for trust; the daemon's own words if it fails."""
    try:
        return read_target(target) or context.resolve_name(target)
    except DaemonError as error:
        text = f'resolve "{target}": resolve_hostname: daemon: {error}'
        raise NotFound(text) from error


def _trust_text(rows: list[dict[str, Any]], total: int) -> str:
    lines = [f"Trusted peers — {total}", ""]
    lines += [
        f"  node {row.get('node_id')} · approved {_when(row.get('approved_at'))}"
        + ("" if row.get("mutual") else " one-way")
        for row in rows
    ]
    if len(rows) < total:
        lines.append(f"  … {total - len(rows)} more (--limit 0)")
    return "\n".join(lines)


def _when(seconds: Any) -> str:
    import time

    if not isinstance(seconds, (int, float)):
        return "-"
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
