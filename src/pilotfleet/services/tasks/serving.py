"""Worker programs of this host: who serves which agent, and what they work on.

A program that serves an agent has credit for a number of tasks; each offer takes one
and each finish gives one back. When its connection ends, what it had not finished
goes back to the front of the queue and is offered to the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from pilotfleet.protocol.services.taskstate import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.services.tasks.received import Received
    from pilotfleet.services.tasks.record import TaskRecord

__all__ = ["MAX_CONCURRENCY", "PushSession", "Serving"]

MAX_CONCURRENCY: Final = 1_000
"""Offers outstanding for one agent and connection."""
CONNECTION_LOST: Final = "Task released: the worker program went away"
RELEASED: Final = "Task released by the worker program"


class PushSession(Protocol):
    """What serving needs of a local connection."""

    def push(self, message: dict[str, Any]) -> bool:
        """Send a message; False when the connection's queue is full."""

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back when the connection has ended."""


@dataclass(slots=True, eq=False)
class _Slot:
    """One connection's service of one agent."""

    session: PushSession
    concurrency: int
    running: dict[str, TaskRecord] = field(default_factory=dict)

    @property
    def has_credit(self) -> bool:
        return len(self.running) < self.concurrency


class Serving:
    """Offers the accepted tasks of all agents to the programs that serve them."""

    def __init__(self, received: Received) -> None:
        self._received = received
        self._slots: dict[str, list[_Slot]] = {}
        self._known: set[PushSession] = set()

    def is_served(self, agent: str) -> bool:
        """Return whether a program takes the tasks of an agent."""
        return agent in self._slots

    def serve(self, session: PushSession, agents: list[str], concurrency: int) -> None:
        """Begin to offer the tasks of agents to a connection; replaces its credit."""
        for agent in agents:
            slots = self._slots.setdefault(agent, [])
            slot = next((slot for slot in slots if slot.session is session), None)
            if slot is None:
                slots.append(_Slot(session, concurrency))
            else:
                slot.concurrency = concurrency
            self._received.accept_waiting(agent)
            self.offer(agent)
        if session not in self._known:
            self._known.add(session)
            session.on_close(lambda: self._closed(session))

    def drain(self, session: PushSession) -> None:
        """Offer nothing more; what is running may still be finished."""
        for slots in self._slots.values():
            for slot in slots:
                if slot.session is session:
                    slot.concurrency = 0

    def offer(self, agent: str) -> None:
        """Offer tasks of an agent while there are tasks and credit."""
        while (record := self._received.head(agent)) is not None:
            push = _offer(record)
            takers = (slot for slot in self._free(agent) if slot.session.push(push))
            slot = next(takers, None)
            if slot is None:
                return
            slot.running[record.task_id] = record
            self._received.start(record)

    def offer_all(self) -> None:
        """Offer again what a full connection could not take before."""
        for agent in list(self._slots):
            self.offer(agent)

    def finished(self, record: TaskRecord) -> None:
        """Give the credit of a task back."""
        for slot in self._slots.get(record.agent, ()):
            slot.running.pop(record.task_id, None)
        self.offer(record.agent)

    def release(self, record: TaskRecord) -> None:
        """Take a task back from a program that cannot do it now."""
        for slot in self._slots.get(record.agent, ()):
            slot.running.pop(record.task_id, None)
        self._received.release(record, RELEASED)

    def cancelled(self, record: TaskRecord) -> None:
        """Tell the program that works on a task to stop."""
        push = {"push": "task.cancel", "agent": record.agent, "task_id": record.task_id}
        for slot in self._slots.get(record.agent, ()):
            if slot.running.pop(record.task_id, None) is not None:
                slot.session.push(push)
        self.offer(record.agent)

    def _free(self, agent: str) -> list[_Slot]:
        """Return the connections with credit; the one with the least to do first."""
        free = [slot for slot in self._slots.get(agent, ()) if slot.has_credit]
        return sorted(free, key=lambda slot: len(slot.running))

    def _closed(self, session: PushSession) -> None:
        self._known.discard(session)
        lost: list[TaskRecord] = []
        for agent, slots in list(self._slots.items()):
            for slot in [slot for slot in slots if slot.session is session]:
                slots.remove(slot)
                lost.extend(slot.running.values())
            if not slots:
                del self._slots[agent]
        for record in reversed(lost):
            if record.status is Status.EXECUTING:
                self._received.release(record, CONNECTION_LOST)


def _offer(record: TaskRecord) -> dict[str, Any]:
    return {
        "push": "task.offer",
        "agent": record.agent,
        "task": {
            "task_id": record.task_id,
            "task_description": record.description,
            "from": record.from_addr,
        },
    }
