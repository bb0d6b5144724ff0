"""Find workers: hear who comes and goes, or ask where nobody tells.

Shares the connection of an orchestrator, who hands in the pushes. Several groups of
workers are several watches.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pilotfleet.errors import PilotError
from pilotfleet.fleet.roster import WorkerInfo, worker_info

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence

    from pilotfleet.client.daemon import DaemonClient

__all__ = ["WorkerWatch"]

PAGE: Final = 1_000
NAME_DIGITS: Final = 32
END_S: Final = 2.0
"""How long the daemon may take to end a watch."""

_Tags: TypeAlias = tuple[str, ...]


class WorkerWatch:
    """The agents that carry one of some sets of tags, and are online."""

    def __init__(self, client: DaemonClient, agent: Mapping[str, Any]) -> None:
        """Watch through ``client``; ``agent`` says for whom, as a field of calls."""
        self._client = client
        self._agent: dict[str, Any] = dict(agent)
        self._groups: dict[str, _Group] = {}
        self._ended: set[str] = set()
        self._follows_all = False

    async def follow(self, groups: Iterable[Sequence[str]]) -> bool:
        """Watch these sets of tags, and no others; tell whether that is enough.

        It is not while the daemon has not told everything, and where it would hear of
        changes late, because the registry has no watch.

        Raises:
            PilotError: The daemon, or the registry, refuses.
        """
        wanted = {_name(tags): tuple(tags) for tags in groups}
        for name in self._ended:
            self._groups.pop(name, None)
        self._ended.clear()
        for name in self._groups.keys() - wanted.keys():
            await self._end(name)
        missing = [name for name in wanted if name not in self._groups]
        # Also when one is refused: those that are open are not the whole then.
        self._follows_all = not missing
        for name in missing:
            await self._open(name, wanted[name])
        self._follows_all = True
        return self.is_told

    @property
    def is_told(self) -> bool:
        """Whether ``workers`` are all that are there, and it hears of changes soon."""
        return self._follows_all and all(
            group.is_live and group.is_complete for group in self._groups.values()
        )

    async def search(self, groups: Iterable[Sequence[str]]) -> list[WorkerInfo]:
        """Ask who is there now, each once.

        Raises:
            PilotError: The daemon, or the registry, refuses.
        """
        found: dict[str, WorkerInfo] = {}
        for tags in groups:
            async for info in self._pages(tags):
                found[info.address] = info
        return list(found.values())

    async def close(self) -> None:
        """Watch nothing any more."""
        for name in list(self._groups):
            await self._end(name)

    def take(self, push: Mapping[str, Any]) -> bool:
        """Take a push; tell whether ``workers`` are to be looked at again."""
        group = self._groups.get(str(push.get("watch")))
        if group is None:
            return False
        if "error" in push:
            self._ended.add(str(push["watch"]))
            group.is_complete = False
            return False
        group.take(push)
        return self.is_told

    def workers(self) -> Iterable[WorkerInfo]:
        """Return all that are there now, each once."""
        found = {
            info.address: info
            for group in self._groups.values()
            for info in group.workers.values()
        }
        return found.values()

    async def _pages(self, tags: Sequence[str]) -> AsyncGenerator[WorkerInfo, None]:
        cursor = ""
        while True:
            page = await self._client.call(
                "search",
                tags=list(tags),
                online=True,
                limit=PAGE,
                cursor=cursor,
                **self._agent,
            )
            for row in page.get("agents", ()):
                info = worker_info(row)
                if info is not None:
                    yield info
            cursor = page.get("next_cursor") or ""
            if not cursor:
                return

    async def _open(self, name: str, tags: _Tags) -> None:
        # Known before it is asked for: its news may come before the answer.
        group = self._groups[name] = _Group()
        query: dict[str, Any] = {"watch": name, "tags": list(tags), "online": True}
        try:
            answer = await self._client.call("watch", **query, **self._agent)
        except PilotError:
            # After a cancellation it may be open all the same, and is to be ended.
            self._groups.pop(name, None)
            raise
        group.is_live = answer.get("live") is True

    async def _end(self, name: str) -> None:
        del self._groups[name]
        with suppress(PilotError):
            await self._client.call("unwatch", watch=name, timeout=END_S, **self._agent)


class _Group:
    """What one watch has told."""

    __slots__ = ("is_complete", "is_live", "workers")

    def __init__(self) -> None:
        self.workers: dict[int, WorkerInfo] = {}
        self.is_complete = False
        self.is_live = False

    def take(self, push: Mapping[str, Any]) -> None:
        for row in push.get("removed") or ():
            self.workers.pop(row.get("node_id"), None)
        for kind in ("added", "changed"):
            for row in push.get(kind) or ():
                info = worker_info(row)
                if info is not None:
                    self.workers[row.get("node_id")] = info
        self.is_complete = push.get("complete") is True


def _name(tags: Sequence[str]) -> str:
    """Return a name that only these tags have."""
    return hashlib.sha256("\0".join(sorted(tags)).encode()).hexdigest()[:NAME_DIGITS]
