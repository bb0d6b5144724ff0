"""``pilotctl fleet status``, ``scale``, ``rollout`` and ``list``."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.cli.fleetfigures import figure_lines
from pilotfleet.cli.fleethome import (
    is_running,
    known_homes,
    name_of,
    pattern_of,
    select_home,
)
from pilotfleet.errors import InvalidArgument
from pilotfleet.fleet.control import FleetControl
from pilotfleet.fleet.monitor.figures import Figures
from pilotfleet.fleet.spec import load_spec
from pilotfleet.fleet.worker.identities import MAX_IDENTITIES
from pilotfleet.protocol.durations import format_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.output import Output

__all__ = ["describe", "list_fleets", "rollout", "scale", "status"]

_COUNT: Final = re.compile(r"workers=([0-9]{1,9})")
MOST_BATCHES: Final = 10
"""Batches shown to a person: the newest."""


def status(words: Arguments, output: Output) -> None:
    """Show the state of a fleet."""
    control = FleetControl(select_home(words, words.positional(0)))
    answer = asyncio.run(control.status())
    output.result(answer, describe(answer))


def scale(words: Arguments, output: Output) -> None:
    """Have another number of workers."""
    texts = [text for text in words.positionals if "=" in text]
    specs = [text for text in words.positionals if "=" not in text]
    match = _COUNT.fullmatch(texts[0]) if len(texts) == 1 and len(specs) < 2 else None
    if match is None or not 1 <= int(match[1]) <= MAX_IDENTITIES:
        raise InvalidArgument(
            f"fleet scale needs workers=N, with N from 1 to {MAX_IDENTITIES}",
            hint="for example: pilotctl fleet scale workers=200",
        )
    control = FleetControl(select_home(words, "".join(specs)))
    answer = asyncio.run(control.scale(int(match[1]), progress=output.note))
    output.result(answer, f"the fleet has {answer['workers']} workers")


def rollout(words: Arguments, output: Output) -> None:
    """Replace the members of a fleet."""
    batch = words.integer("batch", 1, least=1)
    path = words.positional(0)
    spec = load_spec(Path(path)) if path else None
    control = FleetControl(select_home(words, path))
    answer = asyncio.run(control.rollout(batch=batch, spec=spec, progress=output.note))
    output.result(answer, "every member has been replaced")


def list_fleets(words: Arguments, output: Output) -> None:
    """Show the fleets of this user."""
    rows = [
        {
            "name": name_of(home),
            "pattern": pattern_of(home),
            "state": "running" if is_running(home) else "stopped",
            "home": str(home),
        }
        for home in known_homes()
    ]
    head = ("NAME", "PATTERN", "STATE", "HOME")
    text = _table(head, [list(row.values()) for row in rows])
    output.result({"fleets": rows, "total": len(rows)}, text if rows else "no fleets")


def describe(answer: dict[str, Any]) -> str:
    """Return a fleet's state for a person."""
    up = format_duration(max(0.0, time.time() - answer["since"]))
    part = f"  part {answer['part']}" if answer["part"] else ""
    tasks, workers = answer["tasks"], answer["workers"]
    counts = ", ".join(
        f"{tasks[key]} {key}" for key in ("open", "succeeded", "failed", "retried")
    )
    state = f"{answer['state']} for {up}{part}  (pid {answer['pid']})"
    lines = [
        f"{answer['name']}  {answer['pattern']}  {state}",
        f"home      {answer['home']}",
        *_figure_lines(answer["figures"]),
        f"tasks     {tasks['tasks']}: {counts}",
    ]
    known = ", ".join(
        f"{workers[key]} {text}"
        for key, text in (("workers", "known"), ("busy", "busy"), ("resting", "rest"))
        if isinstance(workers.get(key), int)
    )
    lines.append(f"workers   {answer['agents']} wanted{', ' if known else ''}{known}")
    if answer.get("monitor"):
        lines.append(f"monitor   {answer['monitor']}")
    if answer["trouble"]:
        lines.append(f"trouble   {answer['trouble']}")
    lines += ["", _members(answer["members"])]
    if answer["clusters"]:
        lines += ["", _clusters(answer["clusters"])]
    if answer["batches"]:
        lines += ["", _batches(answer["batches"][-MOST_BATCHES:])]
    return "\n".join(lines)


def _figure_lines(figures: dict[str, Any]) -> list[str]:
    lines = figure_lines(msgspec.convert(figures, Figures))
    return [f"{name:<10}{words}" for name, words in lines]


def _members(members: list[dict[str, Any]]) -> str:
    now = time.time()
    return _table(
        ("MEMBER", "STATE", "FOR", "PID", "AGENTS", "RESTARTS", "LAST EXIT"),
        [
            (
                *(member["name"], member["state"]),
                format_duration(max(0.0, now - member["since"])),
                *(member["pid"] or "-", member["agents"], member["restarts"]),
                member["last_exit"] or "-",
            )
            for member in members
        ],
    )


def _clusters(clusters: list[dict[str, Any]]) -> str:
    keys = list(clusters[0])
    return _table(
        [key.upper().replace("_", " ") for key in keys],
        [[cluster.get(key, "") for key in keys] for cluster in clusters],
    )


def _batches(batches: list[dict[str, Any]]) -> str:
    keys = ("name", "tasks", "open", "succeeded", "failed", "retried")
    heads = ("BATCH", *(key.upper() for key in keys[1:]))
    return _table(heads, [[batch[key] for key in keys] for batch in batches])


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return columns that are as wide as what is in them."""
    texts = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in texts
    )
    return "\n".join(line.rstrip() for line in lines)
