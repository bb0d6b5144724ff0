"""Measure what pilotfleet does, beside the official programs where they do it too.

Without a name all parts are measured, one after the other, and put together as the
figures of the documentation; with names only these parts are, and printed and kept.
Instead of measuring, `table NAME` prints the last figures of a part as Markdown,
`goals` the table of goals, `latest` puts together what each part has measured last,
with plots, and `docs` writes that into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import TYPE_CHECKING

from bench import document, plots, saved
from bench.goals import goals_table
from bench.machine import ROOT
from bench.options import PATTERNS, QUICK_WORKERS, WORKERS, Options
from bench.parts import BY_NAME, PARTS
from bench.report import as_markdown
from bench.suite import Suite, run_here, show

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

TABLE = "table"


def main(argv: Sequence[str]) -> int:
    """Do what the command line says; return the exit status."""
    words = _parser().parse_args(argv)
    options = Options(
        quick=words.quick,
        patterns=tuple(words.pattern or PATTERNS),
        workers=words.workers or (QUICK_WORKERS if words.quick else WORKERS),
    )
    first, *names = words.names or [""]
    if first in COMMANDS and not names:
        return COMMANDS[first](options.folder)
    if first != TABLE:
        names = words.names
    unknown = sorted(set(names) - set(BY_NAME))
    if unknown:
        have = ", ".join([*BY_NAME, TABLE, *COMMANDS])
        print(f"unknown benchmark {', '.join(unknown)}; have {have}", file=sys.stderr)
        return 2
    if first == TABLE:
        return _print_tables(names or list(BY_NAME), options.folder)
    return _measure(names, options)


def _measure(names: Sequence[str], options: Options) -> int:
    """Measure parts; return 1 if one failed."""
    if len(names) == 1:
        run = run_here(BY_NAME[names[0]], options, options.folder)
        show(run)
        return int(bool(run.error))
    chosen = [BY_NAME[name] for name in names]
    parts = chosen or [part for part in PARTS if part.in_suite]
    runs = []
    for run in Suite(parts, options.folder, options.flags).runs():
        runs.append(run)
        if not names:
            # Only a whole run replaces what was put together, but a run that is
            # interrupted loses nothing.
            saved.collect(options.folder, BY_NAME)
    if not names:
        _put_together(options.folder)
    _sum_up(runs)
    return int(any(run.error for run in runs))


def _sum_up(runs: Sequence[saved.Run]) -> None:
    for run in runs:
        state = f"failed: {run.error}" if run.error else "measured"
        print(f"{run.part:12} {run.seconds:6.0f} s  {state}", file=sys.stderr)
    print(f"{'all':12} {sum(run.seconds for run in runs):6.0f} s", file=sys.stderr)


def _put_together(folder: Path) -> int:
    if all(saved.load(folder, name) is None for name in BY_NAME):
        return _nothing_measured()
    latest = saved.collect(folder, BY_NAME)
    drawn = plots.draw_all(latest, folder)
    files = [folder / saved.LATEST, folder / saved.TEXT, *drawn]
    names = " ".join(str(path.relative_to(ROOT)) for path in files)
    print(f"written: {names}", file=sys.stderr)
    return 0


def _print_goals(folder: Path) -> int:
    print(as_markdown(goals_table(saved.load_latest(folder).goals)))
    return 0


def _write_page(folder: Path) -> int:
    latest = saved.load_latest(folder)
    if not latest.runs:
        return _nothing_measured()
    document.PAGE.write_text(document.filled(document.PAGE.read_text(), latest))
    print(f"written: {document.PAGE.relative_to(ROOT)}", file=sys.stderr)
    return 0


def _nothing_measured() -> int:
    print("nothing was measured here yet: run make bench", file=sys.stderr)
    return 1


def _print_tables(names: Sequence[str], folder: Path) -> int:
    status = 0
    for name in names:
        run = saved.load(folder, name)
        if run is None:
            command = BY_NAME[name].command
            print(f"{name} was not measured here yet: run {command}", file=sys.stderr)
            status = 1
        else:
            print(document.of_run(run), end="\n\n")
    return status


COMMANDS: dict[str, Callable[[Path], int]] = {
    "goals": _print_goals,
    "latest": _put_together,
    "docs": _write_page,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BY_NAME))
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, to see that all of it works"
    )
    parser.add_argument(
        "--pattern", action="append", choices=PATTERNS, help="patterns: only this one"
    )
    parser.add_argument(
        "--workers", type=_numbers, help="patterns: sizes, such as 50,200"
    )
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of numbers from 1, such as 50,200"
        )
    return tuple(map(int, words))


if __name__ == "__main__":
    # By default it would leave the programs that are measured running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("interrupted; what was measured until then is kept")
