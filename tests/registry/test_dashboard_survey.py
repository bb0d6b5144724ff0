"""Surveys and windows against a plain count over all agents."""

from __future__ import annotations

import asyncio
import random
from array import array
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import Busy
from pilotfleet.registry.beacon_table import BeaconCounters
from pilotfleet.registry.dashboard import gentle
from pilotfleet.registry.dashboard import listing as listing_module
from pilotfleet.registry.dashboard import survey as survey_module
from pilotfleet.registry.dashboard.figures import NetworkFigures
from pilotfleet.registry.dashboard.gentle import sort_gently
from pilotfleet.registry.dashboard.listing import Listing
from pilotfleet.registry.dashboard.survey import Survey, Surveyor, bins_of
from pilotfleet.registry.dashboard.view import RendezvousView
from pilotfleet.registry.directory.directory import Directory
from pilotfleet.registry.directory.records import (
    Claim,
    NodeRecord,
    PoloRecord,
    encode_record,
    host_key,
    node_key,
    polo_key,
)
from pilotfleet.registry.directory.search import Query
from pilotfleet.registry.metrics import ServerStats
from pilotfleet.registry.store.base import Entry
from tests.registry.world import Hands
from tests.support.http import TIMEOUT_S

COUNT = 3_000
TAGS = ("gpu", "web", "db", "rare")


class Filled:
    """A directory of agents by chance, and the plain truth about it."""

    def __init__(self) -> None:
        chance = random.Random(5)
        self.directory = Directory()
        self.public: list[int] = []
        self.polo: dict[int, int] = {}
        self.names: dict[int, str] = {}
        self.tags: dict[int, frozenset[str]] = {}
        for node in range(1, COUNT + 1):
            public = chance.random() < 0.7
            tags = tuple(tag for tag in TAGS if chance.random() < len(tag) / 9)
            record = NodeRecord(
                id=node,
                key=node.to_bytes(32, "big"),
                created=1000 + chance.randrange(500),
                public=public,
                tags=tags,
                version=chance.choice(["1.18.0", ""]),
            )
            self._put(node_key(node), encode_record(record))
            self.polo[node] = chance.choice([-5, 0, 0, 0, chance.randrange(500)])
            score = PoloRecord(score=self.polo[node])
            self._put(polo_key(node), encode_record(score))
            if chance.random() < 0.8:
                self.names[node] = f"n-{chance.randrange(10**9)}"
                self._put(host_key(self.names[node]), encode_record(Claim(node)))
            self.tags[node] = frozenset(tags)
            if public:
                self.public.append(node)
        self.clock = Hands()
        self.view = RendezvousView(
            directory=self.directory,
            stats=ServerStats(),
            beacon=BeaconCounters(),
            connections=lambda: 0,
            beacon_nodes=lambda: 0,
            clock=self.clock,
            started=0.0,
        )

    def _put(self, key: str, value: bytes) -> None:
        self.directory.apply(Entry(key, value, 1))

    def by(self, order: str) -> list[int]:
        """Return the public agents in an order, counted plainly."""
        keys = {
            "polo": lambda node: (self.polo[node], node),
            "last_seen": lambda node: (self.directory.node(node).last_seen, node),
            "name": lambda node: (
                node not in self.names,
                self.names.get(node, ""),
                node,
            ),
        }
        return sorted(self.public, key=keys[order])


@pytest.fixture(scope="module")
def filled() -> Filled:
    return Filled()


async def test_a_survey_counts_what_is_public(filled: Filled) -> None:
    survey = await Surveyor(filled.view).make()
    assert {name: list(order.ids) for name, order in survey.orders.items()} == {
        name: filled.by(name) for name in ("name", "polo", "last_seen")
    }
    counts = {tag: sum(tag in filled.tags[n] for n in filled.public) for tag in TAGS}
    assert dict(survey.tags) == counts
    assert [count for _, count in survey.tags] == sorted(counts.values(), reverse=True)
    assert list(survey.polo) == sorted(filled.polo[node] for node in filled.public)
    assert sum(count for _, count in survey.versions) == len(filled.public)
    assert {version for version, _ in survey.versions} == {"1.18.0", "unknown"}


@pytest.mark.parametrize("few", [0, 300, 10_000])
async def test_windows_are_slices_of_what_fits(
    filled: Filled, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing_module, "FEW", few)
    surveyor = Surveyor(filled.view)
    listing = Listing(filled.view, surveyor)
    running = asyncio.create_task(surveyor.run())
    chance = random.Random(6)
    for _ in range(60):
        tags = tuple(chance.sample(TAGS, chance.randrange(3)))
        prefix = chance.choice(["", "n-", "n-1", "x"])
        order = chance.choice(["name", "polo", "last_seen"])
        down = chance.random() < 0.5
        offset, limit = chance.randrange(500), chance.randrange(1, 60)
        fits = [
            node
            for node in filled.by(order)
            if filled.tags[node].issuperset(tags)
            and filled.names.get(node, "").startswith(prefix)
        ]
        window = await listing.window(
            Query(tags=tags, hostname_prefix=prefix),
            order,
            offset=offset,
            limit=limit,
            down=down,
        )
        assert window.total == len(fits)
        expected = (fits[::-1] if down else fits)[offset : offset + limit]
        assert [node.record.id for node in window.nodes] == expected
    running.cancel()


async def test_other_work_goes_on_during_a_survey(filled: Filled) -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    await Surveyor(filled.view).make()
    counting.cancel()
    assert turns > COUNT / gentle.SLICE


async def test_nobody_waits_for_ever(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey_module, "WAIT_S", 0.01)
    surveyor = Surveyor(filled.view)
    with pytest.raises(Busy):
        await surveyor.current()


async def test_a_survey_is_made_only_when_somebody_looks(filled: Filled) -> None:
    surveyor = Surveyor(filled.view)
    running = asyncio.create_task(surveyor.run())
    async with asyncio.timeout(TIMEOUT_S):
        first = await surveyor.current()
    assert await surveyor.current() is first
    running.cancel()


async def test_samples_are_bounded_and_rates_are_of_the_time_between(
    filled: Filled,
) -> None:
    figures = NetworkFigures(filled.view, Surveyor(filled.view))
    for _ in range(1_000):
        filled.clock.time += 5.0
        filled.view.stats.record("lookup", 0.001, failed=False)
        figures.sample()
    history = figures.history()
    assert {len(history[name]) for name in ("times", "online", "requests_per_s")} == {
        360
    }
    assert set(history["requests_per_s"]) == {0.2}


@given(st.lists(st.integers(0, 2**60), unique=True, max_size=3_000))
def test_sorting_gently_is_sorting(keys: list[int]) -> None:
    assert asyncio.run(sort_gently(keys)) == sorted(keys)


@given(st.lists(st.integers(-1_000_000, 1_000_000), max_size=200))
def test_histograms_count_every_agent_once(scores: list[int]) -> None:
    survey = Survey(0.0, [], 0, array("l", sorted(scores)), [], {})
    bins = bins_of(survey.polo)
    assert len(bins) <= 20
    assert sum(count for _, _, count in bins) == len(scores)
    for low, high, count in bins:
        assert count == sum(low <= score <= high for score in scores)
    for (_, end, _), (start, _, _) in pairwise(bins):
        assert start == end + 1
    if scores:
        assert survey.percentile(1.0) == max(scores)
        half = survey.percentile(0.5)
        assert sum(score <= half for score in scores) * 2 >= len(scores)
