"""The operations ``watch`` and ``unwatch``: programs that follow the directory.

The program names its watches, so that it knows whose news it gets. A watch ends by
``unwatch``, or with its connection. While the program does not read,
nothing is written for it, and what changes meanwhile is told once, as it is then.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.client.watching import ChangeKind, WatchQuery
from pilotfleet.errors import (
    AlreadyExists,
    Busy,
    InvalidArgument,
    InvalidState,
    NotFound,
    PilotError,
    error_to_fields,
)

if TYPE_CHECKING:
    from pilotfleet.client.watching import Change
    from pilotfleet.node.agent import Agent
    from pilotfleet.node.ipc.session import IpcSession
    from pilotfleet.node.watches import Follower, News

__all__ = ["read_name", "unwatch", "watch"]

MAX_WATCHES: Final = 16
"""Of one connection."""
MAX_NAME: Final = 64
"""Of what a program calls a watch, in characters."""
PUSH_ROWS: Final = 500
"""In one push, so that it fits a frame: a row has at most about 700 bytes."""


class _Question(msgspec.Struct):
    tags: list[str] = []
    any: bool = False
    hostname_prefix: str = ""
    online: bool = False


async def watch(
    session: IpcSession, agent: Agent, params: dict[str, Any]
) -> dict[str, Any]:
    """Tell the program what is there, and from then on what changes.

    Raises:
        InvalidArgument: The question is of another form.
        Busy: There are too many watches.
        InvalidState: It was ended meanwhile.
        PilotError: The registry refuses, or cannot be reached.
    """
    query = _read_query(params)
    name = read_name(params)
    if name in session.watches:
        raise AlreadyExists(f"watch {name!r} is open on this connection")
    if len(session.watches) >= MAX_WATCHES:
        raise Busy(f"{MAX_WATCHES} watches are open on this connection; end one")
    own = asyncio.current_task()
    assert own is not None
    # Its place is taken before the first wait, or many at once would all find room.
    session.watches[name] = own
    try:
        follower = await session.server.host.watches.follow(agent, query)
    except BaseException as error:
        session.watches.pop(name, None)
        if isinstance(error, asyncio.CancelledError) and not session.is_closed:
            # By unwatch. Whoever asked for the watch waits for an answer all the same.
            raise InvalidState(
                f"watch {name!r} was ended before its first answer"
            ) from None
        raise
    task = session.start(_push_news(session, name, follower), name="watch news")
    session.watches[name] = task
    # Also one that is cancelled before its first step lets go.
    task.add_done_callback(lambda _: _end(session, name, follower))
    return {"watch": name, "live": follower.is_live}


async def unwatch(
    session: IpcSession, agent: Agent, params: dict[str, Any]
) -> dict[str, Any]:
    """End a watch of this connection.

    Raises:
        NotFound: There is no such watch.
    """
    name = read_name(params)
    task = session.watches.get(name)
    if task is None:
        raise NotFound(f"no watch {name!r} on this connection")
    task.cancel()
    await asyncio.wait([task])
    return {}


async def _push_news(session: IpcSession, name: str, follower: Follower) -> None:
    push = {"push": "watch", "watch": name}
    try:
        while True:
            await follower.wait()
            # Room first: what changes until there is some, is told as it is then.
            await session.wait_writable()
            news = follower.take(PUSH_ROWS)
            session.push({**push, **_describe(news)})
            # Others have their turn between the pushes of a long answer.
            await asyncio.sleep(0)
    except PilotError as error:
        session.push({**push, "error": error_to_fields(error)})


def _end(session: IpcSession, name: str, follower: Follower) -> None:
    session.watches.pop(name, None)
    follower.close()


def _describe(news: News) -> dict[str, Any]:
    return {
        **{str(kind): _rows(news.changes, kind) for kind in ChangeKind},
        "complete": news.is_complete,
    }


def _rows(changes: tuple[Change, ...], kind: ChangeKind) -> list[Any]:
    return [change.row for change in changes if change.kind is kind]


def read_name(params: dict[str, Any]) -> str:
    """Return what a program calls a watch.

    Raises:
        InvalidArgument: It is no such name.
    """
    name = params.get("watch", "")
    if not isinstance(name, str) or len(name) > MAX_NAME:
        raise InvalidArgument(f"watch must be a text of at most {MAX_NAME} characters")
    return name


def _read_query(params: dict[str, Any]) -> WatchQuery:
    try:
        asked = msgspec.convert(params, _Question)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"watch: {error}") from None
    return WatchQuery.of(
        asked.tags,
        any_tag=asked.any,
        hostname_prefix=asked.hostname_prefix,
        online=asked.online,
    )
