"""Run parts of the suite: one here, or several, each in a program of its own.

In a program of its own a part measures the same whether it runs alone or with others:
none finds the memory that another has left. One that fails, hangs or is killed costs
its own figures and no other's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import report, saved
from bench.goals import unknown_keys
from bench.machine import ROOT, this_machine, this_source
from bench.processmemory import tree_of
from bench.saved import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from bench.machine import Source
    from bench.options import Options
    from bench.parts import Part
    from bench.report import Table

TIMES_LONGER = 5
"""Than estimated, and a part hangs."""
LIMIT_S = 600.0
"""At least this is allowed."""
STOP_S = 60.0
"""To stop the programs it has started."""


def run_here(part: Part, options: Options, folder: Path) -> Run:
    """Measure one part in this program, and keep what came of it."""
    start = _Start.now(part)
    try:
        tables = part.measure(options)
        saved.check(tables)
        run = start.ended(tables)
    except Exception as failure:  # Parts may raise anything.
        traceback.print_exc()
        run = start.ended([], error=f"{type(failure).__name__}: {failure}")
    saved.save(folder, run)
    return run


def show(run: Run) -> None:
    """Print what was measured."""
    for table in run.tables:
        print(report.as_text(table), end="\n\n")
    unknown = unknown_keys(run.targets)
    if unknown:
        print(f"no goal has the key {', '.join(unknown)}", file=sys.stderr)
    print(f"{run}{' ' + run.error if run.error else ''}\n", flush=True)


@dataclass(frozen=True, slots=True)
class Suite:
    """Several parts, one after the other."""

    parts: Sequence[Part]
    folder: Path
    flags: Sequence[str] = ()
    """Of the command line, for each part."""
    program: Sequence[str] = (sys.executable, "-m", "bench")
    """That measures the part which it is told."""
    limit_s: float = LIMIT_S

    def runs(self) -> Iterator[Run]:
        """Measure one after the other; what is yielded is kept already."""
        for number, part in enumerate(self.parts, 1):
            left = sum(map(self._estimate_s, self.parts[number - 1 :]))
            _say(
                f"part {number} of {len(self.parts)}: {part.name}, about"
                f" {_duration(self._estimate_s(part))}; all that is left about"
                f" {_duration(left)}"
            )
            yield self._run_apart(part)

    def _run_apart(self, part: Part) -> Run:
        start = _Start.now(part)
        limit_s = max(self.limit_s, TIMES_LONGER * part.seconds)
        command = [*self.program, part.name, *self.flags]
        with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as child:
            try:
                child.wait(limit_s)
            except subprocess.TimeoutExpired:
                _say(f"{part.name} takes longer than {_duration(limit_s)}: stopped")
                _stop(child)
            except KeyboardInterrupt:
                _stop(child)
                raise
        run = saved.load(self.folder, part.name)
        if run is None or run.started < start.at:
            error = f"ended with status {child.returncode} without figures"
            run = start.ended([], error=error)
            saved.save(self.folder, run)
        return run

    def _estimate_s(self, part: Part) -> float:
        """Return what it took the last time."""
        run = saved.load(self.folder, part.name)
        if run is not None and not run.error:
            return run.seconds
        return part.seconds / 5 if self.flags else part.seconds


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Have a part stop its programs; if it does not, kill it and them."""
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        for pid in tree_of(child.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class _Start:
    """What is to be known before a part begins."""

    part: Part
    at: float
    load: float
    source: Source
    """The code that is measured may change meanwhile."""

    @classmethod
    def now(cls, part: Part) -> _Start:
        return cls(part, round(time.time(), 3), os.getloadavg()[0], this_source())

    def ended(self, tables: list[Table], *, error: str = "") -> Run:
        """Return the run that ends now."""
        return Run(
            part=self.part.name,
            command=self.part.command,
            started=self.at,
            seconds=round(time.time() - self.at, 1),
            load_before=round(self.load, 2),
            source=self.source,
            machine=this_machine(),
            tables=tables,
            error=error,
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
