"""The Unix socket: who may connect, and what belongs to all clients of it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from pilotfleet.errors import InvalidArgument, NotSupported, PilotError, StorageError
from pilotfleet.node.ipc.commands import HANDLERS, dial
from pilotfleet.node.ipc.extension import run_extension
from pilotfleet.node.ipc.inline import INLINE
from pilotfleet.node.ipc.session import Arrival, IpcSession
from pilotfleet.node.ipc.texts import describe
from pilotfleet.node.stream import Stream
from pilotfleet.protocol.ipc import extension
from pilotfleet.protocol.ipc.commands import (
    REPLIES,
    Command,
    ReceivedDatagram,
    pack_received_datagram,
)
from pilotfleet.protocol.ipc.framing import MAX_JSON, encode_frame
from pilotfleet.transport.peeruser import is_own_user
from pilotfleet.transport.privatesocket import listen_privately

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from pilotfleet.node.agent import Agent, Datagram
    from pilotfleet.node.host import Host
    from pilotfleet.node.ipc.streams import IpcStream

__all__ = ["IpcServer", "OtherProcesses"]

logger = logging.getLogger(__name__)

MAX_CLIENTS: Final = 1024
BACKLOG: Final = 128
CLOSE_S: Final = 3.0
"""How long clients get to read what was sent before the daemon closes."""


class OtherProcesses(Protocol):
    """Where the agents of a daemon are that another process of it hosts."""

    async def run(
        self, session: IpcSession, request: extension.ExtensionRequest
    ) -> dict[str, Any]:
        """Run an operation, for whichever agent it is."""

    def order(self, name: str) -> tuple[Any, ...]:
        """Return where an agent comes in the list of all; no two are at one place."""


class IpcServer:
    """The local clients of a host. An async context manager.

    Args:
        host: Whose agents it serves.
        path: Where its Unix socket is, an existing file there is replaced; None if
            all connections are given to it by :meth:`adopt`.
        agent: The only agent it serves; None is every agent, the default one first.
        others: Who hosts the other agents of this daemon.
    """

    def __init__(
        self,
        host: Host,
        path: Path | None,
        *,
        agent: Agent | None = None,
        others: OtherProcesses | None = None,
    ) -> None:
        self.host = host
        self.path = path
        self.agent = agent
        self.others = others
        self.sessions: set[IpcSession] = set()
        self._legs = 0
        self.dropped_datagrams = 0
        self._streams: dict[Agent, dict[int, IpcStream]] = {}
        self._listening: dict[Agent, tuple[set[IpcSession], Callable[..., None]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Listen at ``path``.

        Raises:
            StorageError: The socket cannot be made there.
        """
        if self.path is None:
            return
        try:
            listener = listen_privately(self.path, backlog=BACKLOG)
        except OSError as error:
            reason = error.strerror or str(error)
            raise StorageError(f"cannot make socket {self.path}: {reason}") from error
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            self._new_session, sock=listener, backlog=BACKLOG
        )

    async def aclose(self) -> None:
        """Remove the socket, disconnect the clients, wait for what they started."""
        if self._server is not None:
            with suppress(OSError):
                if self.path is not None:
                    self.path.unlink()
            self._server.close()
            self._server = None
        for session in list(self.sessions):
            session.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._empty.wait()
        for session in list(self.sessions):
            session.abort()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    async def adopt(
        self, connection: socket.socket, agent: Agent, arrival: Arrival
    ) -> None:
        """Serve a connection that somebody else has accepted."""
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        await loop.connect_accepted_socket(
            lambda: IpcSession(self, agent, arrival), connection
        )

    # Called by sessions

    def admit(self, session: IpcSession, transport: asyncio.Transport) -> bool:
        """Tell whether a client that has just connected may stay."""
        peer = transport.get_extra_info("socket")
        same_kind = self._legs if session.is_leg else len(self.sessions) - self._legs
        if same_kind >= MAX_CLIENTS or not is_own_user(peer):
            return False
        self.sessions.add(session)
        self._legs += session.is_leg
        self._empty.clear()
        self._hear(session)
        return True

    def forget(self, session: IpcSession) -> None:
        """Release a client that is gone."""
        if session in self.sessions:
            self.sessions.remove(session)
            self._legs -= session.is_leg
        self._unhear(session)
        if not self.sessions:
            self._empty.set()

    def move(self, session: IpcSession, agent: Agent) -> None:
        """Let a client act as another agent."""
        self._unhear(session)
        session.agent = agent
        self._hear(session)

    def own(self, task: asyncio.Task[Any]) -> None:
        """Await ``task`` before the server is closed."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def run(self, session: IpcSession, command: int, payload: bytes) -> None:
        """Run one frame: here, or as a task of the session."""
        inline = INLINE.get(command)
        if inline is not None:
            inline(session, payload)
        elif command == Command.DIAL:
            task = session.start(_run_dial(session, payload), name="dial")
            session.dials.add(task)
            task.add_done_callback(session.dials.discard)
        elif command == Command.EXTENSION:
            request = extension.decode_request(payload)
            session.start(_run_extension(session, request), name=request.op)
        elif command in HANDLERS:
            session.start(
                _run_command(session, command, payload), name=f"0x{command:02X}"
            )
        else:
            raise NotSupported(f"unknown command: 0x{command:02X}")

    def add_stream(self, entry: IpcStream) -> None:
        """Let other clients of the agent reach a stream by its id."""
        self._streams.setdefault(entry.stream.agent, {})[entry.stream.id] = entry

    def drop_stream(self, entry: IpcStream) -> None:
        """Forget a stream."""
        streams = self._streams.get(entry.stream.agent)
        if streams is not None:
            streams.pop(entry.stream.id, None)
            if not streams:
                del self._streams[entry.stream.agent]

    def find_stream(self, session: IpcSession, number: int) -> IpcStream | None:
        """Return a stream of the client's agent, whoever opened it."""
        return self._streams.get(session.agent, {}).get(number)

    def close_stream(self, session: IpcSession, number: int) -> None:
        """Close a stream of the client's agent, whoever opened it."""
        entry = self.find_stream(session, number)
        if entry is not None:
            entry.close()
            entry.end()
            entry.session.drop_stream(entry)
            return
        for connection in session.agent.streams.connections():
            if connection.id == number and isinstance(connection.owner, Stream):
                connection.owner.close_nowait()
                return

    # Private

    def _new_session(self) -> IpcSession:
        return IpcSession(self, self.agent or self.host.default_agent)

    def _hear(self, session: IpcSession) -> None:
        """Push the datagrams of the client's agent to it."""
        agent = session.agent
        heard = self._listening.get(agent)
        if heard is None:
            sessions: set[IpcSession] = set()

            def on_datagram(datagram: Datagram) -> None:
                self._fan_out(sessions, datagram)

            heard = self._listening[agent] = (sessions, on_datagram)
            agent.datagram_listeners.add(on_datagram)
        heard[0].add(session)

    def _unhear(self, session: IpcSession) -> None:
        heard = self._listening.get(session.agent)
        if heard is not None:
            heard[0].discard(session)
            if not heard[0]:
                del self._listening[session.agent]
                session.agent.datagram_listeners.discard(heard[1])

    def _fan_out(self, sessions: set[IpcSession], datagram: Datagram) -> None:
        received = ReceivedDatagram(datagram.source, datagram.port, datagram.data)
        frame = encode_frame(Command.RECV_FROM, pack_received_datagram(received))
        for session in sessions:
            if not session.push_datagram(frame):
                self.dropped_datagrams += 1


async def _run_dial(session: IpcSession, payload: bytes) -> None:
    try:
        await dial(session, payload)
    except asyncio.CancelledError:
        # By Cancel; when the client is gone nobody reads this.
        session.reply_error("context canceled")
        raise
    except PilotError as error:
        session.reply_error(describe(error))
    except Exception:  # A defect in one dial must not leave its client waiting.
        logger.exception("%r: dial failed", session)
        session.reply_error("internal error")


async def _run_command(session: IpcSession, command: int, payload: bytes) -> None:
    try:
        reply = await HANDLERS[command](session, payload)
        session.reply(REPLIES[Command(command)], reply)
    except PilotError as error:
        session.reply_error(describe(error))
    except Exception:  # A defect in one command must not leave its client waiting.
        logger.exception("%r: command 0x%02X failed", session, command)
        session.reply_error("internal error")


async def _run_extension(
    session: IpcSession, request: extension.ExtensionRequest
) -> None:
    try:
        others = session.server.others
        if others is None or session.is_leg:
            result = await run_extension(session, request.op, request.params)
        else:
            result = await others.run(session, request)
        reply = extension.encode_result(request.id, result)
        if len(reply) > MAX_JSON:
            raise InvalidArgument(
                f"{request.op}: the answer is too large; ask for less"
            )
    except PilotError as error:
        reply = extension.encode_failure(request.id, error)
    except Exception:  # Handlers of services may raise anything.
        logger.exception("%r: %s failed", session, request.op)
        failure = PilotError(f"{request.op}: internal error, see the daemon's log")
        reply = extension.encode_failure(request.id, failure)
    session.reply(Command.EXTENSION_OK, reply)
