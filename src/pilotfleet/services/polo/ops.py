"""The operations of the daemon's socket on an agent's receipts."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.errors import InvalidArgument
from pilotfleet.protocol.services.polo import SUBMITTER_DELTA
from pilotfleet.protocol.services.taskstate import Role
from pilotfleet.services.polo import receiptrows
from pilotfleet.services.polo.receiptrows import State
from pilotfleet.services.tasks.params import read_params
from pilotfleet.services.tasks.record import rfc3339

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pilotfleet.services.polo.receiptrows import ReceiptRow, Sums
    from pilotfleet.services.tasks.service import TaskService
    from pilotfleet.services.tasks.serving import PushSession

__all__ = ["PoloOperations"]

MAX_LISTED: Final = 1_000


class _Page(msgspec.Struct):
    cursor: str = ""
    limit: int = 100


class PoloOperations:
    """What local programs may ask about receipts."""

    def __init__(self, service: TaskService) -> None:
        self._service = service

    def table(self) -> dict[str, Callable[..., Awaitable[dict[str, Any]]]]:
        """Return the operations by name."""
        return {
            "polo.receipts": self.receipts,
            "polo.claim": self.claim,
            "polo.audit": self.audit,
        }

    async def receipts(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """List the receipts that this node keeps, newest first, and their sums."""
        wanted = _page(params)
        if wanted.cursor and not (wanted.cursor.isascii() and wanted.cursor.isdigit()):
            raise InvalidArgument("invalid cursor")
        before = int(wanted.cursor[:18] or receiptrows.ABOVE_ALL)
        store = self._service.store
        rows = await store.run(
            functools.partial(
                receiptrows.of_agent,
                agent=agent.name,
                before=before,
                limit=wanted.limit,
            )
        )
        sums = await store.run(functools.partial(receiptrows.sums, agent=agent.name))
        has_more = len(rows) == wanted.limit
        return {
            "receipts": [_shown(row) for row in rows],
            "next_cursor": str(rows[-1].number) if has_more else "",
            "sums": _summed(sums),
            "rejected": dict(self._service.receipts.rejected),
        }

    async def claim(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Present what this node earned and nobody said is counted."""
        return dict(await self._service.delivery.claim(agent.name))

    async def audit(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Return what the registry says this agent's score is made of: one page."""
        wanted = _page(params)
        answer: dict[str, Any] = await agent.registry(
            "list_receipts",
            node_id=agent.node_id,
            cursor=wanted.cursor,
            limit=wanted.limit,
        )
        return answer


def _page(params: dict[str, Any]) -> _Page:
    wanted = read_params(params, _Page)
    if not 1 <= wanted.limit <= MAX_LISTED:
        raise InvalidArgument(f"limit is not 1 to {MAX_LISTED}")
    return wanted


def _shown(row: ReceiptRow) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "role": str(row.role),
        "state": str(row.state),
        "stored_at": rfc3339(row.stored),
        **msgspec.structs.asdict(row.receipt),
    }
    if row.reason:
        shown["reason"] = row.reason
    return shown


def _summed(sums: list[Sums]) -> dict[str, Any]:
    """Return what the kept receipts come to, whatever the registry said of them."""
    earned = sum(part.reward for part in sums if part.role is Role.RECEIVED)
    given = sum(part.count for part in sums if part.role is Role.SUBMITTED)
    return {
        "received": sum(part.count for part in sums if part.role is Role.RECEIVED),
        "submitted": given,
        "earned": earned,
        "paid": -SUBMITTER_DELTA * given,
        "awarded": sum(part.reward for part in sums if part.role is Role.SUBMITTED),
        "score": earned + SUBMITTER_DELTA * given,
        **{
            str(state): sum(part.count for part in sums if part.state is state)
            for state in State
        },
    }
