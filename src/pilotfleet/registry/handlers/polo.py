"""Scores and receipts (tasks-and-polo.md section 6, registry.md section 6.16).

A score is changed by receipts, or with the admin token, and by nothing else. It is
no secret: search shows it. So ``get_polo_score`` is answered unsigned, as v1.2 asks
it; the signature that 1.9.1 adds is not needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pilotfleet.protocol.registry.messages import (
    MAX_NODE,
    Reply,
    Request,
    node_number,
    number,
    text,
)
from pilotfleet.protocol.services.polo import gate_allows
from pilotfleet.protocol.services.receipts import MAX_BATCH
from pilotfleet.registry.directory.polo import decide_add_polo, decide_set_polo
from pilotfleet.registry.directory.receipts import (
    Claim,
    decide_receipts,
    newest,
    prejudge,
)
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.transport.threads import run_blocking

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.desk import Decide, Desk, Handler
    from pilotfleet.registry.directory.decision import Decision
    from pilotfleet.registry.directory.nodes import Node

__all__ = ["HANDLERS"]

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1_000
"""Receipts on one page: about 700 KB."""
MAX_CURSOR_DIGITS: Final = 19


def get_polo_score(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Tell the reputation of a node."""
    node = _scored(desk, request, "node_id")
    return {
        "type": "get_polo_score_ok",
        "node_id": node.record.id,
        "address": node.address,
        "polo_score": desk.directory.polo_score(node.record.id),
    }


def set_polo_score(desk: Desk, request: Request, _: PeerContext) -> Decision:
    """Set a score. Unsigned in the protocol, so it takes the admin token."""
    desk.require_admin(request)
    score = _required(request, "set_polo_score", "polo_score")
    return decide_set_polo(desk.directory, _scored(desk, request, "node_id"), score)


def update_polo_score(desk: Desk, request: Request, _: PeerContext) -> Decision:
    """Add to a score. Unsigned in the protocol, so it takes the admin token."""
    desk.require_admin(request)
    delta = _required(request, "update_polo_score", "delta")
    return decide_add_polo(desk.directory, _scored(desk, request, "node_id"), delta)


def authorize_task_submit(desk: Desk, request: Request, peer: PeerContext) -> Reply:
    """Tell whether the scores allow one node to give another a task."""
    caller = node_number(request, "caller_node_id")
    desk.signed_node(request, peer, caller)
    submitter = _scored(desk, request, "submitter_node_id").record.id
    receiver = _scored(desk, request, "receiver_node_id").record.id
    if caller not in (submitter, receiver):
        raise Refused("caller is neither submitter nor receiver")
    min_polo = _score(request, "min_polo")
    allowed = gate_allows(
        submitter=desk.directory.polo_score(submitter),
        receiver=desk.directory.polo_score(receiver),
        min_polo=min_polo,
    )
    reply: Reply = {"type": "authorize_task_submit_ok", "authorized": allowed}
    if not allowed:
        # Whoever gives a task learns no score from a refusal.
        reply["reason"] = (
            "submitter's polo score is lower than the receiver's"
            if min_polo is None
            else f"submitter's polo score is below the minimum of {min_polo}"
        )
    return reply


def polo_receipts(
    desk: Desk, request: Request, peer: PeerContext
) -> Coroutine[Any, Any, Decide]:
    """Count receipts (extension ``receipts``). They speak for themselves: it does
    not matter who delivers them."""
    rows = request.get("receipts")
    if not isinstance(rows, list) or not rows:
        raise Refused("polo_receipts requires receipts field")
    if len(rows) > MAX_BATCH:
        raise Refused(f"too many receipts (max {MAX_BATCH})")
    desk.admission.admit_receipts(peer, len(rows), desk.clock.now())
    return _verified(desk, rows)


async def _verified(desk: Desk, rows: Sequence[Any]) -> Decide:
    """Verify the signatures aside; return what decides on the result."""
    claims = [Claim.read(row) for row in rows]
    now = int(desk.clock.wall())
    new = prejudge(desk.directory, claims, now=now)
    if new:
        # A full message takes 13 ms, mostly without the interpreter's lock.
        async with desk.verifying:
            await run_blocking(_verify, new)
    return lambda: decide_receipts(
        desk.directory, claims, now=now, max_receipts=desk.config.max_receipts
    )


def _verify(claims: Sequence[Claim]) -> None:
    for claim in claims:
        claim.verify()


def list_receipts(desk: Desk, request: Request, peer: PeerContext) -> Reply:
    """Show what a score is made of, to its owner or the administrator."""
    # A dead node has no owner that could ask, but an auditor may.
    asked = node_number(request)
    if not desk.is_admin(request):
        desk.signed_node(request, peer, asked)
    elif asked not in desk.directory.nodes.by_id:
        raise Refused(f"node {asked} not found")
    before = _cursor(text(request, "cursor"))
    limit = number(request, "limit", MAX_NODE) or DEFAULT_LIMIT
    limit = min(limit, MAX_LIMIT)
    ledger = desk.directory.ledger
    page = newest(ledger, asked, before=before, limit=limit + 1)
    standing = ledger.standing(asked)
    return {
        "type": "list_receipts_ok",
        "node_id": asked,
        "receipts": [row for _, row in page[:limit]],
        "next_cursor": str(page[limit - 1][0]) if len(page) > limit else "",
        "base": standing.record.score,
        "folded": {
            "count": standing.record.folded_count,
            "sum": standing.record.folded_sum,
        },
        "score": standing.score,
    }


def _scored(desk: Desk, request: Request, name: str) -> Node:
    number = node_number(request, name)
    node = desk.directory.nodes.get_live(number)
    if node is None:
        raise Refused(f"node {number} not found")
    return node


def _score(request: Request, name: str) -> int | None:
    """Return a number that, unlike others, may be negative; None when absent."""
    value = request.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Only the range matters for what does not fit it; infinity has no integer.
    return int(max(-MAX_NODE, min(MAX_NODE, value)))


def _required(request: Request, kind: str, name: str) -> int:
    value = _score(request, name)
    if value is None:
        raise Refused(f"{kind} requires {name} field")
    return value


def _cursor(cursor: str) -> int:
    if not cursor:
        return 0
    is_number = cursor.isascii() and cursor.isdigit()
    if not is_number or len(cursor) > MAX_CURSOR_DIGITS:
        raise Refused("invalid cursor")
    return int(cursor)


HANDLERS: Final[dict[str, Handler]] = {
    "get_polo_score": get_polo_score,
    "set_polo_score": set_polo_score,
    "update_polo_score": update_polo_score,
    "authorize_task_submit": authorize_task_submit,
    "polo_receipts": polo_receipts,
    "list_receipts": list_receipts,
}
