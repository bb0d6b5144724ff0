"""One process of a daemon, seen from its inside: its clients, and the other processes.

A connection belongs to the process that hosts the client's agent. It comes from the
parent; when the client selects an agent of another process it moves there, with what
was read of it. Streams so never take a detour.

An operation that names an agent of another process goes over a *leg*: a connection to
that process, made for this one client, on which it is served like any other client.
What a service keeps for a client (served tasks, watches, parts of a result) it keeps
for the leg, and lets go of when the leg ends, which is when the client's connection
does. When the leg ends first, that process is gone, and with it what the client was
served there: then the client is disconnected, as by a daemon that ends, and connects
anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.errors import (
    Closed,
    ConnectionFailed,
    InvalidArgument,
    NotFound,
    PilotError,
    Unavailable,
    error_to_fields,
)
from pilotfleet.node.ipc.extension import run_extension
from pilotfleet.node.ipc.hosted import describe_agent, read_query
from pilotfleet.node.ipc.server import IpcServer
from pilotfleet.node.ipc.session import Arrival
from pilotfleet.node.ipc.watch import read_name
from pilotfleet.node.processes.channel import Channel
from pilotfleet.node.processes.division import process_of, sort_key
from pilotfleet.node.processes.legs import Legs
from pilotfleet.node.processes.lists import ask_for_agents, merge_agents
from pilotfleet.node.processes.messages import (
    MAX_PENDING,
    Addresses,
    Failed,
    Message,
    Progress,
    Ready,
    Serving,
    Take,
)
from pilotfleet.protocol.ipc import extension, listing
from pilotfleet.protocol.ipc.commands import Command
from pilotfleet.protocol.ipc.framing import encode_frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from pilotfleet.node.host import Host
    from pilotfleet.node.ipc.session import IpcSession

__all__ = ["Siblings"]

PROGRESS_EVERY: Final = 50
ADDRESSES_AT_ONCE: Final = 500


class Siblings:
    """The parent and the other processes, for one process of a daemon.

    Args:
        number: Which process this is, from 1.
        count: How many there are.
        others: The numbers of the others that host anything.
        first: The name of the daemon's default agent.
        end: This process's end of the channel to the parent.
        on_orphaned: Called when the parent is gone.
    """

    def __init__(
        self,
        number: int,
        count: int,
        *,
        others: Iterable[int],
        first: str,
        end: socket.socket,
        on_orphaned: Callable[[], None],
    ) -> None:
        self._number = number
        self._count = count
        self._others = frozenset(others)
        self._first = first
        self._legs: dict[IpcSession, Legs] = {}
        self._host: Host
        self._server: IpcServer | None = None
        self._channel = Channel(end, on_message=self._take, on_end=on_orphaned)

    def attach(self, host: Host) -> None:
        """Tell the parent how ``host`` starts, and let clients in when it serves."""
        self._host = host
        host.on_progress = self._on_progress
        host.doors.append(self._door)

    def tell_ready(self) -> None:
        """Tell the parent that all agents are started."""
        rows = [(name, str(a.address)) for name, a in self._host.agents.items()]
        for start in range(0, len(rows), ADDRESSES_AT_ONCE):
            part = dict(rows[start : start + ADDRESSES_AT_ONCE])
            self._channel.send(Addresses(addresses=part))
        self._channel.send(Ready(agents=len(self._host.by_node)))

    def tell_failed(self, error: PilotError) -> None:
        """Tell the parent why this process ends."""
        self._channel.send(
            Failed(code=error.code, message=str(error), hint=error.hint or "")
        )

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    # OtherProcesses, of the local server

    async def run(
        self, session: IpcSession, request: extension.ExtensionRequest
    ) -> dict[str, Any]:
        """Run an operation of a client: here, there, or everywhere."""
        op = request.op
        # No field of any operation, and how long a leg would wait.
        params = {name: x for name, x in request.params.items() if name != "timeout"}
        match op:
            case "select-agent":
                to = self._process_of(params.get("name"))
                if to is not None:
                    return await self._move(session, request, to)
            case listing.OP_AGENTS:
                return await self._list_agents(session, params)
            case "task.serve":
                return await self._serve(session, params)
            case "task.finish-all":
                return await self._finish_all(session, params)
            case "task.drain":
                legs = self._legs.get(session)
                if legs is not None:
                    await legs.call_all(op, params)
            case "unwatch" if read_name(params) not in session.watches:
                return await self._unwatch(session, params)
            case _:
                to = self._process_of(params.get("agent"))
                if to is not None:
                    return await self._call(session, to, op, params)
        return await run_extension(session, op, params)

    def order(self, name: str) -> tuple[bool, str, int, str]:
        """Return where an agent comes in the list of all, the default one first."""
        return (name != self._first, *sort_key(name), name)

    # Private

    def _process_of(self, name: object) -> int | None:
        """Return the process that hosts an agent; None if this one knows best."""
        if not isinstance(name, str) or name in self._host.agents:
            return None
        number = process_of(name, self._count)
        return number if number in self._others else None

    def _on_progress(self, done: int, total: int) -> None:
        if done == 1 or done == total or done % PROGRESS_EVERY == 0:
            self._channel.send(Progress(done=done, total=total))

    @contextlib.asynccontextmanager
    async def _door(self) -> AsyncIterator[None]:
        async with IpcServer(self._host, None, others=self) as server:
            self._server = server
            self._channel.send(Serving())
            try:
                yield
            finally:
                # Who comes now is sent away.
                self._server = None

    # Clients that come and go

    def _take(self, message: Message, connection: socket.socket | None) -> None:
        if connection is None:
            return
        server = self._server
        if not isinstance(message, Take) or server is None:
            connection.close()
            return
        self._host.spawn(self._adopt(server, message, connection), name="a client")

    async def _adopt(
        self, server: IpcServer, take: Take, connection: socket.socket
    ) -> None:
        agent, greeting = self._host.default_agent, b""
        if take.agent:
            found = self._host.agents.get(take.agent)
            if found is None:
                # Whoever sent it has asked; the process has been restarted since.
                connection.close()
                return
            agent = found
            answer = extension.encode_result(take.request, describe_agent(agent))
            greeting = encode_frame(Command.EXTENSION_OK, answer)
        arrival = Arrival(take.is_leg, greeting, take.pending)
        try:
            await server.adopt(connection, agent, arrival)
        except OSError:
            # It has hung up on its way.
            connection.close()

    async def _move(
        self, session: IpcSession, request: extension.ExtensionRequest, to: int
    ) -> dict[str, Any]:
        """Give a client to the process of the agent that it selects.

        That process answers; what this returns reaches nobody.
        """
        if session.streams or session.ports or session.dials:
            raise InvalidArgument("close all streams and ports to select an agent")
        name = str(request.params["name"])
        await self._check(to, name)
        connection, pending = await session.detach(limit=MAX_PENDING)
        take = Take(to=to, agent=name, request=request.id, pending=pending)
        self._channel.send(take, connection)
        return {}

    async def _list_agents(
        self, session: IpcSession, params: dict[str, Any]
    ) -> dict[str, Any]:
        """List the agents of all processes, or a page of them."""
        query = read_query(params)
        others = sorted(self._others)
        pages = await asyncio.gather(
            run_extension(session, listing.OP_AGENTS, params),
            *(ask_for_agents(self._connect(other), query) for other in others),
        )
        numbers = (self._number, *others)
        pages_of = dict(zip(numbers, pages, strict=True))
        return merge_agents(pages_of, query, order=self.order)

    async def _serve(
        self, session: IpcSession, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Have a client serve agents, each at the process that hosts it."""
        names = params.get("agents")
        if not isinstance(names, list):
            return await run_extension(session, "task.serve", params)
        groups: dict[int | None, list[object]] = {}
        for name in names:
            groups.setdefault(self._process_of(name), []).append(name)
        here = groups.pop(None, [])
        for to, group in groups.items():
            assert to is not None
            await self._call(session, to, "task.serve", {**params, "agents": group})
        # Last, as it also checks what is left when nobody hosts a name.
        answer = await run_extension(session, "task.serve", {**params, "agents": here})
        return {**answer, "agents": len(names)}

    async def _finish_all(
        self, session: IpcSession, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Hand outcomes in, each at the process of its agent."""
        op, outcomes = "task.finish-all", params.get("outcomes")
        groups: dict[int | None, list[int]] = {}
        for place, each in enumerate(outcomes if isinstance(outcomes, list) else ()):
            name = each.get("agent") if isinstance(each, dict) else None
            groups.setdefault(self._process_of(name), []).append(place)
        if not isinstance(outcomes, list) or set(groups) <= {None}:
            return await run_extension(session, op, params)

        async def finish(to: int | None, places: list[int]) -> dict[str, Any]:
            group = {**params, "outcomes": [outcomes[place] for place in places]}
            try:
                if to is None:
                    answer = await run_extension(session, op, group)
                else:
                    answer = await self._call(session, to, op, group)
            except PilotError as error:
                # What the other processes took is taken.
                return {str(place): error_to_fields(error) for place in places}
            refused = answer["refused"]
            return {str(places[int(at)]): why for at, why in refused.items()}

        answers = await asyncio.gather(*(finish(*group) for group in groups.items()))
        return {"refused": {at: why for each in answers for at, why in each.items()}}

    async def _unwatch(
        self, session: IpcSession, params: dict[str, Any]
    ) -> dict[str, Any]:
        """End a watch that another process keeps for a client."""
        legs = self._legs.get(session)
        for to in legs.open if legs is not None else ():
            with contextlib.suppress(NotFound):
                return await self._call(session, to, "unwatch", params)
        # Says that there is none.
        return await run_extension(session, "unwatch", params)

    # Legs

    async def _connect(self, to: int) -> DaemonClient:
        """Return a connection to another process; it ends at once if that is gone."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._channel.send(Take(to=to, is_leg=True), theirs)
        loop = asyncio.get_running_loop()
        _, client = await loop.create_unix_connection(DaemonClient, sock=ours)
        return client

    async def _check(self, to: int, name: str) -> None:
        """Check that another process runs, and hosts an agent."""
        async with await self._connect(to) as leg:
            await self._call_leg(leg, to, "select-agent", {"name": name})

    async def _call(
        self, session: IpcSession, to: int, op: str, params: dict[str, Any]
    ) -> dict[str, Any]:
        legs = self._legs.get(session)
        if legs is None:
            legs = self._legs[session] = Legs(session, self._connect)
            session.on_close(lambda: self._drop(session))
        leg = await legs.get(to)
        return await self._call_leg(leg, to, op, params)

    async def _call_leg(
        self, leg: DaemonClient, to: int, op: str, params: dict[str, Any]
    ) -> dict[str, Any]:
        try:
            return await leg.call(op, **params)
        except Unavailable as error:
            # Closed says it of a leg whose end nobody has been told of yet.
            if not (leg.is_closed or isinstance(error, Closed)):
                raise
        text = f"process {to} of {self._count} of this daemon is being restarted"
        raise ConnectionFailed(text, hint="try again in some seconds")

    def _drop(self, session: IpcSession) -> None:
        legs = self._legs.pop(session, None)
        if legs is not None:
            self._host.spawn(legs.aclose(), name="legs of a client")
