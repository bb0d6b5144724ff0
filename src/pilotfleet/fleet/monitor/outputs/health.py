"""How a monitor itself is doing."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["MonitorHealth", "OutputCounters"]


@dataclass(slots=True)
class OutputCounters:
    """What went wrong with one output."""

    errors: int = 0
    dropped: int = 0
    """Records that it could not take in time."""


@dataclass(slots=True)
class MonitorHealth:
    """Counters of a monitor, beside the figures of its fleets."""

    started: float = 0.0
    """Wall time."""
    history_errors: int = 0
    last_event: dict[str, float] = field(default_factory=dict)
    """By fleet, the wall time of the last event."""
    outputs: dict[str, OutputCounters] = field(default_factory=dict)
    """By the name of the output."""

    def output(self, name: str) -> OutputCounters:
        """Return the counters of an output."""
        return self.outputs.setdefault(name, OutputCounters())
