"""What a run has cost, and how long searches took."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

MSS = 1_448
"""Payload of a full TCP segment on Ethernet."""
LOOPBACK_MSS = 65_483
SEGMENT_OVERHEAD = 66
"""Ethernet, IPv4 and TCP with time stamps."""
DATAGRAM_OVERHEAD = 42
"""Ethernet, IPv4 and UDP."""


@dataclass(slots=True)
class Account:
    """Counts of one stretch of virtual time. Bytes are real; see ``wire_bytes``."""

    requests: Counter[str] = field(default_factory=Counter)
    """By type; those inside a batch count one by one."""
    errors: Counter[str] = field(default_factory=Counter)
    wakes: int = 0
    """Arrivals at connections."""
    service_s: float = 0.0
    """Processor time of decoding, answering and encoding: measured."""
    maintenance_s: float = 0.0
    """Processor time of sweeps and last-seen times: measured."""
    watching_s: float = 0.0
    """Processor time of looks at what watchers have not been told: measured."""
    compared: int = 0
    """Watches that were compared in these."""
    told: int = 0
    """Rows in answers to watchers."""
    checks: int = 0
    """Signatures that were not remembered."""
    changes: int = 0
    """Changes that went to the store."""
    seen_blocks: int = 0
    """Of these, what maintenance wrote: last-seen times of 256 nodes each."""
    bytes_in: int = 0
    bytes_out: int = 0
    datagrams: int = 0
    datagram_wakes: int = 0
    """Moments at which some arrived: one look at the beacon's socket each."""
    datagram_bytes_in: int = 0
    datagram_bytes_out: int = 0
    dials: Counter[int] = field(default_factory=Counter)
    """Attempts to connect, by second."""
    arrivals: Counter[int] = field(default_factory=Counter)
    """Requests that reached the registry, by second."""
    waits: Counter[float] = field(default_factory=Counter)
    """Pauses that ``retry_after`` led to, rounded to seconds."""
    search_s: list[float] = field(default_factory=list)
    """From sending to the reply, queueing included."""
    failed_searches: int = 0
    busy_s: float = 0.0
    """Virtual time in which the one process worked, by the table of service times."""

    def wire_bytes(self, *, mss: int = MSS) -> tuple[float, float]:
        """Return bytes in and out, with an estimate of the headers.

        A message takes the segments that it fills. An acknowledgement travels with
        the reply or the next request as often as on its own, so half of one is added
        for each arrival on either side.
        """
        return tuple(
            payload
            + SEGMENT_OVERHEAD * (self.wakes * 1.5 + payload // mss)
            + datagram_payload
            + DATAGRAM_OVERHEAD * self.datagrams
            for payload, datagram_payload in (
                (self.bytes_in, self.datagram_bytes_in),
                (self.bytes_out, self.datagram_bytes_out),
            )
        )  # type: ignore[return-value]


def percentile(values: list[float], share: float) -> float:
    """Return what this share of the values is at most; 0 where there are none."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0
