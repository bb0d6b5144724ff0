"""Finding many nodes: the list of a network, and search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.address import BACKBONE, Address
from pilotfleet.protocol.registry.messages import (
    MAX_NODE,
    Reply,
    Request,
    flag,
    network_number,
    node_number,
    number,
    text,
    texts,
)
from pilotfleet.protocol.registry.names import (
    MAX_TAG,
    MAX_TAGS,
    is_hostname_prefix,
)
from pilotfleet.registry.agentrow import agent_row
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.directory.search import (
    DEFAULT_LIMIT,
    MAX_LIMIT,
    Query,
    decode_cursor,
    search,
)
from pilotfleet.registry.privacy import public_endpoint, rfc3339

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.desk import Desk, Handler
    from pilotfleet.registry.directory.networks import Network
    from pilotfleet.registry.directory.nodes import Node

__all__ = ["HANDLERS", "read_query", "searching_node"]

ROWS_AT_ONCE: Final = 1_000
"""Rows made before other requests have their turn: about 3 ms."""
NO_PREFIX: Final = "~"
"""No hostname begins so."""


def list_nodes(
    desk: Desk, request: Request, peer: PeerContext
) -> Coroutine[Any, Any, Reply]:
    """Section 6.8."""
    network = desk.directory.network(network_number(request))
    if network.record.id == BACKBONE and not desk.is_admin(request):
        raise Refused(
            "listing backbone nodes is not permitted (use lookup with a specific"
            " node_id)"
        )
    return _list(desk, network.record.id, peer)


def search_nodes(desk: Desk, request: Request, peer: PeerContext) -> Reply:
    """The search extension: who carries these tags or such a name."""
    requester = searching_node(desk, request, peer)
    query = read_query(request)
    desk.directory.expire_online(desk.clock.wall())
    page = search(desk.directory, query, requester)
    return {
        "type": "search_ok",
        "agents": [agent_row(desk.directory, node) for node in page.nodes],
        "total": page.total,
        "next_cursor": page.next_cursor,
    }


async def _list(desk: Desk, number: int, peer: PeerContext) -> Reply:
    async with desk.lists:
        await desk.list_turns.take()
        if peer.is_gone:
            raise Refused("the connection is gone")
        # Looked up again: it may have ended while this one waited.
        network = desk.directory.network(number)
        is_all = number == BACKBONE
        rows = await (_all_rows(desk) if is_all else _member_rows(desk, network))
    return {"type": "list_nodes_ok", "nodes": rows}


async def _member_rows(desk: Desk, network: Network) -> list[dict[str, Any]]:
    rows = []
    for index, node in enumerate(sorted(network.members)):
        # A member may have left while others had their turn.
        member = network.members.get(node)
        if member is None:
            continue
        row = _node_row(desk, node, network.record.id)
        row["role"] = member.record.role
        if member.record.tags:
            row["member_tags"] = list(member.record.tags)
        rows.append(row)
        if index % ROWS_AT_ONCE == ROWS_AT_ONCE - 1:
            await desk.list_turns.take()
    return rows


async def _all_rows(desk: Desk) -> list[dict[str, Any]]:
    rows = []
    for index, node in enumerate(list(desk.directory.nodes.live)):
        rows.append(_node_row(desk, node, BACKBONE))
        if index % ROWS_AT_ONCE == ROWS_AT_ONCE - 1:
            await desk.list_turns.take()
    return rows


def _node_row(desk: Desk, number: int, network: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "node_id": number,
        "address": str(Address(network, number)),
    }
    node = desk.directory.nodes.get_live(number)
    if node is None:
        row["offline"] = True
        return row
    record = node.record
    row["public"] = record.public
    row["last_seen"] = rfc3339(node.last_seen)
    if node.hostname:
        row["hostname"] = node.hostname
    if record.tags:
        row["tags"] = list(record.tags)
    if record.task_exec:
        row["task_exec"] = True
    if record.version:
        row["version"] = record.version
    if record.public:
        row["real_addr"] = public_endpoint(desk, node)
    return row


def searching_node(desk: Desk, request: Request, peer: PeerContext) -> Node | None:
    """Return the node that signed the search; without a signature, nobody."""
    if not text(request, "signature"):
        return None
    return desk.signed_node(request, peer, node_number(request, "requester_id"))


def read_query(request: Request) -> Query:
    """Return what is looked for.

    Raises:
        Refused: There are too many tags, or the cursor is not ours.
    """
    tags = {tag.removeprefix("#") for tag in texts(request, "tags")}
    if len(tags) > MAX_TAGS:
        raise Refused(f"too many tags (max {MAX_TAGS})")
    prefix = text(request, "hostname_prefix")
    # A watch keeps its query: what no node can have may be of any length.
    if (prefix and not is_hostname_prefix(prefix)) or max(
        map(len, tags), default=0
    ) > MAX_TAG:
        tags, prefix = set(), NO_PREFIX
    try:
        after = decode_cursor(text(request, "cursor"))
    except DecodeError as error:
        raise Refused(str(error)) from None
    limit = number(request, "limit", MAX_NODE) or DEFAULT_LIMIT
    return Query(
        tags=tuple(sorted(tags)),
        any_tag=flag(request, "any"),
        hostname_prefix=prefix,
        online=flag(request, "online"),
        limit=min(limit, MAX_LIMIT),
        after=after,
    )


HANDLERS: Final[dict[str, Handler]] = {
    "list_nodes": list_nodes,
    "search": search_nodes,
}
