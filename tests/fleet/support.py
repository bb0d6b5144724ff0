"""Runs of ``pilotctl fleet run`` with real programs."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

from tests.support.programs import BIN, World

__all__ = [
    "children_of",
    "fleet_run",
    "processes_with_argument",
    "read_results",
    "wait_for_command",
    "write_spec",
    "write_tasks",
]


def write_spec(
    net: World, command: str, *, count: int, name: str = "fleet", **fleet: str
) -> Path:
    """Write a specification of a fleet whose workers run ``command``."""
    spec = net.home / f"{name}.toml"
    keys = {"name": name, **fleet}
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    lines += ["[workers]", f"count = {count}", f"exec = {json.dumps(command)}"]
    spec.write_text("\n".join(["[fleet]", *lines, ""]))
    return spec


def write_tasks(net: World, texts: dict[str, str]) -> Path:
    """Write a task file: a text for each ID."""
    path = net.home / "tasks.jsonl"
    lines = (json.dumps({"id": key, "task": text}) for key, text in texts.items())
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def fleet_run(
    net: World,
    spec: Path,
    tasks: Path,
    *,
    results: Path | None = None,
    home: Path | None = None,
    flags: tuple[str, ...] = (),
    **env: str,
) -> tuple[subprocess.Popen[str], Path]:
    """Start a run; return it and where its results go."""
    results = results or net.home / f"{spec.stem}.results.jsonl"
    run = subprocess.Popen(
        [
            *(BIN / "pilotctl", "fleet", "run", spec, "--json"),
            *("--tasks", tasks, "--results", results),
            *("--home", home or net.home / spec.stem),
            *flags,
        ],
        env=net.environment(**env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return run, results


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Return the result lines by ID; none may come twice."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    results = {line["id"]: line for line in lines}
    assert len(results) == len(lines)
    return results


def wait_for_command(run: subprocess.Popen[str], command: str) -> None:
    """Return once a process below ``run`` has this command line."""
    for _ in range(1_000):
        for pid in children_of(run.pid):
            with contextlib.suppress(OSError):
                if command in Path(f"/proc/{pid}/cmdline").read_text():
                    return
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(0.03)
            raise AssertionError("fleet run ended")
    raise AssertionError(f"{command!r} was never started")


def processes_with_argument(text: str) -> list[int]:
    """Return every process that names ``text`` on its command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if text in (entry / "cmdline").read_text():
                    found.append(int(entry.name))
    return found


def children_of(pid: int) -> list[int]:
    """Return every process below ``pid``."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += [int(child), *children_of(int(child))]
    return found
