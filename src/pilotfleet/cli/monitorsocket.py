"""Which daemon a ``pilot-monitor`` uses that was told none."""

from __future__ import annotations

import contextlib
import logging
import socket
from typing import TYPE_CHECKING

from pilotfleet.cli.fleethome import name_of, running_homes, socket_of
from pilotfleet.cli.settings import Settings
from pilotfleet.errors import InvalidArgument, NotRunning
from pilotfleet.fleet.plan import HUB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["monitor_socket"]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def monitor_socket(brokers: Sequence[str]) -> Iterator[str]:
    """Yield the socket of the usual daemon or, without one, of a fleet that runs here.

    Args:
        brokers: Those that are to be followed; may be empty. Among several fleets the
            one is meant whose hub is the first.

    Raises:
        InvalidArgument: Several fleets run, and none of them has the broker.
        NotRunning: No daemon runs.
    """
    usual = Settings().socket
    if _is_answered(usual):
        yield usual
        return
    homes = running_homes()
    if not homes:
        raise NotRunning(
            "daemon is not running, and no fleet of yours",
            hint="start a fleet with: pilotctl fleet up SPEC; or name the socket of a"
            f" daemon with --socket  (tried {usual})",
        )
    home = _choose(homes, brokers[0] if brokers else "")
    with socket_of(home) as path:
        logger.info("using the daemon of fleet %s in %s", name_of(home), home)
        yield str(path)


def _choose(homes: Sequence[Path], broker: str) -> Path:
    fitting = [home for home in homes if f"{name_of(home)}-{HUB}" == broker]
    found = fitting or homes
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{name_of(home)} ({home})" for home in found)
    what = f"have the broker {broker}" if fitting else "run"
    raise InvalidArgument(
        f"several fleets {what}: {listed}",
        hint=f"choose one, for example: --socket {found[0]}/run/{HUB}.sock",
    )


def _is_answered(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True
