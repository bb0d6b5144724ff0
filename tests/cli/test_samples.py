"""Command lines recorded from the official pilotctl: same frames, same output.

From vectors/ipc.json, key ``cli``. Times differ between runs and are compared by
their kind only; texts of the official program's language runtime, at the end of
some messages, by what comes before them.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.support import ReplayDaemon

if TYPE_CHECKING:
    from tests.cli.support import Shell

VECTORS = Path(__file__).parents[1] / "vectors" / "ipc.json"
OLD_SHAPES = frozenset(["trust", "dgram", "send-message"])
"""Commands whose result and frames changed after 1.9.1; ours are the new ones."""
UNGATED = frozenset(["ping", "publish"])
"""Commands that 1.9.1 ran without asking for trust first."""


def _samples() -> list[dict[str, Any]]:
    chosen = []
    for sample in json.loads(VECTORS.read_text())["cli"]:
        words = [t for t in sample["argv"] if t not in ("--json", "extras")]
        is_old = sample["pilotctl"] == "1.9.1"
        # set-tags without extras is refused there and taken here.
        is_refused = words[0] == "set-tags" and not sample["frames"]
        if is_refused or (is_old and words[0] in OLD_SHAPES):
            continue
        if is_old and words[0] in UNGATED:
            sample["argv"].append("--no-auto-handshake")
        chosen.append(sample)
    return chosen


SAMPLES = _samples()
TIMES = frozenset(["rtt_ms", "setup_ms", "elapsed_ms", "throughput_mbps"])
ONLY_NEWER = {"to", "total"}
"""Keys that 1.18 added to results of 1.9.1."""


def _comparable(value: Any, shell: Shell) -> Any:
    if isinstance(value, dict):
        return {
            key: type(item) if key in TIMES else _comparable(item, shell)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_comparable(item, shell) for item in value]
    if isinstance(value, str):
        value = value.replace("<HOME>", str(shell.home))
        value = value.replace("<SOCKET>", str(shell.socket))
        # Where the official text goes on in the words of its runtime.
        for mark in (": strconv.", ": time: invalid", ": dial registry"):
            value = value.partition(mark)[0]
        return value
    return value


def _name(sample: dict[str, Any]) -> str:
    words = [token for token in sample["argv"] if token != "--json"]
    return f"{sample['pilotctl']} {' '.join(words)}"


@pytest.mark.parametrize("sample", SAMPLES, ids=_name)
def test_recorded_command_line(
    sample: dict[str, Any], shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = io.BytesIO(sample.get("stdin", "").encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(given))
    monkeypatch.chdir(shell.home)
    (shell.home / "a.txt").write_text("file body\n")
    if sample["frames"]:
        result = shell.play(sample["frames"], *sample["argv"])
    else:
        result = shell.run(*sample["argv"])

    assert result.code == sample["exit"]
    if "stderr" in sample:
        expected = _comparable(sample["stderr"], shell)
        actual = json.loads(result.stderr)
        for key in ("message", "error"):
            assert actual.pop(key).startswith(expected.pop(key))
        if "hint" not in expected:
            # Ours may say what to do where the official program does not.
            actual.pop("hint", None)
        assert actual == expected
        assert result.stdout == ""
        return
    expected = sample["stdout"]
    # Ours has lists where the official program prints null for empty ones.
    if expected["data"].get("messages", ()) is None:
        expected["data"]["messages"] = []
    actual = json.loads(result.stdout)
    if sample["pilotctl"] == "1.9.1":
        for key in ONLY_NEWER - expected["data"].keys():
            actual["data"].pop(key, None)
    assert _comparable(actual, shell) == _comparable(expected, shell)


def test_program_in_a_process_of_its_own() -> None:
    sample = next(s for s in SAMPLES if s["argv"][1:3] == ["handshake", "bob"])
    with tempfile.TemporaryDirectory(prefix="pf") as home:
        path = Path(home) / "s"
        with ReplayDaemon(path, sample["frames"]) as daemon:
            answer = subprocess.run(
                [Path(sys.executable).parent / "pilotctl", *sample["argv"]],
                env={"HOME": home, "PILOT_SOCKET": str(path), "PATH": os.defpath},
                capture_output=True,
                timeout=30,
                check=False,
            )
    assert daemon.problems == []
    assert answer.stderr == b""
    assert json.loads(answer.stdout) == sample["stdout"]
    assert answer.returncode == 0
    assert answer.stdout.count(b"\n") == 1
