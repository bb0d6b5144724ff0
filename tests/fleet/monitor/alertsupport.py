"""What tests of the alerts share."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pilotfleet.fleet.monitor.alerts.rules import parse_rules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilotfleet.fleet.monitor.alerts.book import AlertChange
    from pilotfleet.fleet.monitor.alerts.rules import Rule

__all__ = ["FLEET", "MadeAgent", "MadeValues", "rule", "rules", "told"]

FLEET = "batch"


@dataclass
class MadeAgent:
    """An agent as a test wants it."""

    name: str
    last_seen: float = 0.0


@dataclass
class MadeValues:
    """Values that a test sets; satisfies ``Values``."""

    metrics: dict[str, float | None] = field(default_factory=dict)
    tags: dict[str, dict[str, float]] = field(default_factory=dict)
    agents: dict[str, float | None] = field(default_factory=dict)
    """Whatever metric is asked for."""
    seen: dict[str, float] = field(default_factory=dict)
    """Last events by topic, ``tag:…`` or name of an agent."""
    is_heard: bool = True
    behind: float = 0.0
    names: tuple[str, ...] = (FLEET,)

    def read(self, at: float) -> None:
        """The test sets them."""

    def fleets(self) -> tuple[str, ...]:
        return self.names

    def is_current(self, fleet: str, at: float) -> bool:
        return self.is_heard

    def behind_s(self, fleet: str) -> float:
        return self.behind

    def fleet_value(self, fleet: str, metric: str) -> float | None:
        return self.metrics.get(metric)

    def tag_value(self, fleet: str, tag: str, metric: str) -> float | None:
        return self.tags.get(tag, {}).get(metric)

    def agent_values(
        self, fleet: str, metric: str | None
    ) -> Iterator[tuple[MadeAgent, float | None]]:
        for name, value in self.agents.items():
            yield MadeAgent(name, self.seen.get(name, 0.0)), value

    def last_event_at(self, fleet: str, pattern: str) -> float | None:
        return self.seen.get(pattern)

    def last_health_at(self, fleet: str, tag: str) -> float | None:
        return self.seen.get(f"tag:{tag}")


def rules(text: str) -> tuple[Rule, ...]:
    """Return the rules of a file."""
    tomllib.loads(text)
    return parse_rules(text.encode(), "alerts.toml")


def rule(text: str, *, name: str = "r") -> Rule:
    """Return a rule; ``text`` is its keys but the name."""
    return rules(f'[[rule]]\nname = "{name}"\n{text}')[0]


def told(changes: list[AlertChange]) -> list[tuple[Any, ...]]:
    """Return what changes say, shortened."""
    return [(each.row.subject, each.row.state) for each in changes]
