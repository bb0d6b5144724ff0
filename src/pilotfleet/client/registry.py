"""The registry as its clients see it.

One client serves all agents of a host: the methods take the identity and the
node ID of the agent that asks. Requests are safe to repeat, so a request whose
connection broke is sent once more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.client.requests import RegistryRequests
from pilotfleet.errors import DecodeError, ProtocolError
from pilotfleet.protocol.address import Address
from pilotfleet.protocol.registry.messages import (
    network_number,
    node_number,
    number,
    text,
    texts,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pilotfleet.protocol.identity import Identity
    from pilotfleet.protocol.services.receipts import SignedReceipt

__all__ = ["Authorization", "Registration", "RegistryClient", "Resolution"]

MAX_KEY_AGE_DAYS: Final = 0xFFFF_FFFE
"""What the binary form of the field can say."""


@dataclass(frozen=True, slots=True)
class Registration:
    """The answer to a registration."""

    node_id: int
    address: Address
    observed_addr: str
    """The endpoint that the registry stored, as ``host:port``."""
    hostname: str = ""
    hostname_error: str = ""
    """Why the hostname that was asked for was not given."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """Where a node can be reached."""

    node_id: int
    real_addr: str
    """``host:port``; for a relay-only node the beacon's."""
    relay_only: bool
    lan_addrs: tuple[str, ...] = field(default=())
    key_age_days: int = 0


@dataclass(frozen=True, slots=True)
class Authorization:
    """Whether a task may be given."""

    authorized: bool
    reason: str = ""
    """Why not."""


class RegistryClient(RegistryRequests):
    """Typed requests to one registry. An async context manager."""

    # Registration

    async def register(
        self,
        identity: Identity,
        listen_addr: str,
        *,
        owner: str = "",
        lan_addrs: Sequence[str] = (),
        version: str = "",
        relay_only: bool = False,
        hostname: str = "",
    ) -> Registration:
        """Register a key, and learn what the registry offers."""
        message: dict[str, Any] = {
            "type": "register",
            "listen_addr": listen_addr,
            "public_key": identity.public_key_text,
        }
        optional = {
            "owner": owner,
            "lan_addrs": list(lan_addrs),
            "version": version,
            "relay_only": relay_only,
            "hostname": hostname,
        }
        message |= {name: value for name, value in optional.items() if value}
        return self.registered(await self.signed(identity, message))

    def registered(self, reply: Mapping[str, Any]) -> Registration:
        """Read the answer to a registration, and learn what the registry offers."""
        self.learn(reply)
        return _registration(reply)

    async def deregister(self, identity: Identity, node_id: int) -> None:
        """Remove a node; its ID stays reserved for its key."""
        await self._own(identity, node_id, "deregister")

    async def heartbeat(self, identity: Identity, node_id: int) -> dict[str, Any]:
        """Say that the node lives; the reply has the registry's ``time``."""
        return await self._own(identity, node_id, "heartbeat")

    async def rotate_key(
        self, identity: Identity, node_id: int, new: Identity
    ) -> dict[str, Any]:
        """Replace the node's key; ``identity`` is the old one."""
        key = new.public_key_text
        return await self._own(identity, node_id, "rotate_key", new_public_key=key)

    async def set_hostname(
        self, identity: Identity, node_id: int, hostname: str
    ) -> dict[str, Any]:
        """Give the node a name; an empty one clears it."""
        return await self._own(identity, node_id, "set_hostname", hostname=hostname)

    async def set_tags(
        self, identity: Identity, node_id: int, tags: Sequence[str]
    ) -> list[str]:
        """Replace the node's tags; returns them as they were stored."""
        reply = await self._own(identity, node_id, "set_tags", tags=list(tags))
        return texts(reply, "tags")

    async def set_visibility(
        self, identity: Identity, node_id: int, *, public: bool
    ) -> dict[str, Any]:
        """Make the node public or private."""
        return await self._own(identity, node_id, "set_visibility", public=public)

    # Finding

    async def lookup(self, node_id: int) -> dict[str, Any]:
        """Return who a node is (registry.md section 6.5)."""
        return await self.request({"type": "lookup", "node_id": node_id})

    async def resolve(
        self, identity: Identity, requester_id: int, node_id: int
    ) -> Resolution:
        """Ask where a node is; it must be public or trust the requester."""
        message = {"type": "resolve", "node_id": node_id, "requester_id": requester_id}
        reply = await self.signed(identity, message)
        return Resolution(
            node_id=node_number(reply),
            real_addr=text(reply, "real_addr"),
            relay_only=reply.get("relay_only") is True,
            lan_addrs=tuple(texts(reply, "lan_addrs")),
            key_age_days=number(reply, "key_age_days", MAX_KEY_AGE_DAYS),
        )

    async def resolve_hostname(
        self, hostname: str, *, requester_id: int = 0
    ) -> dict[str, Any]:
        """Return the node that has the name (registry.md section 6.7)."""
        message: dict[str, Any] = {"type": "resolve_hostname", "hostname": hostname}
        if requester_id:
            message["requester_id"] = requester_id
        return await self.request(message)

    async def list_nodes(
        self, network_id: int, *, admin_token: str = ""
    ) -> list[dict[str, Any]]:
        """List the members of a network; the backbone needs the admin token."""
        message: dict[str, Any] = {"type": "list_nodes", "network_id": network_id}
        if admin_token:
            message["admin_token"] = admin_token
        return _dicts(await self.request(message), "nodes")

    async def search(
        self,
        identity: Identity | None = None,
        node_id: int = 0,
        *,
        tags: Sequence[str] = (),
        any_tag: bool = False,
        hostname_prefix: str = "",
        online: bool | None = None,
        limit: int = 50,
        cursor: str = "",
    ) -> dict[str, Any]:
        """Find nodes by tags or name (extension ``search``).

        Without an identity only public nodes are found.
        """
        message: dict[str, Any] = {"type": "search", "tags": list(tags), "limit": limit}
        optional = {
            "any": any_tag,
            "hostname_prefix": hostname_prefix,
            "cursor": cursor,
            "requester_id": node_id if identity is not None else 0,
        }
        message |= {name: value for name, value in optional.items() if value}
        if online is not None:
            message["online"] = online
        if identity is None:
            return await self.request(message)
        return await self.signed(identity, message)

    async def beacon_list(self) -> list[dict[str, Any]]:
        """List the beacons that the registry knows."""
        return _dicts(await self.request({"type": "beacon_list"}), "beacons")

    # Trust

    async def report_trust(self, identity: Identity, node_id: int, peer: int) -> None:
        """Store that the node and the peer trust each other."""
        await self._own(identity, node_id, "report_trust", peer_id=peer)

    async def revoke_trust(self, identity: Identity, node_id: int, peer: int) -> None:
        """Remove the trust between the node and the peer."""
        await self._own(identity, node_id, "revoke_trust", peer_id=peer)

    async def check_trust(self, node_id: int, peer: int) -> bool:
        """Tell whether two nodes trust each other or share a network."""
        message = {"type": "check_trust", "node_id": node_id, "peer_id": peer}
        return (await self.request(message)).get("trusted") is True

    async def list_trust(
        self,
        identity: Identity | None,
        node_id: int,
        *,
        generation: int | None = None,
        cursor: str = "",
        limit: int = 1000,
        admin_token: str = "",
    ) -> dict[str, Any]:
        """Show which nodes trust each other (extension ``trust-links``).

        To a node, those in its networks and its own; to the administrator, all. The
        reply has ``generation`` and either ``unchanged``, if that is the one given,
        or ``links`` of nodes ``a`` and ``b`` and ``next_cursor``.
        """
        message: dict[str, Any] = {
            "type": "list_trust",
            "node_id": node_id,
            "cursor": cursor,
            "limit": limit,
        }
        if generation is not None:
            message["generation"] = generation
        if identity is not None:
            return await self.signed(identity, message)
        return await self.request({**message, "admin_token": admin_token})

    async def request_handshake(
        self, identity: Identity, node_id: int, peer: int, *, justification: str = ""
    ) -> dict[str, Any]:
        """Leave a trust request for the peer."""
        message = {
            "type": "request_handshake",
            "from_node_id": node_id,
            "to_node_id": peer,
            "justification": justification,
        }
        return await self.signed(identity, message)

    async def poll_handshakes(self, identity: Identity, node_id: int) -> dict[str, Any]:
        """Take the ``requests`` and ``responses`` that wait for the node."""
        return await self._own(identity, node_id, "poll_handshakes")

    async def respond_handshake(
        self, identity: Identity, node_id: int, peer: int, *, accept: bool
    ) -> dict[str, Any]:
        """Answer the peer's trust request."""
        return await self._own(
            identity, node_id, "respond_handshake", peer_id=peer, accept=accept
        )

    # Networks

    async def list_networks(self, *, admin_token: str = "") -> list[dict[str, Any]]:
        """List the networks; their members only with the admin token."""
        message: dict[str, Any] = {"type": "list_networks"}
        if admin_token:
            message["admin_token"] = admin_token
        return _dicts(await self.request(message), "networks")

    async def create_network(
        self,
        node_id: int,
        name: str,
        *,
        admin_token: str,
        join_rule: str = "open",
        token: str = "",
        **fields: Any,
    ) -> int:
        """Create a network owned by the node and return its ID."""
        message = {
            "type": "create_network",
            "node_id": node_id,
            "name": name,
            "admin_token": admin_token,
            "join_rule": join_rule,
            "token": token,
            **fields,
        }
        network = network_number(await self.request(message))
        if not network:
            raise ProtocolError("the registry's reply has no network_id")
        return network

    async def join_network(
        self, identity: Identity, node_id: int, network_id: int, *, token: str = ""
    ) -> dict[str, Any]:
        """Make the node a member of the network."""
        return await self._own(
            identity, node_id, "join_network", network_id=network_id, token=token
        )

    async def leave_network(
        self, identity: Identity, node_id: int, network_id: int
    ) -> None:
        """End the node's membership."""
        await self._own(identity, node_id, "leave_network", network_id=network_id)

    # Reputation

    async def get_polo_score(self, node_id: int) -> int:
        """Return the score of a node."""
        reply = await self.request({"type": "get_polo_score", "node_id": node_id})
        score = reply.get("polo_score")
        if type(score) is not int:
            raise ProtocolError("the registry's reply has no polo_score")
        return score

    async def authorize_task_submit(
        self,
        identity: Identity,
        caller: int,
        *,
        submitter: int,
        receiver: int,
        min_polo: int | None = None,
    ) -> Authorization:
        """Ask whether the scores let the submitter give the receiver a task.

        Args:
            identity: The caller's.
            caller: One of the two nodes.
            submitter: Who wants to give a task.
            receiver: Who would get it.
            min_polo: What the submitter must have; None: the receiver's score.
        """
        message: dict[str, Any] = {
            "type": "authorize_task_submit",
            "caller_node_id": caller,
            "submitter_node_id": submitter,
            "receiver_node_id": receiver,
        }
        if min_polo is not None:
            message["min_polo"] = min_polo
        reply = await self.signed(identity, message)
        return Authorization(reply.get("authorized") is True, text(reply, "reason"))

    async def polo_receipts(
        self, receipts: Sequence[SignedReceipt]
    ) -> list[dict[str, Any]]:
        """Have receipts counted (extension ``receipts``); 1 to 100 of them.

        Returns one result for each, in their order: ``task_id`` and ``status``,
        which is ``counted``, ``known`` or ``refused`` (then with a ``reason``). May
        be repeated: what was counted is then known.
        """
        rows = [msgspec.to_builtins(receipt) for receipt in receipts]
        results = _dicts(
            await self.request({"type": "polo_receipts", "receipts": rows}), "results"
        )
        if len(results) != len(rows):
            raise ProtocolError("the registry's reply has not one result per receipt")
        return results

    async def list_receipts(
        self,
        identity: Identity | None,
        node_id: int,
        *,
        cursor: str = "",
        limit: int = 100,
        admin_token: str = "",
    ) -> dict[str, Any]:
        """Show what a node's score is made of (extension ``receipts``).

        The node itself asks, or the administrator. The reply has ``receipts``,
        newest first, ``next_cursor``, ``base``, ``folded`` and ``score``.
        """
        message: dict[str, Any] = {
            "type": "list_receipts",
            "node_id": node_id,
            "cursor": cursor,
            "limit": limit,
        }
        if identity is not None:
            return await self.signed(identity, message)
        return await self.request({**message, "admin_token": admin_token})

    # Private

    async def _own(
        self, identity: Identity, node_id: int, kind: str, **fields: Any
    ) -> dict[str, Any]:
        return await self.signed(identity, {"type": kind, "node_id": node_id, **fields})


def _registration(reply: Mapping[str, Any]) -> Registration:
    node_id = node_number(reply)
    if not node_id:
        raise ProtocolError("the registry's reply has no node_id")
    try:
        address = Address.parse(text(reply, "address"))
    except DecodeError as error:
        raise ProtocolError(f"the registry's reply: {error}") from None
    return Registration(
        node_id=node_id,
        address=address,
        observed_addr=text(reply, "observed_addr"),
        hostname=text(reply, "hostname"),
        hostname_error=text(reply, "hostname_error"),
    )


def _dicts(reply: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    items = reply.get(name)
    if not isinstance(items, list):
        return []
    return [item for item in items if isinstance(item, dict)]
