"""Configuration of the event service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["WRITE_SIZE", "BrokerConfig"]

WRITE_SIZE: Final = 64 << 10
"""Events are written together up to this size."""


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """Limits of the event service."""

    brokers: tuple[str, ...] = ()
    """Names, addresses or numbers of the fleet's broker and its stand-bys, in order;
    none means the own node."""
    roll_up: tuple[str, ...] = ()
    """The broker above this one, and its stand-bys; none means there is none."""
    roll_up_topics: tuple[str, ...] = ("fleet.*",)
    """Patterns of the topics that it gets."""
    max_queued_events: int = 4096
    """For a subscriber or a publisher; more costs memory, fewer lose bursts."""
    max_queued_bytes: int = 4 << 20
    """The same in bytes. A single larger event still passes."""
    member_burst: int = 20_000
    """Events at once from a member of the fleet; strangers have 200."""
    member_rate: float = 10_000.0
    """Events per second from a member of the fleet; strangers have 100."""
    publish_timeout_s: float = 30.0
    """How long a publisher that wants to know waits for the broker."""
    max_publishers: int = 1024
    """Brokers that one agent publishes to. Beyond it the connection that was not
    used for longest gives way, unless events wait on all of them."""
