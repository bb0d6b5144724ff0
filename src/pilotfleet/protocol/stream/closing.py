"""The waits at the end of a connection (wire.md section 11.12).

There are three, in this order, and most connections need only the last: the peer's
FIN came before its data; our data is not acknowledged yet; our FIN is sent and the
peer's is awaited.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pilotfleet.protocol.stream.config import StreamConfig

__all__ = ["CloseStep", "CloseWatch"]

# From the specification.
HELD_FIN_S: Final = 15.0


class CloseStep(Enum):
    """What a closing connection should do."""

    NOTHING = "nothing"
    TAKE_HELD_FIN = "take the held FIN"
    END = "send the FIN although data is not acknowledged"
    REPEAT_FIN = "send the FIN again"
    EXPIRE = "expire"


class CloseWatch:
    """How long a closing connection waits, and for what."""

    __slots__ = ("_config", "_fin_sends", "_mark", "_until", "deadline", "held_fin")

    def __init__(self, config: StreamConfig, deadline: float) -> None:
        self.deadline = deadline
        self.held_fin: int | None = None
        """The sequence number of a FIN that came before its data."""
        self._config = config
        self._until = deadline
        self._mark = 0
        self._fin_sends = 0

    @classmethod
    def hold(cls, fin: int, config: StreamConfig, now: float) -> CloseWatch:
        """Wait for what is missing before the peer's FIN."""
        watch = cls(config, now + HELD_FIN_S)
        watch.held_fin = fin
        return watch

    @classmethod
    def linger(cls, una: int, config: StreamConfig, now: float) -> CloseWatch:
        """Wait for our data to be acknowledged."""
        watch = cls(config, now + config.linger_s)
        watch._until = now + config.max_linger_s
        watch._mark = una
        return watch

    @property
    def has_sent_fin(self) -> bool:
        """Whether our FIN has left at least once."""
        return self._fin_sends > 0

    def fin_sent(self, now: float, rto: float) -> None:
        """Note that our FIN left, first or again."""
        if not self._fin_sends:
            self._until = now + self._config.residence_s
        self._fin_sends += 1
        self.deadline = self._until
        if self._fin_sends < self._config.fin_sends:
            gap = rto * 2 ** (self._fin_sends - 1)
            self.deadline = min(now + gap, self._until)

    def check_held_fin(self, now: float, heard_at: float) -> CloseStep:
        """Take an early FIN after all once nothing more comes."""
        self.deadline = heard_at + HELD_FIN_S
        return CloseStep.TAKE_HELD_FIN if self.deadline <= now else CloseStep.NOTHING

    def check_linger(self, now: float, una: int) -> CloseStep:
        """Wait on while acknowledgements come in, but not for ever."""
        if una == self._mark or now >= self._until:
            return CloseStep.END
        self._mark = una
        self.deadline = min(now + self._config.linger_s, self._until)
        return CloseStep.NOTHING

    def check_fin_wait(self, now: float, *, is_acknowledged: bool) -> CloseStep:
        """Repeat the FIN for a peer that stays silent, and at last forget it."""
        if now >= self._until:
            return CloseStep.EXPIRE
        self.deadline = self._until
        return CloseStep.NOTHING if is_acknowledged else CloseStep.REPEAT_FIN
