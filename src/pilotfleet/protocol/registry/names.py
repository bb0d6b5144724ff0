"""The form of hostnames, tags and network names (registry.md section 3)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "MAX_NAME",
    "MAX_TAG",
    "MAX_TAGS",
    "RESERVED_HOSTNAMES",
    "check_hostname",
    "check_network_name",
    "is_hostname_prefix",
    "normalise_tags",
]

# From the specification.
MAX_NAME: Final = 63
"""Longest hostname and network name."""
MAX_TAG: Final = 32
MAX_TAGS: Final = 10
"""Tags per node."""
RESERVED_HOSTNAMES: Final = frozenset({"localhost", "backbone", "broadcast"})
RESERVED_NETWORKS: Final = frozenset({"backbone"})

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_TAG: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", re.ASCII)
_PREFIX: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
_NAME_RULE: Final = (
    "must be lowercase alphanumeric with hyphens, start/end with alphanumeric"
)
_SHOWN: Final = 64
"""How much of a wrong name an error text repeats."""


def check_hostname(name: str) -> None:
    """Accept a hostname that is not empty.

    Raises:
        InvalidArgument: With the reason as the registry words it.
    """
    if len(name.encode()) > MAX_NAME:
        raise InvalidArgument(f"hostname too long (max {MAX_NAME} chars)")
    if _NAME.fullmatch(name) is None:
        raise InvalidArgument(f"hostname {_NAME_RULE}")
    if name in RESERVED_HOSTNAMES:
        raise InvalidArgument(f'hostname "{name}" is reserved')


def check_network_name(name: str) -> None:
    """Accept the name of a network.

    Raises:
        InvalidArgument: With the reason as the registry words it.
    """
    if not name:
        raise InvalidArgument("network name required")
    if len(name.encode()) > MAX_NAME:
        raise InvalidArgument(f"network name too long (max {MAX_NAME} chars)")
    if _NAME.fullmatch(name) is None:
        raise InvalidArgument(f"network name {_NAME_RULE}")
    if name in RESERVED_NETWORKS:
        raise InvalidArgument(f'network name "{name}" is reserved')


def normalise_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Drop one leading ``#`` and duplicates, keep the order.

    Raises:
        InvalidArgument: A tag is not allowed, or there are too many.
    """
    found: dict[str, None] = {}
    for tag in tags:
        name = tag.removeprefix("#")
        _check_tag(name)
        found[name] = None
        if len(found) > MAX_TAGS:
            raise InvalidArgument(f"too many tags (max {MAX_TAGS})")
    return tuple(found)


def is_hostname_prefix(prefix: str) -> bool:
    """Tell whether some hostname can begin with ``prefix``."""
    return _PREFIX.fullmatch(prefix) is not None


def _check_tag(name: str) -> None:
    if not name:
        raise InvalidArgument("empty tag not allowed")
    if len(name.encode()) > MAX_TAG:
        raise InvalidArgument(f'tag "{name[:_SHOWN]}" too long (max {MAX_TAG} chars)')
    if _TAG.fullmatch(name) is None:
        raise InvalidArgument(
            f'tag "{name}" must be lowercase alphanumeric with hyphens'
        )
