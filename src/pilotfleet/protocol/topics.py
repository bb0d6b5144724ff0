"""Topic patterns of the event bus, and a trie that matches them.

A topic is a text whose levels are divided by ``.`` or ``/``. A pattern is a
topic in which a whole level may be ``*``:

==================  ===========================================================
``*`` alone         every topic
``fleet.*``         a last level ``*``: every topic that begins with ``fleet.``
``fleet.*.health``  a ``*`` elsewhere: exactly one level, whatever it is
anything else       the one topic that is equal, byte for byte
==================  ===========================================================

A star that is only part of a level (``a*``) is an ordinary character. Every
pattern, read as a topic, matches itself. A text of more than 32 levels is no
pattern, whatever it holds: a thousand levels would cost a thousand nodes of the
trie. Official brokers know only equal topics and ``*`` alone (services.md section
5.2).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["ALL_TOPICS", "TopicTrie", "is_pattern", "matches"]

ALL_TOPICS: Final = "*"
MAX_LEVELS: Final = 32
"""Levels of a pattern; an ordinary topic may have more."""
_BEFORE_SEPARATOR: Final = re.compile(r"(?=[./])")
_SEPARATORS: Final = frozenset([".", "/"])
_STARS: Final = frozenset(["*", ".*", "/*"])
"""A star level, with the separator before it."""

Subscriber = TypeVar("Subscriber", bound="Hashable")


def is_pattern(topic: str) -> bool:
    """Tell whether ``topic`` may match a topic that is not equal to it."""
    if "*" not in topic:
        return False
    levels = _levels(topic)
    return len(levels) <= MAX_LEVELS and any(level in _STARS for level in levels)


def matches(pattern: str, topic: str) -> bool:
    """Tell whether one pattern matches one topic."""
    if pattern in (topic, ALL_TOPICS):
        return True
    if "*" not in pattern:
        return False
    wanted, given = _levels(pattern), _levels(topic)
    if len(wanted) > MAX_LEVELS:
        return False
    has_rest = wanted[-1] in (".*", "/*") and len(given) > len(wanted)
    return (has_rest or len(given) == len(wanted)) and all(
        want in (have, _star_like(have))
        for want, have in zip(wanted, given, strict=False)
    )


class TopicTrie(Generic[Subscriber]):
    """Which subscribers want a topic.

    A publication costs one dictionary look-up for equal topics, and one visit
    per stored pattern level that fits; it does not depend on the number of
    subscriptions that do not fit.
    """

    __slots__ = ("_all", "_exact", "_root", "_size")

    def __init__(self) -> None:
        self._all: dict[Subscriber, None] = {}
        self._exact: dict[str, dict[Subscriber, None]] = {}
        self._root: _Node[Subscriber] = _Node()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, pattern: str, subscriber: Subscriber) -> None:
        """Let ``subscriber`` match ``pattern``; adding twice changes nothing."""
        members = self._members(pattern)
        if subscriber not in members:
            members[subscriber] = None
            self._size += 1

    def remove(self, pattern: str, subscriber: Subscriber) -> None:
        """Undo :meth:`add`; a subscription that is not there changes nothing."""
        if pattern == ALL_TOPICS:
            removed = self._all.pop(subscriber, self) is None
        elif not is_pattern(pattern):
            removed = self._remove_exact(pattern, subscriber)
        else:
            removed = self._remove_pattern(pattern, subscriber)
        self._size -= removed

    def match(self, topic: str) -> list[Subscriber]:
        """Return the subscribers of ``topic``, each one once."""
        groups = [self._all] if self._all else []
        exact = self._exact.get(topic)
        if exact:
            groups.append(exact)
        if not self._root.is_empty:
            groups += self._root.find(_levels(topic))
        if len(groups) == 1:
            return list(groups[0])
        found: dict[Subscriber, None] = {}
        for members in groups:
            found.update(members)
        return list(found)

    def _members(self, pattern: str) -> dict[Subscriber, None]:
        if pattern == ALL_TOPICS:
            return self._all
        if not is_pattern(pattern):
            return self._exact.setdefault(pattern, {})
        return self._root.walk(_levels(pattern)).members

    def _remove_exact(self, pattern: str, subscriber: Subscriber) -> bool:
        members = self._exact.get(pattern)
        if members is None or subscriber not in members:
            return False
        del members[subscriber]
        if not members:
            del self._exact[pattern]
        return True

    def _remove_pattern(self, pattern: str, subscriber: Subscriber) -> bool:
        levels = _levels(pattern)
        path = [self._root]
        for level in levels:
            child = path[-1].children.get(level)
            if child is None:
                return False
            path.append(child)
        if subscriber not in path[-1].members:
            return False
        del path[-1].members[subscriber]
        # Prune, so that a stream of different patterns leaves nothing behind.
        while len(path) > 1 and path[-1].is_empty:
            path.pop()
            del path[-1].children[levels[len(path) - 1]]
        return True


class _Node(Generic[Subscriber]):
    """A level of the stored patterns; star levels are children like others."""

    __slots__ = ("children", "members")

    def __init__(self) -> None:
        self.children: dict[str, _Node[Subscriber]] = {}
        self.members: dict[Subscriber, None] = {}

    @property
    def is_empty(self) -> bool:
        return not self.children and not self.members

    def walk(self, levels: list[str]) -> _Node[Subscriber]:
        """Return the node of a pattern, making what is missing."""
        node = self
        for level in levels:
            node = node.children.setdefault(level, _Node())
        return node

    def find(self, levels: list[str]) -> list[dict[Subscriber, None]]:
        """Return the members of every pattern that fits a topic's levels."""
        found = []
        last = len(levels) - 1
        # Depth by depth, not by recursion.
        nodes = [self]
        for depth, level in enumerate(levels):
            star = _star_like(level)
            below = []
            for node in nodes:
                child = node.children.get(level)
                if child is not None and level != star:
                    below.append(child)
                child = node.children.get(star)
                if child is not None:
                    below.append(child)
                    # A last star also takes all that follows. Not at the last
                    # level, where its members are taken below.
                    if depth < last and star != "*" and child.members:
                        found.append(child.members)
            if not below:
                return found
            nodes = below
        found += [node.members for node in nodes if node.members]
        return found


def _levels(topic: str) -> list[str]:
    """Divide a topic into levels; each but the first begins with a separator.

    What is beyond the deepest pattern comes in one piece.
    """
    return _BEFORE_SEPARATOR.split(topic, MAX_LEVELS)


def _star_like(level: str) -> str:
    first = level[:1]
    return first + "*" if first in _SEPARATORS else "*"
