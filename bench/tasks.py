"""Tasks per second of a hub and 100 workers, end to end."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from pathlib import Path

from bench.report import Figure
from tests.support.programs import BIN

WORKERS = 100
TASKS = 1_000


def measure() -> list[Figure]:
    """Run ``sha256sum`` over 1,000 tasks and check every result."""
    with tempfile.TemporaryDirectory(prefix="pf-") as folder:
        home = Path(folder)
        spec, tasks, results = (home / name for name in ("f.toml", "t", "r"))
        spec.write_text(f'[workers]\ncount = {WORKERS}\nexec = "sha256sum"\n')
        texts = {str(number): f"task {number}" for number in range(TASKS)}
        tasks.write_text(
            "".join(
                json.dumps({"id": key, "task": text}) + "\n"
                for key, text in texts.items()
            )
        )
        command = (BIN / "pilotctl", "--json", "fleet", "run", spec)
        run = subprocess.run(
            [*command, "--tasks", tasks, "--results", results],
            capture_output=True,
            text=True,
            check=True,
        )
        for line in results.read_text().splitlines():
            result = json.loads(line)
            digest = hashlib.sha256(texts[result["id"]].encode()).hexdigest()
            if not result["result"].startswith(digest):
                raise ValueError(f"wrong result: {line}")
    summary = json.loads(run.stdout.splitlines()[-1])
    return [
        Figure(
            f"tasks, hub and {WORKERS} workers, one process each",
            "tasks/s",
            summary["tasks_per_second"],
            None,
            f"{TASKS} tasks; each starts sha256sum; durable on both sides",
        )
    ]
