"""Rewards and gates: the published tables, and their bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.protocol.services.polo import MAX_SCORE, gate_allows, reward

VECTORS = Path(__file__).parents[2] / "vectors" / "services.json"
POLO: dict[str, list[dict[str, Any]]] = json.loads(VECTORS.read_text())["polo"]
TIMES = ("time_cpu_ms", "time_idle_ms", "time_staged_ms")


@pytest.mark.parametrize("row", POLO["table"])
def test_recorded_reward(row: dict[str, Any]) -> None:
    assert reward(**{name: row[name] for name in TIMES}) == row["reward"]


@pytest.mark.parametrize("row", POLO["gate"])
def test_recorded_gate(row: dict[str, Any]) -> None:
    allowed = gate_allows(
        submitter=row["submitter"],
        receiver=row["receiver"],
        min_polo=row["min_polo"],
    )
    assert allowed is row["allowed"]


@given(cpu=st.integers(), idle=st.integers(), staged=st.integers())
def test_whatever_a_worker_claims_the_reward_is_bounded(
    cpu: int, idle: int, staged: int
) -> None:
    earned = reward(time_cpu_ms=cpu, time_idle_ms=idle, time_staged_ms=staged)
    assert 1 <= earned <= MAX_SCORE


def test_claims_beyond_floating_point_are_bounded_too() -> None:
    assert reward(time_cpu_ms=10**400) == reward(time_cpu_ms=10**12)
    assert reward(time_cpu_ms=0, time_idle_ms=10**400, time_staged_ms=10**400) == 1
