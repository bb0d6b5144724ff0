"""Samples of the seconds that ended, until history collects them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from pilotfleet.fleet.monitor.samples import Sample
from pilotfleet.fleet.monitor.view.tasks import Second

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pilotfleet.fleet.monitor.figures import AgentCounts, PoloFigures, Traffic

__all__ = ["SampleBook", "fleet_gauges"]

MAX_WAITING_S: Final = 300
"""Seconds of samples that wait for ``collect``."""
_NOTHING: Final = Second(0, 0, None)


class SampleBook:
    """One sample of the fleet for each second, and one of each tag that is shown."""

    def __init__(self) -> None:
        self._waiting: deque[list[Sample]] = deque(maxlen=MAX_WAITING_S)

    def add_fleet(
        self,
        second: int,
        tasks: Second,
        *,
        trust: tuple[int, int],
        gauges: dict[str, float],
    ) -> None:
        """Add a second of the fleet; ``trust``: links made and revoked in it."""
        linked, revoked = trust
        sample = Sample(
            second=second,
            tag="",
            completed=tasks.completed,
            failed=tasks.failed,
            times=tasks.times,
            gauges=gauges,
            trust_linked=linked,
            trust_revoked=revoked,
        )
        self._waiting.append([sample])

    def add_tags(
        self,
        second: int,
        ended: Mapping[str, Second],
        counts: Mapping[str, AgentCounts],
    ) -> None:
        """Add, to the second of the fleet, that of each tag of ``counts``."""
        self._waiting[-1] += [
            Sample(
                second=second,
                tag=tag,
                completed=tasks.completed,
                failed=tasks.failed,
                times=tasks.times,
                gauges=_agent_gauges(agents),
            )
            for tag, agents in counts.items()
            for tasks in (ended.get(tag, _NOTHING),)
        ]

    def collect(self) -> list[Sample]:
        """Return, and forget, what waits, oldest first."""
        samples = [sample for second in self._waiting for sample in second]
        self._waiting.clear()
        return samples


def fleet_gauges(
    agents: AgentCounts, *, trust_links: int, polo: PoloFigures, traffic: Traffic
) -> dict[str, float]:
    """Return what is at the end of a second of a fleet."""
    gauges = _agent_gauges(agents)
    gauges["trust_links"] = float(trust_links)
    if polo.agents:
        gauges["polo_p50"] = float(polo.p50)
        gauges["polo_p90"] = float(polo.p90)
    gauges["tunnels"] = float(traffic.tunnels)
    gauges["sent_per_s"] = traffic.sent_per_s
    gauges["received_per_s"] = traffic.received_per_s
    return gauges


def _agent_gauges(counts: AgentCounts) -> dict[str, float]:
    return {
        "agents_alive": float(counts.alive),
        "agents_late": float(counts.late),
        "agents_lost": float(counts.lost),
    }
