"""The control socket of a running fleet: what is said on it, and its client.

``fleet.sock`` in the fleet's home, for its user alone. One JSON object per line each
way and one request per connection: ``{"op":…}`` is answered by any number of
``{"item":…}`` and then by one ``{"ok":…}`` or ``{"error":{code,message,hint}}``.
Whoever closes the connection takes no interest in the rest; nothing is undone.

==========  =======================================================================
op          answer
==========  =======================================================================
status      the state of everything
scale       items ``{"doing":text}``; then ``{"workers"}``
submit      ``{"added","tasks"}``: lines that were new, and all of the batch; on the
            disk by then
results     items ``{"seq","result"}``; with ``follow`` until the batch is done
rollout     items ``{"doing":text}``; then ``{"replaced"}``
forget      ``{}``: a finished batch and its results are gone
down        items ``{"doing":text}``; then ``{}``: everything has stopped
==========  =======================================================================
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import msgspec

from pilotfleet.errors import (
    ConnectionFailed,
    DecodeError,
    InvalidArgument,
    NotRunning,
    error_from_fields,
)
from pilotfleet.fleet.home import short_path

# msgspec looks at these when the program runs.
from pilotfleet.fleet.schedule import TaskResult  # noqa: TC001
from pilotfleet.fleet.spec import FleetSpec  # noqa: TC001
from pilotfleet.fleet.taskfile import TaskLine  # noqa: TC001
from pilotfleet.fleet.worker.identities import MAX_IDENTITIES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from pathlib import Path

__all__ = [
    "CONTROL_SOCKET",
    "MAX_LINE",
    "BatchResult",
    "Down",
    "FleetControl",
    "Forget",
    "Request",
    "Results",
    "Rollout",
    "Scale",
    "Status",
    "Submit",
    "check_batch",
    "decode_request",
]

CONTROL_SOCKET: Final = "fleet.sock"
MAX_LINE: Final = 1 << 20
"""Longest request. An answer may be longer, for one result is."""
MAX_ANSWER: Final = 8 << 20
"""A result has at most 1 MiB, of which JSON may make six times as much."""
SUBMIT_BYTES: Final = MAX_LINE // 2
MAX_BATCH_NAME: Final = 64
MAX_SEQ: Final = (1 << 63) - 1
"""What SQLite counts to."""
ANSWER_S: Final = 60.0
"""How long a question that is answered from memory or disk may take."""

_BatchName: TypeAlias = Annotated[
    str,
    msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_BATCH_NAME),
]


class _Op(msgspec.Struct, frozen=True, tag_field="op", tag=str.lower):
    """A request."""


class Status(_Op, frozen=True):
    """Tell the state of everything."""


class Scale(_Op, frozen=True):
    """Have so many workers."""

    workers: Annotated[int, msgspec.Meta(ge=1, le=MAX_IDENTITIES)]


class Submit(_Op, frozen=True):
    """Take tasks on; those that the batch has already are left as they are."""

    batch: _BatchName
    lines: list[TaskLine]


class Results(_Op, frozen=True):
    """Send the results of a batch, from the one behind number ``after``."""

    batch: _BatchName
    after: Annotated[int, msgspec.Meta(ge=0, le=MAX_SEQ)] = 0
    follow: bool = False


class Rollout(_Op, frozen=True):
    """Replace the members one batch after the other."""

    batch: Annotated[int, msgspec.Meta(ge=1, le=MAX_IDENTITIES)] = 1
    spec: FleetSpec | None = None


class Forget(_Op, frozen=True):
    """Forget a finished batch."""

    batch: _BatchName


class Down(_Op, frozen=True):
    """Stop the fleet; ``now`` does not wait for tasks under way."""

    now: bool = False


Request: TypeAlias = Status | Scale | Submit | Results | Rollout | Forget | Down

_REQUESTS: Final[msgspec.json.Decoder[Request]] = msgspec.json.Decoder(Request)


class BatchResult(msgspec.Struct, frozen=True):
    """A result and its number in its batch; later results have higher numbers."""

    seq: int
    result: TaskResult


def decode_request(line: bytes) -> Request:
    """Read one request.

    Raises:
        InvalidArgument: It is none; the message says what is wrong with it.
    """
    try:
        return _REQUESTS.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"control request: {error}") from None


def check_batch(name: str) -> str:
    """Return a batch's name as it is.

    Raises:
        InvalidArgument: It is too long or has other characters than allowed.
    """
    try:
        return msgspec.convert(name, _BatchName)
    except msgspec.ValidationError:
        raise InvalidArgument(
            f"batch name {name[:80]!r} is not allowed",
            hint=f"use 1 to {MAX_BATCH_NAME} letters, digits, dots, dashes or"
            " underscores, with a letter or digit first",
        ) from None


class FleetControl:
    """Asks the fleet whose home is a folder. Holds no connection between calls.

    Every call may be cancelled, and any number be outstanding. All raise
    :class:`NotRunning` when no fleet runs there, :class:`ConnectionFailed` when it
    ends before it has answered, and what the fleet answered, by its code.
    """

    def __init__(self, home: Path) -> None:
        self.home = home

    @property
    def path(self) -> Path:
        """The control socket."""
        return self.home / CONTROL_SOCKET

    async def status(self) -> dict[str, Any]:
        """Return the state of the fleet, its members, batches and workers."""
        return await self._ask_soon(Status())

    async def scale(
        self, workers: int, *, progress: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """Have so many workers; returns when they are there."""
        return await self._ask(Scale(workers), progress)

    async def submit(self, batch: str, lines: Sequence[TaskLine]) -> int:
        """Add tasks to a batch and return how many were new.

        They are on the disk then. Many are sent in pieces; what is cancelled in
        between, or fails, has added the pieces before.

        Raises:
            AlreadyExists: The batch has another task of the same id.
            Busy: The fleet has too many tasks already.
        """
        check_batch(batch)
        added = 0
        for piece in _pieces(lines):
            answer = await self._ask_soon(Submit(batch, piece))
            added += int(answer.get("added", 0))
        return added

    async def results(
        self, batch: str, *, after: int = 0, follow: bool = True
    ) -> AsyncGenerator[BatchResult, None]:
        """Yield a batch's results in the order of their ends.

        Args:
            batch: The batch.
            after: Leave out those up to this number.
            follow: Go on until the batch is done, else end with what there is.

        Raises:
            NotFound: There is no such batch.
        """
        request = Results(check_batch(batch), after, follow)
        async with aclosing(self._converse(request)) as answers:
            async for answer in answers:
                if "item" in answer:
                    yield msgspec.convert(answer["item"], BatchResult)

    async def rollout(
        self,
        *,
        batch: int = 1,
        spec: FleetSpec | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        """Replace the members, ``batch`` at a time; returns when all are new.

        Raises:
            NotRunning: A new one did not come up; the others are left as they are.
        """
        return await self._ask(Rollout(batch, spec), progress)

    async def forget(self, batch: str) -> None:
        """Forget a batch that is done, and its results.

        Raises:
            NotFound: There is no such batch.
            InvalidState: It is not done.
        """
        await self._ask_soon(Forget(check_batch(batch)))

    async def down(
        self, *, now: bool = False, progress: Callable[[str], None] | None = None
    ) -> None:
        """Stop the fleet; returns when it has stopped.

        Args:
            now: Do not let the tasks under way end. None is lost in either case.
            progress: Told in a few words what is being stopped.
        """
        await self._ask(Down(now), progress)

    async def _ask_soon(self, request: Request) -> dict[str, Any]:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._ask(request, None)
        except TimeoutError:
            raise ConnectionFailed(
                f"the fleet in {self.home} did not answer in {ANSWER_S:g} s",
                hint=f"see {self.home / 'logs' / 'fleet.log'}",
            ) from None

    async def _ask(
        self, request: Request, progress: Callable[[str], None] | None
    ) -> dict[str, Any]:
        result: dict[str, Any] = {}
        async with aclosing(self._converse(request)) as answers:
            async for answer in answers:
                if "ok" in answer:
                    result = answer["ok"]
                elif progress is not None:
                    progress(str(answer.get("item", {}).get("doing", "")))
        return result

    async def _converse(self, request: Request) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the lines of an answer, of which the last has ``ok``."""
        reader, writer = await self._open()
        try:
            writer.write(msgspec.json.encode(request) + b"\n")
            await writer.drain()
            while True:
                answer = _decode_answer(await reader.readline())
                if "error" in answer:
                    raise _failure(answer["error"])
                yield answer
                if "ok" in answer:
                    return
        except (OSError, ValueError, DecodeError) as error:
            # ValueError: the line is longer than the limit.
            raise ConnectionFailed(
                f"the fleet in {self.home} ended before it answered: {error}",
                hint=f"see {self.home / 'logs' / 'fleet.log'}",
            ) from None
        finally:
            writer.close()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            with short_path(self.home) as home:
                path = str(home / CONTROL_SOCKET)
                return await asyncio.open_unix_connection(path, limit=MAX_ANSWER)
        except OSError:
            raise NotRunning(
                f"no fleet runs in {self.home}",
                hint=f"start it with: pilotctl fleet up SPEC --home {self.home}",
            ) from None


def _pieces(lines: Sequence[TaskLine]) -> list[list[TaskLine]]:
    """Divide lines so that each piece fits into a request."""
    pieces: list[list[TaskLine]] = []
    room = 0
    for line in lines:
        size = len(msgspec.json.encode(line)) + 1
        if size > room:
            pieces.append([])
            room = SUBMIT_BYTES
        pieces[-1].append(line)
        room -= size
    return pieces


def _decode_answer(line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise DecodeError("the connection was closed")
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise DecodeError(str(error)) from None


def _failure(error: Any) -> Exception:
    if not isinstance(error, dict):
        return ConnectionFailed("the fleet answered with an error of no known form")
    return error_from_fields(error)
