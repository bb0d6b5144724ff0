"""Commands about the polo score, and the receipts that it is made of."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli.registry import ask_registry
from pilotfleet.protocol.ipc.commands import Command

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context

SHOWN: Final = 50
"""Receipts that are listed unless told."""
EARNED_UNSAID: Final = ("received", "pending")
UNSAID_NOTE: Final = (
    "What is pending and received is delivered by the one who submitted the task;"
    " pilotctl polo claim asks the registry about it."
)
STATES: Final = ("pending", "counted", "known", "refused")
PAGE: Final = 500
AUDIT_PAGE: Final = 500
"""Receipts in one answer; with both keys one is about 700 bytes."""


def show(context: Context, arguments: Arguments) -> None:
    """Show a node's score, or one's own."""
    target = arguments.positional(0)
    if target:
        node = context.resolve_node(target).node
        body = ask_registry(context, type="get_polo_score", node_id=node)
    else:
        body = context.ask(Command.MY_POLO, b"", "my_polo")
    data = {key: body.get(key) for key in ("node_id", "address", "polo_score")}
    context.output.result(
        data, f"Polo score of {data['address']}: {data['polo_score']}"
    )


def receipts(context: Context, arguments: Arguments) -> None:
    """List the receipts that this node keeps, newest first."""
    left = arguments.integer("limit", SHOWN, least=1)
    cursor = arguments.text("cursor")
    rows: list[dict[str, Any]] = []
    while True:
        body = context.daemon().call(
            "polo.receipts", cursor=cursor, limit=min(left, PAGE)
        )
        page = body.get("receipts") or []
        rows += page
        left -= len(page)
        cursor = str(body.get("next_cursor") or "")
        if not cursor or not page or left <= 0:
            break
    data = {"receipts": rows, "sums": body.get("sums"), "next_cursor": cursor}
    lines = [_receipt_line(row) for row in rows] or ["No receipts"]
    lines += _sum_lines(body.get("sums") or {})
    if any((row["role"], row["state"]) == EARNED_UNSAID for row in rows):
        lines.append(UNSAID_NOTE)
    context.output.result(data, "\n".join(lines))


def claim(context: Context, arguments: Arguments) -> None:
    """Present what this node earned to the registry, should nobody else have."""
    body = context.daemon().call("polo.claim")
    text = (
        f"{body.get('presented', 0)} presented: {body.get('counted', 0)} counted,"
        f" {body.get('known', 0)} known already, {body.get('refused', 0)} refused"
    )
    context.output.result(body, text)


def audit(context: Context, arguments: Arguments) -> int:
    """Check a score against its receipts; exit code 1 when anything is wrong."""
    # Late: signatures need a large library.
    from pilotfleet.cli.poloaudit import Audit

    target = arguments.positional(0)
    own = int(context.daemon().request_json(Command.INFO).get("node_id") or 0)
    node = context.resolve_node(target).node if target else own
    checked: Audit | None = None
    cursor = ""
    while True:
        page = _page(context, node, cursor, is_own=node == own)
        checked = checked or Audit(node, page)
        checked.add(page.get("receipts") or ())
        cursor = str(page.get("next_cursor") or "")
        if not cursor:
            break
    context.output.result(checked.as_dict(), checked.as_text())
    return 0 if checked.is_ok else 1


def _page(context: Context, node: int, cursor: str, *, is_own: bool) -> dict[str, Any]:
    """Ask for receipts: the own ones as this node, others as administrator."""
    if is_own:
        return context.daemon().call("polo.audit", cursor=cursor, limit=AUDIT_PAGE)
    return ask_registry(
        context,
        type="list_receipts",
        node_id=node,
        cursor=cursor,
        limit=AUDIT_PAGE,
        admin_token=context.settings.admin_token(),
    )


def _sum_lines(sums: dict[str, Any]) -> list[str]:
    """Return what all kept receipts come to."""
    count = sums.get("received", 0) + sums.get("submitted", 0)
    if not count:
        return []
    states = [f"{sums.get(name, 0)} {name}" for name in STATES]
    change = f"earned {sums.get('earned', 0)}, paid {sums.get('paid', 0)}"
    return ["", f"all {count}: {change} ({', '.join(states)})"]


def _receipt_line(row: dict[str, Any]) -> str:
    """Return how the list shows a receipt: what it did, for which task, with whom."""
    is_worker = row.get("role") == "received"
    change = f"{row.get('reward'):+d}" if is_worker else "-1"
    other = row.get("submitter") if is_worker else row.get("worker")
    side = "for" if is_worker else "by"
    line = (
        f"{change:>4}  {row.get('state')!s:<8} {row.get('task_id')} {side} node {other}"
        f", completed {_when(row.get('completed_at'))}"
    )
    return f"{line} ({row['reason']})" if row.get("reason") else line


def _when(seconds: Any) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds or 0))
