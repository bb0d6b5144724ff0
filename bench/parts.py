"""The parts of the suite: what each measures, and where its code is.

Modules are imported by name when they are needed, so that one that cannot be imported
fails alone.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.options import Options
    from bench.report import Table


@dataclass(frozen=True, slots=True)
class Part:
    """Something that is measured with one command."""

    name: str
    """Of its module in the package as well."""
    what: str
    seconds: int
    """That it takes, about: a first estimate, until it was run here."""
    in_suite: bool = True
    """Otherwise it is measured only by its name."""
    package: str = "bench"

    @property
    def command(self) -> str:
        """The command that measures it."""
        return f"python -m bench {self.name}"

    def measure(self, options: Options) -> list[Table]:
        """Measure it now."""
        module = importlib.import_module(f"{self.package}.{self.name}")
        tables: list[Table] = module.measure(options)
        return tables


PARTS = (
    Part("hosts", "memory, processor, files and start of 100 to 10,000 agents", 450),
    Part("hostprocesses", "5,000 agents in one, two and four processes", 150),
    Part("registry", "requests, connections and nodes of one rendezvous", 100),
    Part("discovery", "search and watch, 100 to 1,000,000 agents", 120),
    Part("tunnel", "round trip and goodput of two daemons", 30),
    Part("commands", "what a command costs: `pilotctl info`", 10),
    Part("tasks", "tasks of a hub and 1,000 workers", 60),
    Part("herd", "10,000 agents that start at once; a rendezvous that restarts", 150),
    Part(
        *("acceptance", "10,000 agents at work, then idle for ten minutes: no leak"),
        *(1_500, False),
    ),
    Part("simulation", "10,000 and 100,000 agents under a virtual clock", 240),
    Part("events", "deliveries of one broker; 10,000 publishers; matching", 240),
    Part("mesh", "joins, handshakes and first dials of 5 to 200 agents", 60),
    Part("polo", "receipts at the registry; a fleet with polo and without", 120),
    Part("patterns", "the three patterns with 50, 200 and 1,000 workers", 490),
    Part("recovery", "SIGKILL of a sub-orchestrator and of a group of workers", 180),
    Part("monitor", "what `pilot-monitor` costs with 1,000 and 10,000 agents", 300),
    Part("pages", "the web pages in Chromium, 10,000 and 100,000 agents", 180),
)

BY_NAME = {part.name: part for part in PARTS}
