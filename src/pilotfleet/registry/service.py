"""The registry: a request comes in, an answer goes out.

A request takes this way: its handler reads the directory, checks the rights
and decides (all in one step of the event loop, so a decision is made on one
state of the directory); the committer makes the decision last; then the
answer goes out and those whom it concerns are told. Reads end after the first
step and never touch the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import Conflict, StorageError
from pilotfleet.protocol.registry.batches import BATCH_EXTENSION
from pilotfleet.protocol.registry.messages import (
    TRUST_LINKS_EXTENSION,
    error_reply,
    text,
)
from pilotfleet.protocol.services.receipts import RECEIPTS_EXTENSION
from pilotfleet.registry.binary_requests import answer_binary
from pilotfleet.registry.committer import Committer
from pilotfleet.registry.config import ServiceConfig
from pilotfleet.registry.context import PeerContext
from pilotfleet.registry.desk import Desk
from pilotfleet.registry.directory.decision import Decision
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.handlers import (
    administration,
    batch,
    enterprise,
    keys,
    listing,
    members,
    names,
    networks,
    nodes,
    polo,
    trust,
    watch,
)
from pilotfleet.registry.maintenance import Maintenance

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.protocol.registry.messages import Reply
    from pilotfleet.registry.desk import Decide, Handler
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.metrics import WatchStats
    from pilotfleet.registry.store.base import Store
    from pilotfleet.transport.clock import Clock

__all__ = [
    "EXTENSIONS",
    "MESSAGE_TYPES",
    "PeerContext",
    "RegistryService",
    "ServiceConfig",
]

logger = logging.getLogger(__name__)

EXTENSIONS: Final = (
    "pipeline",
    "search",
    "watch",
    "mailbox-ack",
    BATCH_EXTENSION,
    RECEIPTS_EXTENSION,
    TRUST_LINKS_EXTENSION,
)
"""What this registry offers beyond the official one; told at registration."""
MAX_TYPE_SHOWN: Final = 64
WATCH_RETRY_S: Final = 1.0
MAX_QUEUED_S: Final = 10.0
"""No registration joins a queue in which the first one has waited for longer."""
MAX_WAITED_S: Final = 20.0
"""One that has waited for longer is answered and not worked on. Our clients wait 30 s
for an answer; then they hang up, and ask for the same once more."""
SIGNATURES_PER_NODE: Final = 6
"""Two come back all the time, the heartbeat's and the mailbox poll's. Half of the
memory is sure to hold what was used last, and some others come between."""

_HANDLERS: Final[dict[str, Handler]] = {
    **nodes.HANDLERS,
    **names.HANDLERS,
    **trust.HANDLERS,
    **keys.HANDLERS,
    **networks.HANDLERS,
    **members.HANDLERS,
    **listing.HANDLERS,
    **administration.HANDLERS,
    **polo.HANDLERS,
    **enterprise.HANDLERS,
    **watch.HANDLERS,
    **batch.HANDLERS,
}

MESSAGE_TYPES: Final = frozenset(_HANDLERS)
"""Every type of JSON message that is answered."""


class RegistryService:
    """Answers registry messages from a directory that a store backs.

    ``load`` comes first, ``aclose`` last. ``run_maintenance`` has to run all
    the while, ``run_watch`` where other processes write to the same store.
    """

    def __init__(
        self,
        directory: Directory,
        store: Store,
        *,
        config: ServiceConfig,
        clock: Clock,
        notify: Callable[[int], None],
    ) -> None:
        self.directory = directory
        self.config = config
        self._store = store
        self._clock = clock
        self._notify = notify
        self._desk = Desk(directory, config, clock)
        self._desk.answer = self.handle
        self._committer = Committer(directory, store)
        self._maintenance = Maintenance(directory, self._committer, config)

    @property
    def beacon_addr(self) -> str:
        """Where nodes reach our beacon; empty when there is none."""
        return self._desk.beacons.own_addr

    @beacon_addr.setter
    def beacon_addr(self, addr: str) -> None:
        self._desk.beacons.own_addr = addr

    @property
    def watch_stats(self) -> WatchStats:
        """What watches take, and what they were told."""
        return self._desk.watching.stats

    async def load(self) -> None:
        """Fill the directory from the store.

        Raises:
            StorageError: The store cannot be read.
        """
        # Read whole, since every later read is answered from memory.
        entries = await self._store.load()
        wall = self._clock.wall()
        self.directory.load(entries, wall=wall)
        self._make_room()
        # The watch begins here, so that nothing falls between load and watch; what it
        # brings twice changes nothing.
        self._committer.loaded(max((e.revision for e in entries), default=0))
        self._maintenance.begin(wall)

    async def handle(
        self, request: dict[str, Any], peer: PeerContext
    ) -> dict[str, Any]:
        """Answer one message. Never raises for anything a client can send.

        A cancelled call may have made its changes; they are never half made.
        """
        kind = text(request, "type")
        handler = _HANDLERS.get(kind)
        if handler is None:
            return error_reply(f'unknown message type: "{kind[:MAX_TYPE_SHOWN]}"')
        try:
            # Before any work: a registration costs a signature check and a commit.
            if kind == "register":
                await self._admit(peer)
            answer = handler(self._desk, request, peer)
            # Reads end here without having waited for anything.
            if isinstance(answer, dict):
                return answer
            if isinstance(answer, Decision):
                decide = self._repeat(handler, request, peer)
                return await self._settle(answer, decide, request)
            later = await answer
            if isinstance(later, dict):
                return later
            return await self._settle(later(), later, request)
        except Refused as refusal:
            return error_reply(str(refusal), **refusal.facts)
        # Other replicas were faster again and again. Nothing was changed, so the client
        # may simply repeat its request.
        except Conflict:
            return error_reply(f"{kind}: changed concurrently, retry")
        except StorageError as error:
            logger.error("request %s was not stored: %s", kind, error)
            return error_reply("registry storage is not available, retry later")

    async def handle_binary(
        self, kind: int, payload: bytes, peer: PeerContext
    ) -> tuple[int, bytes]:
        """Answer one binary message; return its type and payload."""
        return answer_binary(self._desk, kind, payload, peer)

    async def run_maintenance(self) -> None:
        """Do what time demands, until cancelled."""
        while True:
            await asyncio.sleep(1)
            await self.maintain()

    async def maintain(self) -> None:
        """Do what is due now: sweep, write last-seen times, tidy up."""
        self._desk.watching.forget()
        self._make_room()
        try:
            await self._maintenance.run(self._clock.wall())
        except StorageError as error:
            # It is all due again later; the registry goes on meanwhile.
            logger.warning("maintenance was not stored: %s", error)

    async def run_watch(self) -> None:
        """Follow what other processes write to the store, until cancelled."""
        try:
            while True:
                await self._watch()
                await asyncio.sleep(WATCH_RETRY_S)
        finally:
            self._committer.end_watch()

    async def aclose(self) -> None:
        """Finish writes that have begun and write what was held back.

        Raises:
            StorageError: The store refused.
        """
        await self._desk.watching.aclose()
        await self._committer.aclose()
        await self._maintenance.flush()

    def _make_room(self) -> None:
        """Have all signatures remembered that come back with every keepalive."""
        limit = SIGNATURES_PER_NODE * len(self.directory.nodes.live)
        self._desk.signatures.grow_to(limit)

    async def _admit(self, peer: PeerContext) -> None:
        """Return when a registration may be worked on.

        Raises:
            Refused: There are too many; or who sent it is not there any more.
        """
        turns, came = self._desk.turns, self._clock.now()
        _require_short(turns.waited_s, MAX_QUEUED_S)
        self._desk.admission.admit(peer, came)
        await turns.take()
        if peer.is_gone:
            raise Refused("the connection is gone")
        # A herd is in the queue before the first of it has waited.
        _require_short(self._clock.now() - came, MAX_WAITED_S)

    def _repeat(
        self, handler: Handler, request: dict[str, Any], peer: PeerContext
    ) -> Decide:
        def decide() -> Decision:
            again = handler(self._desk, request, peer)
            if isinstance(again, Decision):
                return again
            assert isinstance(again, dict), "a handler that decides never waits"
            return Decision(again)

        return decide

    async def _settle(
        self, decision: Decision, decide: Decide, request: dict[str, Any]
    ) -> Reply:
        # Nobody is told before it is durable: a notified node asks at once, and a crash
        # in between must not leave it with news that never happened.
        decision = await self._committer.commit(decision, decide)
        if decision.seen:
            self.directory.touch(decision.seen, self._clock.wall())
            decision.reply["extensions"] = list(EXTENSIONS)
        for node in decision.notify:
            self._notify(node)
        self._desk.audit.note(request, decision.reply, self._clock.wall())
        return decision.reply

    async def _watch(self) -> None:
        try:
            begin = self._committer.begin_watch()
            async with contextlib.aclosing(self._store.watch(begin)) as entries:
                async for entry in entries:
                    self._committer.follow(entry)
        except StorageError as error:
            logger.warning("watch of the store was interrupted: %s", error)


def _require_short(waited_s: float, most_s: float) -> None:
    """Refuse a registration whose client would give up before it is its turn."""
    if waited_s > most_s:
        raise Refused(
            "rate limited: too many registrations", retry_after=round(waited_s, 1)
        )
