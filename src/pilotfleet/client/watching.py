"""What a watch of the registry's directory knows. Performs no I/O.

A watch is a question, such as "who carries the tag worker", whose answer is kept up to
date. The registry tells it by pages of changes, numbered by ``seq``; a reply with
``reset`` begins the answer anew (extension ``watch``). A registry without the extension
is searched page by page instead, again and again. Either way :class:`Watching` takes
the replies and returns the changes that are real:

* A reply that was heard before changes nothing. One that was lost is asked for again,
  with the number before.
* A new beginning is compared with what was known. Agents that it shows are told when
  they are new or different; those that it does not show are told as removed once it is
  complete, and not before. So a registry that restarts causes no noise.
* ``last_seen`` alone is no change: it moves with each heartbeat.

A watch that does not yet know the whole answer has ``is_complete`` false.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec

from pilotfleet.errors import Busy, ProtocolError
from pilotfleet.protocol.registry.messages import MAX_NODE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Self

__all__ = [
    "WATCH_EXTENSION",
    "Change",
    "ChangeKind",
    "Row",
    "RowBudget",
    "TooManyRows",
    "WatchQuery",
    "Watching",
]

WATCH_EXTENSION: Final = "watch"
"""What a registry that can be watched tells at registration."""

MAX_TEXT: Final = 1024
"""Of a watch id or a cursor that a registry gives, in characters."""

MAX_ROWS: Final = 1000
"""In one reply: nobody asks for more."""
MAX_WORD: Final = 128
MAX_WORDS: Final = 32
"""Of one row. What a registry of ours knows is shorter; without bounds a few rows could
take all memory."""

_Node = Annotated[int, msgspec.Meta(gt=0, le=MAX_NODE)]
_Token = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
_Number = Annotated[int, msgspec.Meta(ge=-(1 << 53), le=1 << 53)]
_Word = Annotated[str, msgspec.Meta(max_length=MAX_WORD)]
_Words = Annotated[tuple[_Word, ...], msgspec.Meta(max_length=MAX_WORDS)]


class Row(msgspec.Struct, frozen=True, gc=False):
    """An agent as the registry's search shows it."""

    node_id: _Node
    address: _Word = ""
    hostname: _Word = ""
    tags: _Words = ()
    polo: _Number = 0
    online: bool = False
    last_seen: _Word = ""
    """When the registry told the row; it is not told again for this alone."""

    def is_same(self, other: Row) -> bool:
        """Tell whether both say the same, but for when the agent was seen."""
        return (self.hostname, self.tags, self.polo, self.online, self.address) == (
            other.hostname,
            other.tags,
            other.polo,
            other.online,
            other.address,
        )


class ChangeKind(StrEnum):
    """What happened to an agent, as seen by whoever watches."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Change:
    """One agent came, is different now, or went."""

    kind: ChangeKind
    row: Row
    """What it is like now; of one that went, what it was like."""


@dataclass(frozen=True, slots=True)
class WatchQuery:
    """What is watched. Equal questions are equal values; see :meth:`of`."""

    tags: tuple[str, ...] = ()
    any_tag: bool = False
    hostname_prefix: str = ""
    online: bool = False

    @classmethod
    def of(
        cls,
        tags: Iterable[str] = (),
        *,
        any_tag: bool = False,
        hostname_prefix: str = "",
        online: bool = False,
    ) -> Self:
        """Return the question; order and repetition of tags mean nothing."""
        distinct = tuple(sorted({tag.removeprefix("#") for tag in tags}))
        # Of one tag, "all of them" and "one of them" are the same.
        is_any = any_tag and len(distinct) > 1
        return cls(distinct, is_any, hostname_prefix, online)

    def fields(self) -> dict[str, Any]:
        """Return the question as fields of a request, ``search`` or ``watch``."""
        return {
            "tags": list(self.tags),
            "any": self.any_tag,
            "hostname_prefix": self.hostname_prefix,
            "online": self.online,
        }


class TooManyRows(Busy):
    """More agents fit a question than may be kept."""


class RowBudget:
    """How many rows some watches, and those who read them, may keep together."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self) -> None:
        """Count one row.

        Raises:
            TooManyRows: There are too many.
        """
        if self.used >= self.limit:
            raise TooManyRows(
                f"more than {self.limit} agents are watched here",
                hint="watch fewer: by tag, by name, or only those online",
            )
        self.used += 1

    def give(self, count: int) -> None:
        """Count rows no more."""
        self.used -= count


_Rows = Annotated[list[Row], msgspec.Meta(max_length=MAX_ROWS)]


class _WatchReply(msgspec.Struct):
    # Without a name every question would begin anew, and at once.
    watch: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TEXT)]
    seq: _Number
    reset: bool = False
    added: _Rows = []
    changed: _Rows = []
    removed: Annotated[list[_Node], msgspec.Meta(max_length=MAX_ROWS)] = []
    more: bool = False


class _Page(msgspec.Struct):
    agents: _Rows = []
    next_cursor: _Token = ""


class Watching:
    """The agents that fit a question, as far as replies have told."""

    def __init__(self, rows: RowBudget) -> None:
        self._rows = rows
        self.known: dict[int, Row] = {}
        """By node id."""
        self.watch = ""
        """The registry's name of this watch; empty for none."""
        self.seq = 0
        """Up to where the registry's changes are known."""
        self.has_more = False
        """Whether the registry has more to tell at once."""
        self.was_empty = False
        """Whether the last reply had no rows at all."""
        self.is_complete = False
        """Whether all of the answer has been known at some time."""
        self._unseen: set[int] | None = None
        """While the answer is told anew: who was known and has not been told yet."""
        self._cursor = ""
        self._last = 0

    def close(self) -> None:
        """Forget everything."""
        self._rows.give(len(self.known))
        self.known = {}
        self.forget()

    # From the watch extension

    def request(self) -> dict[str, Any]:
        """Return the fields of the next request that say how far we are."""
        return {"watch": self.watch, "seq": self.seq}

    def forget(self) -> None:
        """Begin anew with the next request; what is known stays until then."""
        self.watch, self.seq, self.has_more = "", 0, False

    def receive(self, message: Mapping[str, Any]) -> list[Change]:
        """Take a ``watch_ok``; return what has really changed.

        Raises:
            ProtocolError: It is no such reply, or of another watch. Nothing is
                changed; go on after :meth:`forget`.
            TooManyRows: There are more agents than may be kept. Only ``close`` is left.
        """
        reply = _read(message, _WatchReply)
        self.was_empty = not (reply.added or reply.changed or reply.removed)
        if reply.reset:
            self.watch = reply.watch
            self._begin()
        elif reply.watch != self.watch:
            raise ProtocolError("the registry's reply is of another watch")
        elif reply.seq <= self.seq:
            # Nothing new; or a reply that came late, and was asked for again.
            self.has_more = False
            return []
        self.seq = reply.seq
        self.has_more = reply.more
        changes = self._drop(reply.removed)
        self._put(reply.added, changes)
        self._put(reply.changed, changes)
        if not reply.more:
            self._end(changes)
        return changes

    # From pages of a search

    def begin_pass(self) -> None:
        """Begin to search from the first page."""
        self.forget()
        self._cursor, self._last = "", 0
        self._begin()

    @property
    def cursor(self) -> str:
        """Where the next page begins; empty for the first, and after the last."""
        return self._cursor

    def receive_page(self, message: Mapping[str, Any]) -> list[Change]:
        """Take a ``search_ok``; return what has really changed.

        Raises:
            ProtocolError: It is no page that follows the one before. Go on with
                :meth:`begin_pass`.
            TooManyRows: There are more agents than may be kept.
        """
        page = _read(message, _Page)
        for row in page.agents:
            # Pages are in the order of ids. One that was not could go on for ever.
            if row.node_id <= self._last:
                raise ProtocolError("the registry's pages are out of order")
            self._last = row.node_id
        if page.next_cursor and not page.agents:
            raise ProtocolError("the registry's page is empty, and not the last one")
        changes: list[Change] = []
        self._put(page.agents, changes)
        self._cursor = page.next_cursor
        if not page.next_cursor:
            self._end(changes)
        return changes

    # Private

    def _begin(self) -> None:
        self._unseen = set(self.known)

    def _end(self, changes: list[Change]) -> None:
        self.is_complete = True
        unseen, self._unseen = self._unseen, None
        if unseen:
            changes += self._drop(sorted(unseen))

    def _put(self, rows: Iterable[Row], changes: list[Change]) -> None:
        for row in rows:
            if self._unseen:
                self._unseen.discard(row.node_id)
            before = self.known.get(row.node_id)
            if before is None:
                self._rows.take()
                changes.append(Change(ChangeKind.ADDED, row))
            elif not before.is_same(row):
                changes.append(Change(ChangeKind.CHANGED, row))
            self.known[row.node_id] = row

    def _drop(self, nodes: Iterable[int]) -> list[Change]:
        changes = []
        for node in nodes:
            if self._unseen:
                self._unseen.discard(node)
            row = self.known.pop(node, None)
            if row is not None:
                self._rows.give(1)
                changes.append(Change(ChangeKind.REMOVED, row))
        return changes


_Reply = TypeVar("_Reply", _WatchReply, _Page)


def _read(message: Mapping[str, Any], kind: type[_Reply]) -> _Reply:
    try:
        return msgspec.convert(message, kind)
    except (msgspec.ValidationError, ValueError) as error:
        raise ProtocolError(f"the registry's reply: {error}") from None
