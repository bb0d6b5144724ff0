"""Round-trip time and the retransmission timeout (wire.md section 11.8)."""

from __future__ import annotations

from typing import Final

__all__ = ["RttEstimator"]

# From the specification.
INITIAL_RTO_S: Final = 1.0
MIN_RTO_S: Final = 0.2
LATE_ACK_RTO_S: Final = 1.0
"""The same where acknowledgements may wait (RFC 6298, section 2.4)."""
MAX_RTO_S: Final = 10.0
GRANULARITY_S: Final = 0.01
BACKOFF_JITTER: Final = 0.25
"""A doubled timeout grows by up to this share more, so that senders who lost
their packets to the same queue do not come back together."""


class RttEstimator:
    """Smoothed round-trip time of one connection.

    The caller keeps Karn's rule: it never offers a sample of a segment that was
    sent more than once.
    """

    __slots__ = ("_least", "rto", "rttvar", "srtt")

    def __init__(self) -> None:
        self.srtt = 0.0
        """Seconds; 0 before the first sample."""
        self.rttvar = 0.0
        self.rto = INITIAL_RTO_S
        self._least = MIN_RTO_S

    def expect_late_acks(self) -> None:
        """Allow for acknowledgements that wait at the peer."""
        self._least = LATE_ACK_RTO_S
        self.rto = max(self.rto, self._least)

    def add_sample(self, sample_s: float) -> None:
        """Take one measured round trip and end any back-off."""
        if self.srtt:
            self.rttvar += (abs(self.srtt - sample_s) - self.rttvar) / 4
            self.srtt += (sample_s - self.srtt) / 8
        else:
            # A clock may stand still between two calls; zero means "no sample".
            self.srtt = sample_s or 1e-9
            self.rttvar = sample_s / 2
        self.rto = self._computed()

    def back_off(self, chance: float) -> None:
        """Double the timeout after it ran out; ``chance`` is random in [0, 1)."""
        self.rto = min(self.rto * 2 * (1 + BACKOFF_JITTER * chance), MAX_RTO_S)

    def ease(self, elapsed_s: float) -> None:
        """Shorten a backed-off timeout: a repeated segment has been acknowledged.

        Which of its copies the peer answered is unknown, so this is no sample. But
        under steady loss everything in flight has been repeated, no sample comes
        for long, and one bad moment would leave every later loss a 10 s wait. If
        the answer was to an older copy after all, the timeout is too short and
        backs off again; its random part keeps that from repeating for ever.

        Where acknowledgements wait, most are for the older copy: the longer timeout
        stays until there is a sample.
        """
        if self._least == MIN_RTO_S:
            self.rto = min(self.rto, max(self._computed(), 2 * elapsed_s))

    def _computed(self) -> float:
        if not self.srtt:
            return INITIAL_RTO_S
        rto = self.srtt + max(GRANULARITY_S, 4 * self.rttvar)
        return min(max(rto, self._least), MAX_RTO_S)
