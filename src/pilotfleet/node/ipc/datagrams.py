"""Datagrams that a client sends: in order to each node, no node before another."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from pilotfleet.errors import PilotError
from pilotfleet.node.ipc.texts import describe
from pilotfleet.protocol.ipc.commands import Command

if TYPE_CHECKING:
    from pilotfleet.node.ipc.session import IpcSession
    from pilotfleet.protocol.address import SocketAddress

__all__ = ["DatagramQueue"]

MAX_QUEUED: Final = 1024
"""Datagrams of one client that wait for a tunnel; further ones are dropped."""


class _Item(NamedTuple):
    remote: SocketAddress
    data: bytes
    confirm: bool


class DatagramQueue:
    """Hands datagrams to the agent. A task runs only while some wait."""

    def __init__(self, session: IpcSession) -> None:
        self._session = session
        self._waiting: dict[int, deque[_Item]] = {}
        self._count = 0
        self.dropped = 0

    def put(self, remote: SocketAddress, data: bytes, *, confirm: bool) -> None:
        """Send ``data`` after what waits for the same node."""
        if self._count >= MAX_QUEUED:
            self.dropped += 1
            if confirm:
                self._session.reply_error("sendto: too many datagrams are waiting")
            return
        item, node = _Item(remote, data, confirm), remote.address.node
        self._count += 1
        queue = self._waiting.get(node)
        if queue is not None:
            queue.append(item)
            return
        self._waiting[node] = deque([item])
        self._session.start(self._run(node), name=f"datagrams to {node}")

    async def _run(self, node: int) -> None:
        queue = self._waiting[node]
        try:
            while queue:
                await self._send(queue[0])
                queue.popleft()
                self._count -= 1
        finally:
            self._count -= len(queue)
            del self._waiting[node]

    async def _send(self, item: _Item) -> None:
        try:
            await self._session.agent.send_datagram(item.remote, item.data)
        except PilotError as error:
            if item.confirm:
                self._session.reply_error(describe(error, "sendto"))
        else:
            if item.confirm:
                self._session.reply(Command.SEND_TO_OK)
