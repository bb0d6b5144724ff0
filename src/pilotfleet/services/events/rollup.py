"""Sub-brokers: what their publishers publish goes to the broker above them, too.

A broker above hears so one connection of each sub-broker, and its batches, instead of
one of each publisher. Events only go up: a broker forwards what it takes, and no name
in its list is its own.

Two brokers that each have the other above them, or more in a circle, are a mistake
that no broker can see from its own flags. So each says to the one above how many
brokers its events have passed. What came up from a broker is never sent up to the same
one, which ends a circle of two. In a longer one an event stops after a few levels.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from pilotfleet.protocol.services.events import encode_event
from pilotfleet.protocol.topics import matches

if TYPE_CHECKING:
    from pilotfleet.protocol.services.events import Event
    from pilotfleet.services.events.config import BrokerConfig
    from pilotfleet.services.events.host import BrokerAgent
    from pilotfleet.services.events.publisher import Publisher
    from pilotfleet.services.events.publishing import Publishing

__all__ = ["FromBelow", "RollUp"]

logger = logging.getLogger(__name__)

GATHER_S: Final = 0.1
"""How long events wait for others to be written with."""
MAX_KNOWN_TOPICS: Final = 1_000
MAX_LEVELS: Final = 4
"""Brokers below one that an event may have passed. With 50 under each, four levels
are six million."""


class FromBelow(NamedTuple):
    """How an event came that another broker sends up."""

    node: int
    """The node of that broker."""
    levels: int
    """Brokers that it has passed, with that one."""


class RollUp:
    """Forwards what the brokers of a host take, if they are among the fleet's.

    Args:
        publishing: Makes the connections.
        config: Names of the fleet's brokers, of those above, and the topics.
    """

    def __init__(self, publishing: Publishing, config: BrokerConfig) -> None:
        self._publishing = publishing
        self._config = config
        self._above: dict[int, list[str]] = {}
        """By agent, the brokers above its own; none for most."""
        self._publishers: dict[int, dict[int, Publisher]] = {}
        """By agent, one for each number of levels that its events have passed."""
        self._wanted: dict[str, bool] = {}
        self._warned: set[int] = set()
        """Agents whose brokers were found in a circle."""

    def forward(
        self, agent: BrokerAgent, event: Event, from_below: FromBelow | None = None
    ) -> bool:
        """Take an event that the broker of an agent took; tell whether it goes up.

        Never waits. While no broker above can be reached, the oldest events give way.
        """
        if not self._config.roll_up or not self._wants(event.topic):
            return False
        above = self._brokers_above(agent)
        if not above or (from_below and self._is_circle(agent, from_below)):
            return False
        levels = from_below.levels + 1 if from_below else 1
        publishers = self._publishers.setdefault(agent.node_id, {})
        if levels not in publishers:
            publishers[levels] = self._publishing.open_roll_up(
                agent, above, levels=levels, gather_s=GATHER_S
            )
        publishers[levels].post(encode_event(*event))
        return True

    def _brokers_above(self, agent: BrokerAgent) -> list[str]:
        above = self._above.get(agent.node_id)
        if above is None:
            own = {agent.name, agent.hostname}
            is_broker = not own.isdisjoint(self._config.brokers)
            above = [name for name in self._config.roll_up if name not in own]
            above = self._above[agent.node_id] = above if is_broker else []
        return above

    def _is_circle(self, agent: BrokerAgent, from_below: FromBelow) -> bool:
        """Tell whether an event would come back to a broker that it has passed."""
        publishers = self._publishers.get(agent.node_id, {}).values()
        used = {above.broker.node for above in publishers if above.broker is not None}
        if from_below.node not in used and from_below.levels < MAX_LEVELS:
            return False
        if agent.node_id not in self._warned:
            self._warned.add(agent.node_id)
            logger.warning(
                "events of node %d come round to broker %s, and are not sent up again:"
                " which brokers have each other in --roll-up?",
                *(from_below.node, agent.name),
            )
        return True

    def _wants(self, topic: str) -> bool:
        wanted = self._wanted.get(topic)
        if wanted is None:
            # Topics are few and come again; those of a flood are not kept.
            if len(self._wanted) >= MAX_KNOWN_TOPICS:
                self._wanted.clear()
            patterns = self._config.roll_up_topics
            wanted = any(matches(pattern, topic) for pattern in patterns)
            self._wanted[topic] = wanted
        return wanted
