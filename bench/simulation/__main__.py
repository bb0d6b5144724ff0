"""Simulate one fleet: ``python -m bench.simulation --agents 1000000``."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
from pathlib import Path

from bench.report import as_text
from bench.simulation.calibration import calibrate
from bench.simulation.costs import ServiceTimes
from bench.simulation.options import RunOptions
from bench.simulation.realrun import with_connections
from bench.simulation.report import tables_of
from bench.simulation.sharedstore import with_shared_store
from bench.simulation.world import SimulatedWorld

FLAGS = {
    "agents": ("agents", int, "how many agents"),
    "per-host": ("per_host", int, "agents that share a process; 1: separate daemons"),
    "links": ("links", int, "registry connections of a host"),
    "keepalive": ("keepalive_s", float, "seconds between two heartbeats of an agent"),
    "duration": ("duration_s", float, "virtual seconds that are measured"),
    "searches": ("searches_per_s", float, "searches per second"),
    "churn": ("churn_per_h", float, "share of the agents that go in an hour: 0.1"),
    "spread": ("spread_s", float, "with --cold: hosts start over so many seconds"),
    "restart-at": ("restart_at_s", float, "second when the rendezvous is killed"),
    "down": ("down_s", float, "seconds that it is away then"),
    "seed": ("seed", int, "the same seed and times give the same trace"),
}


def main() -> None:
    """Run, and print the tables."""
    parser = _parser()
    words = parser.parse_args()
    chosen = {name: getattr(words, name) for name, _, _ in FLAGS.values()}
    try:
        options = RunOptions(
            **{name: value for name, value in chosen.items() if value is not None},
            batch=words.batch == "on",
            cold=words.cold,
            watchers=words.watchers == "on",
        )
    except ValueError as error:
        parser.error(str(error))
    if words.times is None:
        print("measuring service times …", file=sys.stderr, flush=True)
        table = with_shared_store(with_connections(asyncio.run(calibrate())))
    else:
        try:
            table = ServiceTimes.load(words.times)
        except (OSError, ValueError, TypeError) as error:
            parser.error(f"no table of service times in {words.times}: {error}")
    if words.save_times is not None:
        table.save(words.save_times)
    asyncio.run(_run(options, table))


async def _run(options: RunOptions, table: ServiceTimes) -> None:
    run = await SimulatedWorld(options, table).run()
    name = "cold start" if options.cold else "steady"
    for part in tables_of([(name, run)], table):
        print(as_text(part), end="\n\n")
    print(dict(run.account.requests), dict(run.account.errors))
    if run.refused:
        print(f"starts given up for a while: {run.refused}")
    print(f"heard: {run.heard:,}; watchers were told of {run.changes_seen:,} changes")
    print(f"{run.events:,} events in {run.real_s:.0f} s; trace {run.trace}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.simulation",
        description="Simulate a fleet against the real registry code.",
    )
    defaults = RunOptions()
    for flag, (name, kind, text) in FLAGS.items():
        usual = next(f for f in dataclasses.fields(defaults) if f.name == name).default
        parser.add_argument(
            f"--{flag}", dest=name, type=kind, help=f"{text} (default {usual})"
        )
    parser.add_argument("--cold", action="store_true", help="all start at one instant")
    parser.add_argument("--batch", choices=("on", "off"), default="on")
    parser.add_argument("--watchers", choices=("on", "off"), default="on")
    parser.add_argument("--times", type=Path, help="service times that were saved")
    parser.add_argument("--save-times", type=Path, help="write the service times")
    return parser


if __name__ == "__main__":
    main()
