"""The task service of a host: ports 1003 and 1010, delivery, and local programs.

One service is shared by all agents of a host. A task lives in the table
(:mod:`tasktable`) as one record on each side; :mod:`tasksubmitted` and
:mod:`tasksreceived` hold the rules, :mod:`tasklink` tells the other node,
:mod:`taskserving` and :mod:`taskwatch` tell local programs, and :mod:`taskops` is
what those may ask. :mod:`receipts` signs for what was earned, and
:mod:`receiptdelivery` tells the registry.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from pilotfleet.errors import DecodeError, NotFound, PilotError, StorageError
from pilotfleet.node.cache import ExpiringCache
from pilotfleet.protocol.address import Address
from pilotfleet.protocol.services.polo import SUBMITTER_DELTA
from pilotfleet.protocol.services.tasks import (
    REJECTED_STATUS,
    SESSION_PORT,
    TASK_PORT,
    Ack,
    Cancel,
    FrameType,
    Message,
    Ping,
    Results,
    StatusUpdate,
    Submit,
    SubmitResponse,
)
from pilotfleet.protocol.services.taskstate import FINAL, Role, Status
from pilotfleet.services.polo import receiptrows
from pilotfleet.services.polo.delivery import ReceiptDelivery
from pilotfleet.services.polo.gate import PoloGate, PoloGateConfig
from pilotfleet.services.polo.receipts import Receipts
from pilotfleet.services.tasks.gate import GateMode, TaskGate
from pilotfleet.services.tasks.link import PeerLink
from pilotfleet.services.tasks.messages import session_message
from pilotfleet.services.tasks.official import serve_official
from pilotfleet.services.tasks.ops import TaskOperations
from pilotfleet.services.tasks.received import Received, already, received_record
from pilotfleet.services.tasks.record import Pending, TaskKey, TaskRecord
from pilotfleet.services.tasks.serving import Serving
from pilotfleet.services.tasks.store import Limits, TaskStore
from pilotfleet.services.tasks.submitted import Submitted
from pilotfleet.services.tasks.table import Bounds, TaskTable
from pilotfleet.services.tasks.turns import WorkingClock
from pilotfleet.services.tasks.watch import Watchers, is_inline

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
    from pathlib import Path

    from pilotfleet.protocol.services.receipts import SignedReceipt
    from pilotfleet.services.polo.delivery import LedgerRegistry
    from pilotfleet.services.tasks.files import TaskFiles
    from pilotfleet.services.tasks.parts import TaskAgent, TaskStream
    from pilotfleet.services.tasks.serving import PushSession

__all__ = ["TaskConfig", "TaskHost", "TaskService"]

logger = logging.getLogger(__name__)

# Of our choosing.
CHECK_S: Final = 5.0
"""Between looks at the time limits; the reference looks every 10 and 30 s."""
DEADLINE_CHECK_S: Final = 0.5
"""Between looks at the deadlines, of which there are few."""
PRUNE_S: Final = 300.0
RETRY_PUSH_S: Final = 0.2
"""Between tries to tell a local program that did not read."""
MAX_DIALS: Final = 64
MAX_REDIALS: Final = 32
"""To peers that did not answer the last time."""
MAX_OFFICIAL_PEERS: Final = 65_536
MAX_UNCOLLECTED: Final = 10_000
"""Results that a connection is told about when it begins to watch."""


class TaskHost(Protocol):
    """What the service needs of a host."""

    @property
    def agents(self) -> Mapping[str, Any]:
        """The hosted agents by name."""

    def find_agent(self, name: str) -> Any:
        """Return a hosted agent, or raise why there is none."""

    @property
    def registry(self) -> LedgerRegistry:
        """The registry's client."""

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run a coroutine as a task that the host owns."""


@dataclass(frozen=True, slots=True)
class TaskConfig:
    """Settings of the task service."""

    gate: GateMode = GateMode.TRUSTED
    bounds: Bounds = field(default_factory=Bounds)
    limits: Limits = field(default_factory=Limits)
    polo: bool = True
    """Whether receipts are made; without them no score changes."""
    polo_gate: PoloGateConfig = field(default_factory=PoloGateConfig)
    files: TaskFiles | None = None
    """Where tasks are mirrored as the official programs keep them."""


class TaskService:
    """The tasks of all agents of a host; an async context manager."""

    def __init__(
        self,
        host: TaskHost,
        path: Path,
        *,
        config: TaskConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        config = config or TaskConfig()
        self._host = host
        self._clock = clock
        self.now = WorkingClock(clock)
        self.wall = wall
        self._files = config.files
        self.store = TaskStore(path, limits=config.limits, files=config.files)
        self.table = TaskTable(self.store, bounds=config.bounds)
        self.receipts = Receipts(self.store, host.agents, wall=wall, is_on=config.polo)
        self.delivery = ReceiptDelivery(self.store, host)
        self.submitted = Submitted(self.table, self.receipts, wall=wall)
        self.received = Received(self.table, self.receipts, wall=wall)
        self.serving = Serving(self.received)
        self.watchers = Watchers()
        self.gate = TaskGate(config.gate, clock=clock)
        self.polo_gate = PoloGate(
            config.polo_gate,
            clock=clock,
            spawn=lambda coro: host.spawn(coro, name="polo gate"),
        )
        self.dial_slots = asyncio.Semaphore(MAX_DIALS)
        self.redial_slots = asyncio.Semaphore(MAX_REDIALS)
        self.official_peers: ExpiringCache[int, bool] = ExpiringCache(
            MAX_OFFICIAL_PEERS
        )
        self._links: dict[tuple[str, int], PeerLink] = {}
        self._operations = TaskOperations(self)
        self._retry: asyncio.TimerHandle | None = None
        self._connect_parts()

    async def __aenter__(self) -> TaskService:
        """Open the store and take over what an earlier run left in it.

        From here on streams and local programs may come; see :meth:`resume`.
        """
        await self.store.__aenter__()
        records = await self.table.load()
        self.received.load(r for r in records if r.role is Role.RECEIVED)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the store. The host has ended the sessions."""
        if self._retry is not None:
            self._retry.cancel()
        self.table.write_all()
        await self.store.aclose()

    async def resume(self) -> None:
        """Tell peers what an earlier run left: call once, when agents can dial."""
        for record in self.table:
            if record.pending is not Pending.NOTHING:
                self._tell_peer(record)
            elif record.role is Role.SUBMITTED and self.has_agent(record.agent):
                self._link(record.agent, record.peer).expect(record.task_id)
        self.delivery.wake()
        self._host.spawn(self._keep_house(), name="task limits")

    def handlers(self) -> dict[int, Callable[[Any, Any], Awaitable[None]]]:
        """Return the handlers of inbound streams by port."""
        return {TASK_PORT: self.handle_official, SESSION_PORT: self.handle_session}

    def extensions(self) -> dict[str, Callable[..., Awaitable[dict[str, Any]]]]:
        """Return the operations for the daemon's socket."""
        return self._operations.table()

    def has_agent(self, name: str) -> bool:
        """Return whether this host runs an agent."""
        return name in self._host.agents

    def check_agent(self, name: str) -> None:
        """Check that this host runs an agent.

        Raises:
            NotFound: It does not.
            Unavailable: It will soon.
        """
        self._host.find_agent(name)

    async def tasks_of(self, agent: str, role: Role, limit: int) -> list[TaskRecord]:
        """Return the newest tasks of an agent; open ones as they are this moment."""
        kept = await self.store.tasks_of(agent, role, limit)
        return [self.table.find(agent, role, r.task_id) or r for r in kept]

    def result_path(self, record: TaskRecord) -> str:
        """Return the file that a result is mirrored to; empty for none."""
        return "" if self._files is None else self._files.result_path(record)

    async def open_received(self, agent: str, task_id: str) -> TaskRecord:
        """Return a received task that has not ended.

        Raises:
            NotFound: There is none with this id.
            InvalidState: It has ended.
        """
        try:
            return self.received.find(agent, task_id)
        except NotFound:
            ended = await self.store.get(TaskKey(agent, Role.RECEIVED, task_id))
            if ended is None:
                raise
            raise already(ended) from None

    async def open_submitted(self, agent: str, task_id: str) -> TaskRecord:
        """Return a submitted task that has not ended.

        Raises:
            NotFound: There is none with this id.
            InvalidState: It has ended.
        """
        record = self.submitted.find(agent, task_id)
        if record is None:
            record = await self.store.get(TaskKey(agent, Role.SUBMITTED, task_id))
            if record is None:
                raise NotFound(f"task not found: {task_id}")
        if record.status in FINAL:
            raise already(record)
        return record

    async def push_uncollected(self, agent: str, session: PushSession) -> None:
        """Tell a connection that begins to watch which results wait for somebody."""
        for record in await self.store.uncollected(agent, MAX_UNCOLLECTED):
            content = await self.store.result(record.key) if is_inline(record) else None
            self.watchers.tell_one(agent, session, record, content or b"")
        self._retry_pushes()

    # Inbound streams

    async def handle_official(self, agent: Any, stream: TaskStream) -> None:
        """Serve one connection on port 1003."""
        await serve_official(self.receive, agent.name, stream)

    async def handle_session(self, agent: Any, stream: TaskStream) -> None:
        """Serve a task session that a peer opened on port 1010."""
        link = self._link(agent.name, stream.remote.address.node)
        await link.start_session(stream)

    # What links need (LinkOwner)

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str) -> object:
        """Run a coroutine as a task that the host owns."""
        return self._host.spawn(coro, name=name)

    async def receive(self, agent: str, peer: int, message: Message) -> Message | None:
        """Apply a message; return the answer once its effect is durable."""
        match message:
            case Submit():
                return await self._receive_submission(agent, peer, message)
            case SubmitResponse():
                return self._receive_response(agent, peer, message)
            case StatusUpdate():
                await self.submitted.take_status(agent, peer, message)
                if message.status in FINAL:
                    return Ack(message.task_id, FrameType.STATUS_UPDATE)
            case Results():
                signature = await self.submitted.take_results(agent, peer, message)
                return Ack(message.task_id, receipt=signature)
            case Cancel():
                await self.received.cancel(agent, peer, message.task_id)
                return Ack(message.task_id, FrameType.CANCEL)
            case Ping():
                return Ack(message.task_id, FrameType.PING)
            case Ack():
                await self._told(agent, peer, message)
        return None

    def is_served(self, agent: TaskAgent) -> bool:
        """Return whether a worker program takes the tasks of an agent."""
        return self.serving.is_served(agent.name)

    def is_watched(self, agent: TaskAgent) -> bool:
        """Return whether a program follows the tasks that an agent has submitted."""
        return self.watchers.has(agent.name)

    async def content(self, record: TaskRecord) -> bytes:
        """Return the result of a task."""
        return await self.table.result(record)

    async def message(self, record: TaskRecord) -> Message | None:
        """Return what a peer with task sessions has to be told of a task."""
        content = await self.table.result(record)
        return session_message(
            record,
            content,
            self.receipts,
            wall=self.wall(),
            patient=not self.submitted.is_awaited(record),
        )

    def delivery_failed(self, record: TaskRecord, error: PilotError) -> None:
        """Note that a task could not be delivered."""
        self.submitted.delivery_failed(record, error)

    def unreachable(self, agent: str, task_ids: list[str]) -> None:
        """Note that the worker of these tasks cannot be reached."""
        found = (self.submitted.find(agent, task_id) for task_id in task_ids)
        records = [record for record in found if record is not None]
        self.watchers.tell_unreachable(agent, records)

    def link_idle(self, link: PeerLink) -> None:
        """Forget a link that has nothing to do."""
        self._links.pop((link.agent.name, link.peer), None)

    # Private

    def _connect_parts(self) -> None:
        self.submitted.is_held = self._is_held
        self.submitted.on_pending = self._tell_peer
        self.submitted.on_update = self._tell_watchers
        self.submitted.on_asked_again = self.watchers.tell
        self.submitted.on_settled = self._settle
        self.submitted.on_receipt = self._keep_receipt
        self.delivery.on_counted = self._counted
        self.received.on_taken = self._taken
        self.received.on_pending = self._tell_peer
        self.received.on_notice = self._notice
        self.received.on_queued = self.serving.offer
        self.received.on_cancel = self.serving.cancelled
        self.received.is_served = self.serving.is_served

    def _link(self, agent: str, peer: int) -> PeerLink:
        link = self._links.get((agent, peer))
        if link is None:
            link = PeerLink(self, self._host.agents[agent], peer)
            self._links[agent, peer] = link
        return link

    def _tell_peer(self, record: TaskRecord) -> None:
        # The store may know agents that this run of the daemon does not host.
        if self.has_agent(record.agent):
            self._link(record.agent, record.peer).enqueue(record)

    def _notice(self, record: TaskRecord) -> None:
        self._link(record.agent, record.peer).notice(record)

    def _settle(self, record: TaskRecord) -> None:
        link = self._links.get((record.agent, record.peer))
        if link is not None:
            link.settle(record)

    def _is_held(self, record: TaskRecord) -> bool:
        link = self._links.get((record.agent, record.peer))
        return link is not None and link.is_held(record)

    def _receive_response(
        self, agent: str, peer: int, message: SubmitResponse
    ) -> Cancel | None:
        record = self.submitted.take_response(agent, peer, message)
        if not message.is_accepted:
            return None
        if record is None:
            # It was withdrawn or cancelled while it was on its way.
            return Cancel(message.task_id)
        if record.status not in FINAL:
            self._link(agent, peer).expect(message.task_id)
        return None

    async def _receive_submission(
        self, agent: str, peer: int, message: Submit
    ) -> SubmitResponse:
        record = received_record(agent, peer, message, now=self.wall())
        refusal = await self._refusal(record)
        if refusal is not None:
            return SubmitResponse(message.task_id, REJECTED_STATUS, refusal)
        try:
            return await self.received.take_submission(record)
        except StorageError:
            logger.exception("a task for %s could not be stored", agent)
            text = "Task could not be stored"
            return SubmitResponse(message.task_id, REJECTED_STATUS, text)

    async def _refusal(self, record: TaskRecord) -> str | None:
        """Return why a submission is not taken, or None when it may be."""
        agent = self._host.agents[record.agent]
        refusal = await self.gate.refusal(agent, record.peer)
        if refusal is not None:
            return refusal
        if not _is_from(record.from_addr, record.peer):
            return "Task rejected: from_addr is not the sender"
        refusal = await self.polo_gate.refusal(agent, record.peer)
        # Whoever was told that we keep a task is not told otherwise when it asks again.
        if refusal is not None and await self.received.is_repeat(record):
            return None
        return refusal

    async def _told(self, agent: str, peer: int, message: Ack) -> None:
        if message.of == FrameType.CANCEL:
            self.submitted.told(agent, message.task_id)
        elif message.of in (FrameType.SEND_RESULTS, FrameType.STATUS_UPDATE):
            await self.received.told(agent, message.task_id, message.receipt)
            if message.receipt:
                # The submitter's daemon has it counted within seconds, and tells the
                # registry only.
                self.polo_gate.forget(self._host.agents[agent].node_id, peer)

    # The events are those of the 1.9 line (tasks-and-polo.md section 2.3).

    def _taken(self, record: TaskRecord) -> None:
        self._host.agents[record.agent].report(
            "task.submitted",
            task_id=record.task_id,
            description=record.description,
            submitter_node=record.peer,
            **{"from": record.from_addr},
        )

    def _keep_receipt(self, record: TaskRecord, receipt: SignedReceipt) -> None:
        self.delivery.wake()
        self._host.agents[record.agent].report(
            "polo.updated",
            task_id=receipt.task_id,
            submitter_delta=SUBMITTER_DELTA,
            receiver_reward=receipt.reward,
        )

    def _counted(self, receipt: SignedReceipt) -> None:
        self.polo_gate.forget(receipt.submitter, receipt.worker)

    def _tell_watchers(self, record: TaskRecord, content: bytes) -> None:
        if record.status is Status.SUCCEEDED:
            self._host.agents[record.agent].report(
                "task.completed", task_id=record.task_id, result_type=record.result_type
            )
        self.watchers.tell(record, content)
        self._retry_pushes()

    def _retry_pushes(self) -> None:
        if self._retry is None and self.watchers.is_lagging:
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(RETRY_PUSH_S, self._push_lagging)

    def _push_lagging(self) -> None:
        self._retry = None
        self.watchers.catch_up()
        self._retry_pushes()

    async def _keep_house(self) -> None:
        next_prune = next_check = self._clock()
        while True:
            lost_s = self.now.tick()
            if lost_s:
                self.submitted.prolong(self.table, lost_s)
            if self._clock() >= next_check:
                next_check = self._clock() + CHECK_S
                self._check_limits(self.table)
                self.serving.offer_all()
            else:
                self._check_limits(self.table.overdue(self.wall()))
            if self._clock() >= next_prune:
                next_prune = self._clock() + PRUNE_S
                self.delivery.wake()
                # Not awaited: the clock's ticks would be late.
                self._host.spawn(self._prune(), name="task prune")
            await asyncio.sleep(DEADLINE_CHECK_S)

    def _check_limits(self, records: Iterable[TaskRecord]) -> None:
        for record in records:
            side = self.received if record.role is Role.RECEIVED else self.submitted
            side.check_limits(record)

    async def _prune(self) -> None:
        forget_receipts = functools.partial(receiptrows.prune, wall=self.wall())
        with suppress(StorageError):
            await self.store.prune(self.wall())
            await self.store.run(forget_receipts)


def _is_from(address: str, peer: int) -> bool:
    """Return whether the claimed sender is the one at the other end."""
    try:
        return Address.parse(address).node == peer
    except DecodeError:
        return False
