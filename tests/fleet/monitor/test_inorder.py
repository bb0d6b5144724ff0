"""What several brokers tell comes in the order of time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pilotfleet.fleet.monitor import inorder
from pilotfleet.fleet.monitor.inorder import InOrder

if TYPE_CHECKING:
    import pytest


def put(order: InOrder[str], broker: str, *times: float) -> None:
    for at in times:
        order.put(broker, f"{broker}{at:g}", at=at, size=1)


def due(order: InOrder[str]) -> list[str]:
    return [item for _, item in order.due()]


def test_who_is_ahead_waits_for_who_is_behind() -> None:
    order = InOrder[str]()
    for broker in ("hub", "spare"):
        order.reach(broker, -math.inf)
    order.reach("spare", math.inf)
    put(order, "spare", 3, 9)
    assert due(order) == []
    assert order.oldest == 3
    order.reach("hub", 2)
    put(order, "hub", 2, 4)
    assert due(order) == ["hub2", "spare3", "hub4"]
    order.reach("hub", 8)
    assert due(order) == []
    order.reach("hub", math.inf)
    assert due(order) == ["spare9"]
    assert order.oldest == math.inf


def test_nobody_waits_in_the_present_nor_for_who_went_away() -> None:
    order = InOrder[str]()
    order.reach("hub", math.inf)
    order.reach("spare", 5)
    put(order, "hub", 7)
    assert due(order) == []
    order.reach("spare", math.inf)
    assert due(order) == ["hub7"]
    put(order, "spare", 6)
    put(order, "hub", 8)
    assert due(order) == ["spare6", "hub8"]


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    order = InOrder[str]()
    order.reach("hub", -math.inf)
    monkeypatch.setattr(inorder, "MAX_HELD", 3)
    put(order, "spare", 1, 2, 3, 4, 5)
    assert due(order) == ["spare1", "spare2"]
    monkeypatch.setattr(inorder, "MAX_HELD_BYTES", 2)
    assert due(order) == ["spare3"]
    order.clear()
    assert due(order) == []
