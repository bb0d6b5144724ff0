"""Which store a URL means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfleet.errors import InvalidArgument
from pilotfleet.registry.store.memory import MemoryStore
from pilotfleet.registry.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from pilotfleet.registry.store.base import Store

__all__ = ["open_store"]

_FORMS = "memory:, sqlite:///PATH or nats://HOST:PORT"


def open_store(url: str) -> Store:
    """Return the store that ``url`` names; it connects when first used.

    * ``memory:``
    * ``sqlite:///absolute/path`` or ``sqlite:relative/path``
    * ``nats://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…][?replicas=N&bucket=NAME]``

    Raises:
        InvalidArgument: Not such a URL.
        NotSupported: NATS without the client library.
    """
    scheme, separator, rest = url.partition(":")
    if not separator:
        raise InvalidArgument(f"store {url!r} is not a URL", hint=f"use {_FORMS}")
    match scheme:
        case "memory" if not rest.strip("/"):
            return MemoryStore()
        case "sqlite":
            return SqliteStore(_sqlite_path(url, rest))
        case "nats" | "tls":
            # Late, because the client library is an optional dependency.
            from pilotfleet.registry.store.nats import open_nats_store

            return open_nats_store(url)
    raise InvalidArgument(f"store {url!r} is of no known kind", hint=f"use {_FORMS}")


def _sqlite_path(url: str, rest: str) -> str:
    path = rest[2:] if rest.startswith("//") else rest
    if rest.startswith("//") and not path.startswith("/"):
        raise InvalidArgument(
            f"store {url!r} names a host", hint="an absolute path has three slashes"
        )
    if not path or path.endswith("/"):
        raise InvalidArgument(f"store {url!r} names no file", hint=f"use {_FORMS}")
    # "sqlite:///" before an absolute path makes four slashes; one is meant.
    return "/" + path.lstrip("/") if path.startswith("/") else path
