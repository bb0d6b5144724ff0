"""The task operations of the daemon's socket (extension calls).

Results larger than one frame of the socket travel in parts: ``task.part`` gathers
them before ``task.finish`` or ``task.send-results`` with ``"uploaded": true``, and
``task.result`` with ``offset`` fetches them piece by piece.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.errors import InvalidArgument, NotFound
from pilotfleet.protocol.services.tasks import (
    ACCEPTED_STATUS,
    MAX_RESULT_TEXT,
    MAX_SENT_FILE,
    MAX_TEXT,
    SubmitResponse,
    base_name,
)
from pilotfleet.protocol.services.taskstate import Role, Status
from pilotfleet.services.polo.ops import PoloOperations
from pilotfleet.services.tasks.groupops import (
    Finish,
    GroupOperations,
    Submission,
    outcome_of,
    resolve,
    submitted_record,
)
from pilotfleet.services.tasks.listing import TaskListing
from pilotfleet.services.tasks.params import read_params
from pilotfleet.services.tasks.received import Outcome
from pilotfleet.services.tasks.record import TaskKey, TaskRecord
from pilotfleet.services.tasks.serving import MAX_CONCURRENCY
from pilotfleet.services.tasks.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pilotfleet.services.tasks.service import TaskService
    from pilotfleet.services.tasks.serving import PushSession

__all__ = ["TaskOperations"]

PIECE: Final = 128 * 1024
"""Bytes of a result in one reply."""


class _Submit(Submission):
    wait: bool = True


class _Finish(Finish):
    uploaded: bool = False


class _TaskId(msgspec.Struct):
    task_id: str


class _Decline(msgspec.Struct):
    task_id: str
    justification: str


class _SendResults(msgspec.Struct):
    task_id: str
    results: str | None = None
    filename: str = ""
    file_data: str = ""
    uploaded: bool = False


class _Result(msgspec.Struct):
    task_id: str
    offset: int = 0


class _Part(msgspec.Struct):
    task_id: str
    data: str


class _Serve(msgspec.Struct):
    agents: list[str]
    concurrency: int = 1


class _Collect(msgspec.Struct):
    task_ids: list[str]


class TaskOperations:
    """What local programs may ask of a :class:`TaskService`."""

    def __init__(self, service: TaskService) -> None:
        self._service = service
        self._uploads = Uploads()

    def table(self) -> dict[str, Callable[..., Awaitable[dict[str, Any]]]]:
        """Return the operations by name."""
        return {
            "task.submit": self.submit,
            "task.accept": self.accept,
            "task.decline": self.decline,
            "task.execute": self.execute,
            "task.send-results": self.send_results,
            "task.result": self.result,
            "task.cancel": self.cancel,
            "task.part": self.part,
            "task.serve": self.serve,
            "task.drain": self.drain,
            "task.finish": self.finish,
            "task.release": self.release,
            "task.watch": self.watch,
            "task.collect": self.collect,
            **GroupOperations(self._service).table(),
            **TaskListing(self._service).table(),
            **PoloOperations(self._service).table(),
        }

    async def submit(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Give a task to a peer."""
        wanted = read_params(params, _Submit)
        peer = await resolve(agent, wanted.target)
        record = submitted_record(agent, peer, wanted, now=self._service.wall())
        if wanted.wait:
            answer = await self._service.submitted.submit_and_wait(record)
        else:
            await self._service.submitted.submit(record)
            answer = SubmitResponse(record.task_id, ACCEPTED_STATUS, "queued")
        return {
            "task_id": answer.task_id,
            "status": answer.status,
            "message": answer.message,
            "accepted": answer.is_accepted,
        }

    async def accept(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Accept a received task."""
        task_id = read_params(params, _TaskId).task_id
        record = await self._service.open_received(agent.name, task_id)
        await self._service.received.accept(record)
        return _answer(record, "Task accepted")

    async def decline(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Decline a received task."""
        wanted = read_params(params, _Decline)
        record = await self._service.open_received(agent.name, wanted.task_id)
        await self._service.received.decline(record, wanted.justification[:MAX_TEXT])
        answer = _answer(record, "Task declined")
        return {**answer, "justification": record.justification}

    async def execute(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Start the oldest accepted task."""
        record = await self._service.received.execute(agent.name)
        return {
            "task_id": record.task_id,
            "task_description": record.description,
            "status": str(record.status),
            "from": record.from_addr,
        }

    async def send_results(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Give the results of a task, as text or as a file."""
        wanted = read_params(params, _SendResults)
        record = await self._service.open_received(agent.name, wanted.task_id)
        content = self._content(session, wanted)
        name = base_name(wanted.filename) if wanted.filename else ""
        limit = MAX_SENT_FILE if name else MAX_RESULT_TEXT
        if len(content) > limit:
            raise InvalidArgument(f"results of {len(content)} bytes > {limit}")
        outcome = Outcome(content=content, filename=name)
        await self._service.received.finish(record, outcome)
        self._service.serving.finished(record)
        answer: dict[str, Any] = {
            "task_id": record.task_id,
            "status": str(record.status),
            "sent_to": record.from_addr,
            "sent_type": record.result_type,
        }
        if name:
            answer |= {"filename": name, "file_size": len(content)}
        return answer

    async def result(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the results of a submitted task, or a piece of them."""
        wanted = read_params(params, _Result)
        key = TaskKey(agent.name, Role.SUBMITTED, wanted.task_id)
        record = await self._service.store.get(key)
        content = await self._service.store.result(key)
        if record is None or content is None:
            raise NotFound(f"no results for task {wanted.task_id}")
        if not 0 <= wanted.offset <= len(content):
            raise InvalidArgument(f"offset {wanted.offset} of {len(content)} bytes")
        piece, end = _piece(content, wanted.offset, record.result_type)
        answer: dict[str, Any] = {
            "task_id": record.task_id,
            "type": record.result_type,
            "path": self._service.result_path(record),
        }
        if record.result_type == "file":
            answer |= {"content": record.result_name, "filename": record.result_name}
            answer["file_data"] = base64.b64encode(piece).decode()
        else:
            answer["content"] = piece.decode(errors="replace")
        if end < len(content):
            answer["next_offset"] = end
        return answer

    async def cancel(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """End a submitted task."""
        task_id = read_params(params, _TaskId).task_id
        record = await self._service.open_submitted(agent.name, task_id)
        await self._service.submitted.cancel(record)
        return _answer(record, "Task cancelled")

    async def part(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Take a part of a result that does not fit one frame."""
        wanted = read_params(params, _Part)
        data = _from_base64(wanted.data)
        return {"size": self._uploads.add(session, wanted.task_id, data)}

    async def serve(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Begin to offer tasks to this connection."""
        wanted = read_params(params, _Serve)
        if not 1 <= wanted.concurrency <= MAX_CONCURRENCY:
            raise InvalidArgument(f"concurrency is not 1 to {MAX_CONCURRENCY}")
        for name in wanted.agents:
            self._service.check_agent(name)
        self._service.serving.serve(session, wanted.agents, wanted.concurrency)
        return {"agents": len(wanted.agents), "concurrency": wanted.concurrency}

    async def drain(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Offer nothing more to this connection."""
        self._service.serving.drain(session)
        return {}

    async def finish(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Take the outcome of an offered task. Durable when answered."""
        wanted = read_params(params, _Finish)
        record = self._service.received.find(agent.name, wanted.task_id)
        content = None
        if wanted.uploaded:
            content = _as_text(self._uploads.take(session, wanted.task_id))
        outcome = outcome_of(wanted, content)
        try:
            await self._service.received.finish(record, outcome)
        finally:
            if record.status is not Status.EXECUTING:
                self._service.serving.finished(record)
        return {"task_id": record.task_id, "status": str(record.status)}

    async def release(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Take an offered task back."""
        record = self._service.received.find(
            agent.name, read_params(params, _TaskId).task_id
        )
        self._service.serving.release(record)
        return {"task_id": record.task_id, "status": str(record.status)}

    async def watch(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Push every change of this agent's submitted tasks."""
        if self._service.watchers.add(agent.name, session):
            await self._service.push_uncollected(agent.name, session)
        return {"agent": agent.name}

    async def collect(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Mark results as taken: they are not pushed again. Durable when answered."""
        task_ids = read_params(params, _Collect).task_ids
        self._service.watchers.collected(agent.name, task_ids)
        await self._service.store.collect(agent.name, task_ids)
        return {"collected": len(task_ids)}

    def _content(self, session: PushSession, wanted: _SendResults) -> bytes:
        if wanted.uploaded:
            content = self._uploads.take(session, wanted.task_id)
            return content if wanted.filename else _as_text(content)
        if wanted.filename:
            return _from_base64(wanted.file_data)
        if wanted.results is None:
            raise InvalidArgument("either results or a file is required")
        return wanted.results.encode()


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument(f"data is not base64: {error}") from None


def _as_text(content: bytes) -> bytes:
    """Return bytes as they will arrive: a frame holds text."""
    return content.decode(errors="replace").encode()


def _answer(record: TaskRecord, message: str) -> dict[str, Any]:
    return {
        "task_id": record.task_id,
        "status": str(record.status),
        "message": message,
    }


def _piece(content: bytes, offset: int, kind: str) -> tuple[bytes, int]:
    """Return a piece and where it ends; a text is not cut inside a character."""
    end = min(offset + PIECE, len(content))
    if kind != "file":
        while offset < end < len(content) and content[end] & 0xC0 == 0x80:
            end -= 1
    return content[offset:end], end
