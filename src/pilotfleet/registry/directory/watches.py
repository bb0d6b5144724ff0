"""Watched searches: what each watcher was told, and what is new since.

A watch is the question of a search and the set of nodes that its owner has been
told. What there is to tell is the difference between that set and what the search
finds now, so every rule of search and of visibility holds by itself, and whoever
missed something gets it with the next answer, whatever it was.

The watcher names the ``seq`` of the last answer that it has. The state before and
the one after the last answer are kept, so an answer that was lost is made anew from
where the watcher is; such a one has a ``seq`` of its own. Anything else, also a watch
of somebody else, begins again: a *reset*, which makes void what was known before.

Thousands may ask the same. Then they have been told the same set as well, and share
it: it is compared and kept once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pilotfleet.registry.directory.frozenids import NO_IDS, FrozenIds
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.directory.search import Query, matches
from pilotfleet.registry.directory.visibility import audience
from pilotfleet.registry.directory.watchmemory import Shelf

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.nodes import Node

__all__ = ["Delta", "Question", "Watch", "WatchLimits", "Watches"]

MIB: Final = 1024 * 1024
RETRY_S: Final = 10.0
"""Told to those for whose watch there is no room."""
RESULTS: Final = 256
"""Last results that are kept, so that equal ones are one; a popular one takes 125 KB
at a million nodes, which its watchers have been told as well."""
STEPS: Final = 64
"""Differences that are kept while nothing changes, for those who have to be told the
same."""


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """How many watches are kept, and for how long."""

    most: int = 20_000
    """Watches. Each takes up to 2 KB, beside what it was told."""

    most_per_ip: int = 5_000
    """Of one other host; a whole fleet may share one address."""

    size_bytes: int = 512 * MIB
    """What all watches have been told: at a million nodes up to 125 KB for each
    different question."""

    size_bytes_per_ip: int = 128 * MIB
    """Of one other host."""

    forget_after_s: float = 120.0
    """A watch that nobody asks about for so long is forgotten. Its owner, if he
    comes back, is told everything anew."""


@dataclass(frozen=True, slots=True)
class Question:
    """Who asks what, and what he knows already."""

    query: Query
    """Without limit and place."""
    requester: Node | None = None
    watch: str = ""
    seq: int = 0
    limit: int = 1000
    """Most nodes in the answer."""
    source: str | None = None
    """The address that it comes from; None: this host, which has no limit."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new. Equal ones share their lists, so these must not be changed."""

    watch: str
    seq: int
    reset: bool
    added: list[int]
    changed: list[int]
    removed: list[int]
    total: int
    more: bool

    @property
    def is_news(self) -> bool:
        """Whether there is anything to tell."""
        return self.reset or bool(self.added or self.changed or self.removed)

    @property
    def size(self) -> int:
        """How many nodes are in it."""
        return len(self.added) + len(self.changed) + len(self.removed)


class _State:
    """What a watcher knows after one answer."""

    __slots__ = ("rows", "seq", "stale", "told")

    def __init__(self, seq: int, told: FrozenIds, stale: FrozenIds, rows: int) -> None:
        self.seq = seq
        """0: nothing."""
        self.told = told
        self.stale = stale
        """Told nodes whose row may be another, but for those since ``rows``."""
        self.rows = rows
        """How many changes of rows there had been."""


class Watch:
    """One watch. For others than its table, only ``is_behind`` is of interest."""

    __slots__ = (
        "asked_at",
        "base",
        "is_behind",
        "last",
        "name",
        "query",
        "requester",
        "revision",
        "seq",
        "source",
    )

    def __init__(self, name: str, question: Question, rows: int) -> None:
        self.name = name
        self.query = question.query
        self.requester = question.requester
        self.source = question.source
        self.base = _State(0, NO_IDS, NO_IDS, rows)
        """What the watcher knows for sure, having said so."""
        self.last = self.base
        """What it knows if it got the last answer."""
        self.seq = 0
        """The highest that was given out."""
        self.is_behind = True
        """There is more to tell than fitted into the last answer."""
        self.revision = -1
        """The directory's when it was compared last."""
        self.asked_at = 0.0


@dataclass(frozen=True, slots=True)
class _Step:
    """The way from a state to what is found now, as far as the limit lets it go."""

    added: list[int]
    changed: list[int]
    removed: list[int]
    told: FrozenIds
    stale: FrozenIds
    more: bool


class Watches:
    """All watches of a registry. Pure: no clock and no randomness of its own."""

    def __init__(
        self,
        directory: Directory,
        *,
        limits: WatchLimits | None = None,
        make_name: Callable[[], str],
    ) -> None:
        self._directory = directory
        self._limits = limits or WatchLimits()
        self._make_name = make_name
        # Those who asked last are last.
        self._watches: OrderedDict[str, Watch] = OrderedDict()
        self._shelf = Shelf()
        self._found: OrderedDict[Hashable, tuple[int, FrozenIds]] = OrderedDict()
        """By what it depends on, with the revision that it is of."""
        self._steps: dict[Hashable, tuple[_State, FrozenIds, _Step]] = {}
        """Of the directory as it is at ``_revision``."""
        self._recent: dict[int, FrozenIds | None] = {}
        """The same for whose row is another since so many changes of rows. Those who
        were compared together have all the same number."""
        self._revision = -1

    def __len__(self) -> int:
        return len(self._watches)

    @property
    def size_bytes(self) -> int:
        """What is kept of what was told."""
        return self._shelf.size_bytes

    def open(self, question: Question, now: float) -> Watch:
        """Return the watch that is asked about, or a new one.

        Raises:
            Refused: There is no room for another one.
        """
        self.forget(now)
        watch = self._watches.get(question.watch)
        if watch is None or not self._accept(watch, question):
            watch = self._make(question)
        watch.asked_at = now
        self._watches.move_to_end(watch.name)
        return watch

    def is_current(self, watch: Watch) -> bool:
        """Tell whether nothing at all has changed since the last comparison."""
        return (
            not watch.is_behind and watch.revision == self._directory.changes.revision
        )

    def group_of(self, watch: Watch) -> Hashable:
        """Return what the result depends on; it is found once for equal ones."""
        return watch.query, audience(self._directory, watch.requester)

    def unchanged(self, watch: Watch) -> Delta:
        """Return the answer that nothing is new, without looking."""
        base = watch.base
        return Delta(
            watch.name, base.seq, False, [], [], [], base.told.count, more=False
        )

    def compare(self, watch: Watch, limit: int) -> Delta:
        """Return what the watcher does not know yet.

        Raises:
            Refused: The node that watches has gone, or there is no room.
        """
        if self._watches.get(watch.name) is not watch:
            # Its owner asks something else by now.
            return self.unchanged(watch)
        requester = watch.requester
        if requester is not None and not requester.record.live:
            self._drop(watch)
            raise Refused(f"node {requester.record.id}: node not found")
        base, rows = watch.base, self._directory.changes.rows
        found = self._find(watch)
        step = self._step(base, found, limit)
        watch.revision = self._directory.changes.revision
        watch.is_behind = step.more
        reset = base.seq == 0
        news = reset or bool(step.added or step.changed or step.removed)
        if news:
            watch.seq += 1
            last = _State(watch.seq, step.told, step.stale, rows)
            self._remember(watch, base, last)
        elif base.told is step.told and base.stale is step.stale:
            base.rows = rows
        else:
            # An equal set, but the one that others have as well.
            base = _State(base.seq, step.told, step.stale, rows)
            self._remember(watch, base, base)
        return Delta(
            watch.name,
            watch.last.seq,
            reset,
            step.added,
            step.changed,
            step.removed,
            found.count,
            step.more,
        )

    def forget(self, now: float) -> None:
        """Forget the watches that nobody asked about for long."""
        oldest_kept = now - self._limits.forget_after_s
        while self._watches:
            watch = next(iter(self._watches.values()))
            if watch.asked_at >= oldest_kept:
                return
            self._drop(watch)

    def _accept(self, watch: Watch, question: Question) -> bool:
        """Take note of what the watcher has; False if that is not known here."""
        # By identity: a node has one object for ever, and nobody else's watch is
        # shown, or even ended, by its name.
        if watch.requester is not question.requester:
            return False
        if question.query != watch.query or not question.seq:
            self._drop(watch)
            return False
        if question.seq == watch.last.seq:
            if watch.base is not watch.last:
                self._remember(watch, watch.last, watch.last)
            return True
        if question.seq == watch.base.seq:
            # The last answer was lost, and what it said has to be said again.
            self._remember(watch, watch.base, watch.base)
            watch.is_behind = True
            return True
        self._drop(watch)
        return False

    def _make(self, question: Question) -> Watch:
        limits, source = self._limits, question.source
        if len(self._watches) >= limits.most:
            raise _full(f"too many watches (max {limits.most})")
        if source is not None and self._shelf.watches(source) >= limits.most_per_ip:
            raise _full(f"too many watches from {source} (max {limits.most_per_ip})")
        watch = Watch(self._make_name(), question, self._directory.changes.rows)
        self._watches[watch.name] = watch
        self._shelf.open(source)
        for ids in _held(watch.base, watch.last):
            self._shelf.hold(source, ids)
        return watch

    def _drop(self, watch: Watch) -> None:
        if self._watches.pop(watch.name, None) is watch:
            for ids in _held(watch.base, watch.last):
                self._shelf.release(watch.source, ids)
            self._shelf.close(watch.source)

    def _remember(self, watch: Watch, base: _State, last: _State) -> None:
        """Replace the two states of a watch."""
        old, new = _held(watch.base, watch.last), _held(base, last)
        watch.base, watch.last = base, last
        for ids in new:
            self._shelf.hold(watch.source, ids)
        for ids in old:
            self._shelf.release(watch.source, ids)
        limits, source = self._limits, watch.source
        if self._shelf.size_bytes > limits.size_bytes:
            self._drop(watch)
            raise _full("watches take too much memory")
        if source is None:
            return
        if self._shelf.size_bytes_of(source) > limits.size_bytes_per_ip:
            self._drop(watch)
            raise _full(f"watches from {source} take too much memory")

    def _find(self, watch: Watch) -> FrozenIds:
        revision = self._directory.changes.revision
        group = self.group_of(watch)
        last_revision, last = self._found.pop(group, (-1, NO_IDS))
        if last_revision != revision:
            found = matches(self._directory, watch.query, watch.requester)
            # Whoever was told the last one need not be compared with its equal.
            last = last if found.is_same(last) else found
        self._found[group] = revision, last
        if len(self._found) > RESULTS:
            self._found.popitem(last=False)
        return last

    def _step(self, base: _State, found: FrozenIds, limit: int) -> _Step:
        revision = self._directory.changes.revision
        if revision != self._revision or len(self._steps) >= STEPS:
            self._revision = revision
            self._steps.clear()
            self._recent.clear()
        key = id(base.told), id(base.stale), base.rows, id(found), limit
        known = self._steps.get(key)
        if known is None:
            # With the objects, whose ids are nobody else's as long as they are there.
            known = self._steps[key] = base, found, self._make_step(base, found, limit)
        return known[2]

    def _make_step(self, base: _State, found: FrozenIds, limit: int) -> _Step:
        told, stale = base.told, self._stale(base)
        gone, new, other = told.minus(found), found.minus(told), stale.common(found)
        removed = gone.first(limit)
        changed = other.first(limit - len(removed))
        added = new.first(limit - len(removed) - len(changed))
        if gone.count + other.count + new.count <= limit:
            return _Step(added, changed, removed, found, NO_IDS, more=False)
        told = told.minus(FrozenIds.of(removed)).plus(FrozenIds.of(added))
        # With those that are still to be removed: they may come back before.
        stale = stale.minus(FrozenIds.of(changed)).common(told)
        return _Step(added, changed, removed, told, stale, more=True)

    def _stale(self, base: _State) -> FrozenIds:
        """Return the told nodes whose row may be another than the told one."""
        if self._directory.changes.rows == base.rows:
            return base.stale.common(base.told)
        recent = self._rows_since(base.rows)
        # Too many to know which: then all.
        if recent is None:
            return base.told
        return base.stale.plus(recent).common(base.told)

    def _rows_since(self, rows: int) -> FrozenIds | None:
        if rows not in self._recent:
            recent = self._directory.changes.rows_since(rows)
            self._recent[rows] = None if recent is None else FrozenIds.of(recent)
        return self._recent[rows]


def _held(*states: _State) -> list[FrozenIds]:
    return [ids for state in states for ids in (state.told, state.stale)]


def _full(problem: str) -> Refused:
    return Refused(
        f"{problem}: ask again later, or share one watch among those who ask the same",
        retry_after=RETRY_S,
    )
