"""Sub-brokers: what their publishers publish goes to the broker above them, too.

A broker above hears so one connection of each sub-broker, and its batches, instead of
one of each publisher. Events only go up: a broker forwards what it takes from
publishers, the broker above does not send it back, and no name in the list is the
broker's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pilotfleet.protocol.services.events import encode_event
from pilotfleet.protocol.topics import matches

if TYPE_CHECKING:
    from pilotfleet.protocol.services.events import Event
    from pilotfleet.services.events.publisher import BrokerConfig, Publisher
    from pilotfleet.services.events.publishing import Publishing

__all__ = ["RollUp"]

GATHER_S: Final = 0.1
"""How long events wait for others to be written with."""
MAX_KNOWN_TOPICS: Final = 1_000


class RollUp:
    """Forwards what the brokers of a host take, if they are among the fleet's.

    Args:
        publishing: Makes the connections.
        config: Names of the fleet's brokers, of those above, and the topics.
    """

    def __init__(self, publishing: Publishing, config: BrokerConfig) -> None:
        self._publishing = publishing
        self._config = config
        self._publishers: dict[int, Publisher | None] = {}
        self._wanted: dict[str, bool] = {}

    def forward(self, agent: Any, event: Event) -> bool:
        """Take an event that the broker of an agent took; tell whether it goes up.

        Never waits. While no broker above can be reached, the oldest events give way.
        """
        if agent.node_id not in self._publishers:
            self._publishers[agent.node_id] = self._open(agent)
        publisher = self._publishers[agent.node_id]
        if publisher is None or not self._wants(event.topic):
            return False
        publisher.post(encode_event(*event))
        return True

    def _open(self, agent: Any) -> Publisher | None:
        own = {agent.name, agent.hostname}
        above = [name for name in self._config.roll_up if name not in own]
        if not above or own.isdisjoint(self._config.brokers):
            return None
        return self._publishing.open_publisher(agent, above, gather_s=GATHER_S)

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
