"""The watch extension: a search whose changes are told as they come."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pilotfleet.protocol.registry.messages import MAX_NODE, number, text
from pilotfleet.registry.directory.search import MAX_LIMIT
from pilotfleet.registry.directory.watches import Question
from pilotfleet.registry.handlers.listing import read_query, searching_node

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from pilotfleet.protocol.registry.messages import Reply, Request
    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.desk import Desk, Handler

__all__ = ["HANDLERS"]

MAX_WAIT_S: Final = 60.0
"""Shorter than the time after which idle connections are closed, here and in
whatever is in between."""
MAX_SEQ: Final = (1 << 53) - 1
"""Exact in every reader of JSON."""


def watch(
    desk: Desk, request: Request, peer: PeerContext
) -> Coroutine[Any, Any, Reply]:
    """Tell what is new since the last answer; wait for it if nothing is."""
    requester = searching_node(desk, request, peer)
    question = Question(
        query=replace(read_query(request), limit=0, after=0),
        requester=requester,
        watch=text(request, "watch"),
        seq=number(request, "seq", MAX_SEQ),
        limit=min(number(request, "limit", MAX_NODE) or MAX_LIMIT, MAX_LIMIT),
        source=None if peer.is_local else peer.ip,
    )
    return desk.watching.answer(question, peer, wait_s=_wait_s(request))


def _wait_s(request: Request) -> float:
    value = request.get("wait_s")
    # Parts of a second count, which ``number`` would cut off. What is no number, or
    # not above 0, is no wait.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(min(value, MAX_WAIT_S)) if value > 0 else 0.0


HANDLERS: Final[dict[str, Handler]] = {"watch": watch}
