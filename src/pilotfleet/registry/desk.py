"""What the handlers of requests share: the directory and who may do what."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.identity import decode_key_text
from pilotfleet.protocol.registry.messages import Reply, Request, text
from pilotfleet.protocol.registry.signatures import (
    VerificationCache,
    signed_text,
    signer,
    verify_all,
)
from pilotfleet.registry.admission import Admission
from pilotfleet.registry.auditlog import AuditLog
from pilotfleet.registry.beacons import BeaconDirectory
from pilotfleet.registry.contacts import Contacts
from pilotfleet.registry.directory.network_rules import same_secret
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.turns import Turns
from pilotfleet.registry.watching import Watching
from pilotfleet.transport.threads import run_blocking

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from typing import Any, TypeAlias

    from pilotfleet.protocol.registry.signatures import SignedText
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
"""Threads that verify signatures; more would starve the event loop."""
VERIFIED_A_TIME: Final = 64
"""Signatures that a thread verifies before others have their turn: 8 ms."""
BATCHES_AT_ONCE: Final = 4
"""Batches that are worked on together; what waits for the store shares its commits."""
LISTS_AT_ONCE: Final = 4
"""Lists of whole networks that are made together: each may have 100,000 rows."""

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
        self.watching = Watching(directory, clock, limits=config.watches)
        self.verifying = asyncio.Semaphore(VERIFYING_AT_ONCE)
        self.batches = asyncio.Semaphore(BATCHES_AT_ONCE)
        self.turns = Turns()
        self.lists = asyncio.Semaphore(LISTS_AT_ONCE)
        # Not those of registrations: a list has a hundred pieces, and each would wait
        # behind the whole herd.
        self.list_turns = Turns(woken=1)
        self.answer: Callable[[dict[str, Any], PeerContext], Awaitable[Reply]]
        """Answers any request; set by the service."""

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
        self.verify(node, signed_text(request), signature, wrong=wrong)
        peer.verified_node = node.record.id

    def verify(
        self, node: Node, message: str, signature: str, *, wrong: str = SIGNATURE_FAILED
    ) -> None:
        """Refuse a text that ``node`` has not signed."""
        if not signature:
            raise Refused(SIGNATURE_MISSING)
        try:
            good = self.signatures.verify_text(node.record.key, message, signature)
        except DecodeError as error:
            raise Refused(f"invalid signature encoding: {error}") from None
        if not good:
            raise Refused(wrong)

    def signatures_of(self, request: Request) -> list[SignedText]:
        """Return what a request is said to be signed with, if anything."""
        signature = text(request, "signature")
        if not signature:
            return []
        if text(request, "type") == "register":
            try:
                key = decode_key_text(text(request, "public_key"))
            except DecodeError:
                return []
            return [(key, signed_text(request), signature)]
        number = signer(request)
        node = self.directory.nodes.get_live(number) if number else None
        return (
            [] if node is None else [(node.record.key, signed_text(request), signature)]
        )

    async def verify_ahead(self, claims: Sequence[SignedText]) -> None:
        """Verify signatures in threads, so that they are known when they are needed."""
        new = self.signatures.unknown(claims)
        parts = [
            new[start : start + VERIFIED_A_TIME]
            for start in range(0, len(new), VERIFIED_A_TIME)
        ]
        await asyncio.gather(*map(self._verify_aside, parts))

    async def _verify_aside(self, claims: Sequence[SignedText]) -> None:
        async with self.verifying:
            verdicts = await run_blocking(verify_all, claims)
        self.signatures.learn(claims, verdicts)

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
