"""The figures of the network, and how they were in the last minutes."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

import pilotfleet

if TYPE_CHECKING:
    from pilotfleet.registry.dashboard.survey import Survey, Surveyor
    from pilotfleet.registry.dashboard.view import RendezvousView

__all__ = ["NetworkFigures"]

SAMPLE_S: Final = 5
SAMPLES: Final = 360
"""Half an hour."""
SHARED_S: Final = 0.9
"""How long one answer serves all who follow the figures."""


class NetworkFigures:
    """Counts what is there, and remembers a little of what was."""

    def __init__(self, view: RendezvousView, surveyor: Surveyor) -> None:
        self._view = view
        self._surveyor = surveyor
        self._samples: deque[tuple[float, int, int, float]] = deque(maxlen=SAMPLES)
        """Time, online, public agents online, requests a second."""
        self._before = (view.clock.now(), view.stats.request_count)
        self._encoded = b""
        self._encoded_at = float("-inf")

    async def run(self) -> None:
        """Take a sample each few seconds; forever."""
        while True:
            self.sample()
            await asyncio.sleep(SAMPLE_S)

    def sample(self) -> None:
        """Remember how it is now."""
        view = self._view
        now, count = view.clock.now(), view.stats.request_count
        then, before = self._before
        rate = (count - before) / (now - then) if now > then else 0.0
        self._before = (now, count)
        self._samples.append(
            (round(view.clock.wall(), 1), view.online, view.public_online, rate)
        )

    def now(self) -> dict[str, Any]:
        """Return the figures of now."""
        view = self._view
        survey = self._surveyor.last()
        return {
            "at": int(view.clock.wall()),
            "version": pilotfleet.__version__,
            "uptime_s": int(view.uptime_s),
            "online": view.online,
            "registered": view.registered,
            "public": view.public_bits.bit_count(),
            "public_online": view.public_online,
            "networks": view.networks,
            "trust_links": view.directory.trust.pairs,
            "requests": view.stats.request_count,
            "requests_per_s": round(self._samples[-1][3], 1) if self._samples else 0.0,
            "polo": _polo(survey),
            "versions": dict(survey.versions) if survey is not None else {},
            "tags": survey.tag_count if survey is not None else 0,
        }

    def encoded(self) -> bytes:
        """Return the figures as JSON, counted once for all who ask just now."""
        now = self._view.clock.now()
        if now - self._encoded_at >= SHARED_S:
            self._encoded = msgspec.json.encode(self.now())
            self._encoded_at = now
        return self._encoded

    def history(self) -> dict[str, Any]:
        """Return the samples, the oldest first."""
        samples = self._samples
        return {
            "resolution_s": SAMPLE_S,
            "times": [sample[0] for sample in samples],
            "online": [sample[1] for sample in samples],
            "public_online": [sample[2] for sample in samples],
            "requests_per_s": [round(sample[3], 2) for sample in samples],
        }


def _polo(survey: Survey | None) -> dict[str, Any]:
    """Return how polo is distributed over the public agents."""
    if survey is None or not survey.polo:
        return {"agents": 0, "p50": 0, "p90": 0, "highest": 0, "histogram": []}
    return {
        "agents": len(survey.polo),
        "p50": survey.percentile(0.5),
        "p90": survey.percentile(0.9),
        "highest": survey.polo[-1],
        "histogram": survey.polo_bins,
    }
