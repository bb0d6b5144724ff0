"""When a client of the registry talks to it again: the rules against stampedes.

Pure: the time and the source of chance are arguments. The real clients and the
simulator (``bench.simulation``) follow the same rules, so what the simulator says of a
million agents is what this code would do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pilotfleet.protocol.grid import on_grid

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

__all__ = [
    "MAX_DEFERRALS",
    "MAX_PAUSE_S",
    "REGISTER_PAUSE_S",
    "SECOND_DISCOVER_S",
    "beat_due",
    "deferral_pause_s",
    "deferral_s",
    "dial_pause_s",
    "down_until",
    "first_beat_s",
    "register_pause_s",
    "return_s",
    "watch_pause_s",
]

# From the specification (registry.md section 5).
REGISTER_PAUSE_S: Final = 0.1
"""Before the first repetition of a registration; then doubled each time."""
MAX_PAUSE_S: Final = 30.0
SECOND_DISCOVER_S: Final = 1.0

# Of our choosing.
MAX_DEFERRALS: Final = 20
"""How often a request waits because the registry asks it to."""
MIN_DEFERRAL_S: Final = 0.05
"""No registry of ours asks for less, and one that does is not asked in a loop."""
MAX_DEFERRAL_S: Final = 30.0
DEFERRAL_SPREAD: Final = (1.0, 1.5)
"""Those who were asked to wait come back over half as much time again."""
DIAL_SPREAD: Final = (0.75, 1.25)
DOWN_S: Final = 2.0
"""How long at most a registry that was found down is taken to be so."""
RETURN_SPREAD_S: Final = 5.0
"""Over how long the agents of a host come back to it."""
WATCH_SPREAD: Final = (0.1, 1.0)
"""Shares of the longest pause between which that of one watcher is drawn."""
MOST_DOUBLINGS: Final = 16


def deferral_s(reply: Mapping[str, Any]) -> float:
    """Return how long the registry asks us to wait; 0 when it does not."""
    wait = reply.get("retry_after")
    if "error" not in reply or not isinstance(wait, int | float) or wait <= 0:
        return 0.0
    # Bounded before it becomes a float: JSON has integers that no float can hold.
    return float(min(max(wait, MIN_DEFERRAL_S), MAX_DEFERRAL_S))


def deferral_pause_s(wait_s: float, rng: random.Random) -> float:
    """Return how long to wait when the registry asks for ``wait_s``."""
    return wait_s * rng.uniform(*DEFERRAL_SPREAD)


def dial_pause_s(
    failures: int, *, first_s: float, longest_s: float, rng: random.Random
) -> float:
    """Return the pause after so many failures to connect, one or more."""
    grown = min(first_s * 2.0 ** (failures - 1), longest_s)
    # With jitter, so that a fleet does not come back all at once.
    return grown * rng.uniform(*DIAL_SPREAD)


def register_pause_s(pause_s: float, rng: random.Random) -> tuple[float, float]:
    """Return how long a refused agent waits, and its ``pause_s`` for the next time."""
    return pause_s + rng.uniform(0, pause_s / 2), min(MAX_PAUSE_S, pause_s * 2)


def first_beat_s(keepalive_s: float, rng: random.Random) -> float:
    """Return when after its registration an agent sends its first heartbeat."""
    # Agents that started together must not beat together.
    return rng.uniform(0, keepalive_s)


def beat_due(now: float, keepalive_s: float) -> float:
    """Return when the heartbeat after one at ``now`` is due."""
    # On a grid, so that the requests of many agents leave together.
    return on_grid(now + keepalive_s)


def down_until(now: float, pause_s: float) -> float:
    """Return until when a host takes a registry for down that one agent found so."""
    # Short, whatever this agent's own pause: soon after the registry is back, the
    # others shall find out.
    return now + min(pause_s, DOWN_S)


def return_s(now: float, until: float, rng: random.Random) -> float:
    """Return in how long an agent tries that has waited for a registry to return."""
    # Spread: each agent dialling on its own would be a storm when it returns.
    return until - now + rng.uniform(0, RETURN_SPREAD_S)


def watch_pause_s(
    failures: int, *, first_s: float, longest_s: float, rng: random.Random
) -> float:
    """Return the pause of a watch after so many failures in a row, one or more."""
    doubled = first_s * 2.0 ** min(failures - 1, MOST_DOUBLINGS)
    # All watchers lose a registry at the same moment, and each has a first answer to
    # be told anew: so they come back over nearly all of the pause.
    return min(doubled, longest_s) * rng.uniform(*WATCH_SPREAD)
