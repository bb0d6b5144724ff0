"""Made-up figures: no test of the suite measures anything."""

from __future__ import annotations

from bench.machine import Machine, Source
from bench.report import Table, Target
from bench.saved import Run

MACHINE = Machine(
    processor="Sample CPU",
    cores=2,
    memory_gib=7.8,
    is_virtual=True,
    kernel="6.18",
    python="3.11.7",
    versions={"cryptography": "46.0"},
)
SOURCE = Source("0123456789abcdef", is_clean=True)
SIZES = (100, 1_000, 5_000, 10_000)


def target(key: str, value: float, official: float | None = None) -> Target:
    """Return a measured figure."""
    return Target(key, "something", "KiB", value, official, "made up")


def run(part: str, *tables: Table, error: str = "", started: float = 1e9) -> Run:
    """Return the run of a part."""
    return Run(
        part=part,
        command=f"python -m bench {part}",
        started=started,
        seconds=12.3,
        load_before=0.25,
        source=SOURCE,
        machine=MACHINE,
        tables=list(tables),
        error=error,
    )


def idle_hosts() -> Table:
    """Return a table such as ``bench.hosts`` makes, with straight growth."""
    columns = (
        *("agents", "start s", "RSS MiB", "PSS MiB", "private MiB"),
        *("CPU % of a core", "files per agent"),
    )
    return Table(
        "Idle agents in one process",
        columns,
        [
            *(
                (n, n / 1000, 40 + n / 100, 30 + n / 100, 20 + n / 100, n / 2000, 1.0)
                for n in SIZES
            ),
            ("official, each", 0.1, 13.0, 3.0, 2.5, 0.03, 15.0),
        ],
        "A note.",
        (target("memory_idle_slope_kib", 10.24, 13_000.0),),
    )


def searches() -> Table:
    """Return a table such as ``bench.discovery`` makes."""
    kinds = {"popular tag": 1.0, "rare tag": 0.5, "else": 9.0}
    return Table(
        "Search, at the server",
        ("nodes", "search", "p50 ms", "p99 ms"),
        [
            (n, kind, ms / 2, ms + n / 1e6)
            for n in (1_000, 10_000, 1_000_000)
            for kind, ms in kinds.items()
        ],
    )
