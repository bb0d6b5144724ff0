"""A simulation in a process of its own, so that the figures are those of one run.

In a used process a run takes memory that was freed before, and seems to need none.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from bench.simulation.world import SimulatedWorld

if TYPE_CHECKING:
    from bench.simulation.costs import ServiceTimes
    from bench.simulation.options import RunOptions
    from bench.simulation.world import Outcome


def simulate_apart(options: RunOptions, times: ServiceTimes) -> Outcome:
    """Run one fleet in a new process, and wait for it."""
    new = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=new) as process:
        return process.submit(_simulate, options, times).result()


def _simulate(options: RunOptions, times: ServiceTimes) -> Outcome:
    return asyncio.run(SimulatedWorld(options, times).run())
