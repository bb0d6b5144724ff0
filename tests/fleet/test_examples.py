"""Every specification in ``examples/``, run as its first lines say."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.fleet.support import read_results
from tests.fleet.upsupport import fleet_world
from tests.support.programs import BIN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.programs import World

pytestmark = pytest.mark.timeout(240)

ROOT: Final = Path(__file__).parents[2]
RULES: Final = "alerts.toml"
"""Belongs to pilot-monitor; tests/fleet/monitor reads it."""
SPECS: Final = sorted(
    path for path in (ROOT / "examples").glob("*.toml") if path.name != RULES
)
AGENTS: Final = {"wordcount": 50, "mesh": 16, "hierarchical": 12}


@pytest.fixture
def net() -> Iterator[World]:
    with fleet_world() as made:
        yield made


def command_of(spec: Path, results: Path) -> list[str]:
    """Return the command in a specification's comment, with other results."""
    text = re.sub(r"\\\n#", "", spec.read_text())
    [command] = re.findall(r"^# +(pilotctl fleet run .*)$", text, re.M)
    words = shlex.split(command)
    words[0] = str(BIN / words[0])
    words[words.index("results.jsonl")] = str(results)
    return words


def word_counts(tasks: Path) -> dict[str, Any]:
    """Return what the example's program makes of each task, without a fleet."""
    program = ROOT / "examples" / "wordcount.py"
    return {
        task["id"]: json.loads(
            subprocess.run(
                [sys.executable, program],
                input=task["task"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for task in map(json.loads, tasks.read_text().splitlines())
    }


def test_there_is_one_for_each_pattern() -> None:
    patterns = [
        re.findall(r'^pattern = "(.*)"', spec.read_text(), re.M)[0] for spec in SPECS
    ]
    assert sorted(patterns) == ["hierarchical", "hub-and-spoke", "mesh"]
    assert {spec.stem for spec in SPECS} == AGENTS.keys()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.stem)
def test_example_does_all_its_tasks(net: World, spec: Path) -> None:
    results = net.home / "results.jsonl"
    command = command_of(spec, results)
    done = subprocess.run(
        [*command, "--json"],
        # The examples are run from the root, where they find their programs.
        cwd=ROOT,
        env=net.environment(PATH=f"{BIN}:{net.environment()['PATH']}"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    tasks = ROOT / command[command.index("--tasks") + 1]
    expected = word_counts(tasks)
    assert summary["agents"] == AGENTS[spec.stem]
    assert summary["succeeded"] == summary["tasks"] == len(expected)
    rows = read_results(results)
    assert {row["status"] for row in rows.values()} == {"SUCCEEDED"}
    assert {key: json.loads(row["result"]) for key, row in rows.items()} == expected
