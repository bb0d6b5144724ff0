"""The store: versioned keys with compare-and-set and a watch.

The shape is that of etcd under the Kubernetes API server. One counter numbers
all changes of a store; a key's *revision* is the number of its last change.
The directory in memory is a view of the store: it is filled by ``load``, kept
up to date by its own writes, and by ``watch`` where several replicas share one
store.

Rules that all back ends keep (``tests/registry/test_store.py`` runs one suite
over them):

* When ``write`` returns, the changes are durable.
* Revisions grow, within one ``write`` and from one to the next.
* A deleted key counts as absent: ``expected=0`` matches it.
* ``watch`` may leave out a value that was overwritten before it was read; it
  never leaves out the last one, and it keeps the order of revisions.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec

from pilotfleet.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from types import TracebackType

__all__ = ["MAX_VALUE", "Change", "Entry", "Store"]

MAX_VALUE: Final = 512 * 1024
"""Largest value in bytes; NATS refuses messages over 1 MiB."""


# Structs, because each registration makes some of both, and a frozen dataclass takes
# five times as long to make.
class Entry(msgspec.Struct, frozen=True, gc=False):
    """One key as it is stored."""

    key: str
    value: bytes | None
    """None: the key was deleted."""
    revision: int


class Change(msgspec.Struct, frozen=True, gc=False):
    """One key as it shall become."""

    key: str
    """Letters, digits and ``-_=.``, not starting or ending with a dot."""
    value: bytes | None
    """None deletes the key."""
    expected: int | None
    """The revision that the key must have; 0: it must not exist; None: any."""


class Store(abc.ABC):
    """Durable keys. Use as an async context manager, or call ``aclose``."""

    is_shared: ClassVar[bool] = False
    """Whether other processes are meant to write to it, so that it must be
    watched."""

    @abc.abstractmethod
    async def load(self) -> list[Entry]:
        """Return all existing keys in the order of their revisions.

        Raises:
            StorageError: The back end cannot be read.
        """

    async def write(self, changes: Sequence[Change]) -> list[int]:
        """Make ``changes`` durable and return their revisions.

        All or nothing on memory and SQLite. On NATS the changes are made in
        order and the first conflict stops, so callers put the change that
        decides (the unique name, the unique ID) first.

        A caller that is cancelled cannot know whether the changes were made.

        Raises:
            Conflict: A key does not have the expected revision.
            StorageError: A value is too large, or the back end refused, for
                example because the disk is full. Nothing was acknowledged.
        """
        for change in changes:
            # Here and not in the back ends: what works on the file of one machine
            # must not fail after the move to NATS.
            if change.value is not None and len(change.value) > MAX_VALUE:
                size = len(change.value)
                raise StorageError(
                    f"value of {change.key} is too large: {size} bytes, not"
                    f" {MAX_VALUE} at most"
                )
        return await self._write(changes) if changes else []

    @abc.abstractmethod
    def watch(self, after: int) -> AsyncGenerator[Entry, None]:
        """Yield every change, by anyone, with a revision above ``after``.

        The iterator does not end before it or the store is closed.
        """

    @abc.abstractmethod
    async def _write(self, changes: Sequence[Change]) -> list[int]:
        """Do what ``write`` promises; there are changes, of allowed sizes."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Finish writes that have begun and release the back end."""

    async def __aenter__(self) -> Store:
        """Return the store itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the store."""
        await self.aclose()
