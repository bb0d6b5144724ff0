"""What a rule decides: what to store, what to answer, whom to tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pilotfleet.protocol.registry.messages import Reply
    from pilotfleet.registry.store.base import Change

__all__ = ["Decision"]


class Decision(msgspec.Struct, frozen=True):
    """The outcome of a request that changes something.

    Changes stand in an order that bears being cut short, because not every
    store writes them as one: a unique name comes before what refers to it, and
    a request that is repeated completes what was begun.
    """

    reply: Reply
    changes: list[Change] = msgspec.field(default_factory=list)
    locks: tuple[str, ...] = ()
    """Keys that must not change meanwhile, besides those of the changes."""
    notify: tuple[int, ...] = ()
    """Nodes for which something now waits at the registry."""
    seen: int = 0
    """A node that proved to be alive; 0: none."""
    reserved: int = 0
    """A node ID taken from the allocator; 0: none."""

    def keys(self) -> set[str]:
        """Return every key that must be held while this is written."""
        return {change.key for change in self.changes}.union(self.locks)
