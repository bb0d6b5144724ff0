"""What the handlers of requests share: the directory and who may do what."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.registry.messages import Reply, Request, text
from pilotfleet.protocol.registry.signatures import VerificationCache, signed_text
from pilotfleet.registry.admission import Admission
from pilotfleet.registry.auditlog import AuditLog
from pilotfleet.registry.beacons import BeaconDirectory
from pilotfleet.registry.contacts import Contacts
from pilotfleet.registry.directory.network_rules import same_secret
from pilotfleet.registry.directory.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any, TypeAlias

    from pilotfleet.registry.config import ServiceConfig
    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.directory.decision import Decision
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.networks import Network
    from pilotfleet.registry.directory.nodes import Node
    from pilotfleet.transport.clock import Clock

    Decide: TypeAlias = Callable[[], Decision]
    """Decides, as often as others change what was decided on."""
    Answer: TypeAlias = "Reply | Decision | Coroutine[Any, Any, Reply | Decide]"
    """A reply is final; a decision has to be stored first. A handler that waits
    for something before it can decide returns how to decide then."""
    Handler: TypeAlias = Callable[["Desk", Request, PeerContext], Answer]
    """Reads the directory and decides. May be called again for one request."""

__all__ = ["Desk"]

VERIFYING_AT_ONCE: Final = 2
"""Threads that verify receipts; more would starve the event loop."""

SIGNATURE_FAILED: Final = "signature verification failed"
SIGNATURE_MISSING: Final = "signature required for authenticated node"


class Desk:
    """The directory with what it takes to judge a request."""

    def __init__(
        self, directory: Directory, config: ServiceConfig, clock: Clock
    ) -> None:
        self.directory = directory
        self.config = config
        self.clock = clock
        self.signatures = VerificationCache(config.verified_signatures)
        self.contacts = Contacts()
        self.audit = AuditLog()
        self.admission = Admission(config)
        self.beacons = BeaconDirectory(config.beacon_addr)
        self.verifying = asyncio.Semaphore(VERIFYING_AT_ONCE)

    def is_admin(self, request: Request) -> bool:
        """Tell whether the request carries the server's admin token."""
        return same_secret(text(request, "admin_token"), self.config.admin_token)

    def require_admin(self, request: Request) -> None:
        """Refuse a request without the admin token."""
        if not self.config.admin_token:
            raise Refused("network creation is disabled")
        if not self.is_admin(request):
            raise Refused("invalid admin token")

    def require_signature(
        self,
        node: Node,
        request: Request,
        peer: PeerContext,
        *,
        missing: str = SIGNATURE_MISSING,
        wrong: str = SIGNATURE_FAILED,
    ) -> None:
        """Refuse a request that ``node`` has not signed."""
        signature = text(request, "signature")
        if not signature:
            raise Refused(missing)
        key = node.record.key
        try:
            good = self.signatures.verify_text(key, signed_text(request), signature)
        except DecodeError as error:
            raise Refused(f"invalid signature encoding: {error}") from None
        if not good:
            raise Refused(wrong)
        peer.verified_node = node.record.id

    def require_signature_or_admin(
        self, node: Node, request: Request, peer: PeerContext
    ) -> None:
        """Refuse a request by neither ``node`` nor the administrator."""
        if not self.is_admin(request):
            self.require_signature(node, request, peer)

    def signed_node(self, request: Request, peer: PeerContext, number: int) -> Node:
        """Return the live node with this ID, which has signed the request."""
        node = self.directory.node(number)
        self.require_signature(node, request, peer)
        return node

    def note_contact(self, requester: Node, target: int) -> None:
        """Remember that ``requester``, a private node, went to find ``target``."""
        peer = self.directory.nodes.get_live(target)
        if requester.record.public or peer is None or requester.shares_network(peer):
            return
        number = requester.record.id
        if not self.directory.trust.admits(number, target):
            self.contacts.add(number, target)

    def require_role(
        self, network: Network, request: Request, node: int, roles: tuple[str, ...]
    ) -> None:
        """Refuse a request by one who has not the right in the network.

        The node is taken at its word, as the protocol has it: these requests
        carry no signature (section 7).
        """
        token = text(request, "admin_token")
        if self.is_admin(request) or same_secret(token, network.record.admin_token):
            return
        if not node:
            raise Refused("rbac: node_id required for role-based authorization")
        role = network.role(node)
        if not role:
            number = network.record.id
            raise Refused(f"rbac: node {node} has no role in network {number}")
        if role not in roles:
            allowed = " ".join(roles)
            raise Refused(
                f'rbac: node {node} has role "{role}", requires one of [{allowed}]'
            )
