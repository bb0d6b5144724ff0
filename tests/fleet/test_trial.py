"""When the first results of what was replaced convict it."""

from __future__ import annotations

import pytest

from pilotfleet.errors import NotRunning
from pilotfleet.fleet import trial
from pilotfleet.fleet.actions import TaskResult
from pilotfleet.fleet.trial import FAILURES, Trial


def result(agent: str, status: str) -> TaskResult:
    return TaskResult("t", status, agent, "", 1, 1.0, error="exit status 3")


async def test_failures_without_a_success_convict() -> None:
    judged = Trial(["w1", "w2"])
    for number in range(FAILURES):
        judged.add(result(f"w{number % 2 + 1}", "FAILED"))
    with pytest.raises(NotRunning, match="exit status 3"):
        await judged.wait()


async def test_one_success_acquits() -> None:
    judged = Trial(["w1"])
    for status in ("FAILED", "SUCCEEDED", *["FAILED"] * FAILURES):
        judged.add(result("w1", status))
    await judged.wait()


async def test_others_and_silence_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TRIAL_S", 0.01)
    judged = Trial(["w1"])
    for _ in range(FAILURES):
        judged.add(result("w9", "FAILED"))
    judged.add(result("w1", "FAILED"))
    await judged.wait()
