"""How polo is distributed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.fleet.monitor.figures import PoloFigures

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["distribution"]

MAX_BINS: Final = 20


def distribution(scores: Iterable[int]) -> PoloFigures:
    """Return the distribution of the scores of agents.

    A percentile is the score of nearest rank: ``ceil(share * agents)`` agents have at
    most that much.
    """
    ranked = sorted(scores)
    if not ranked:
        return PoloFigures()
    return PoloFigures(
        agents=len(ranked),
        total=sum(ranked),
        lowest=ranked[0],
        p10=_nearest_rank(ranked, 10),
        p50=_nearest_rank(ranked, 50),
        p90=_nearest_rank(ranked, 90),
        p99=_nearest_rank(ranked, 99),
        highest=ranked[-1],
        histogram=_bins(ranked),
    )


def _nearest_rank(ranked: Sequence[int], percent: int) -> int:
    # In whole numbers: 0.9 * 10 is more than 9 in floating point.
    return ranked[max(1, -(-percent * len(ranked) // 100)) - 1]


def _bins(ranked: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Divide the range into at most 20 bins of one width."""
    lowest, highest = ranked[0], ranked[-1]
    width = -(-(highest - lowest + 1) // MAX_BINS)
    counts = [0] * ((highest - lowest) // width + 1)
    for score in ranked:
        counts[(score - lowest) // width] += 1
    return tuple(
        (lowest + number * width, lowest + (number + 1) * width - 1, count)
        for number, count in enumerate(counts)
    )
