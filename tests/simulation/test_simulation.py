"""The simulator: the same seed gives the same trace, and its fleets behave."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from bench.simulation.apart import simulate_apart
from bench.simulation.calibration import calibrate
from bench.simulation.costs import ServiceTimes
from bench.simulation.figures import cpu_of, megabits, memory_mib, replica_of
from bench.simulation.kernel import Kernel
from bench.simulation.options import RunOptions
from bench.simulation.sharedstore import with_shared_store
from bench.simulation.world import Outcome, SimulatedWorld
from pilotfleet.client.links import LinkConfig
from pilotfleet.registry.service import ServiceConfig

if TYPE_CHECKING:
    from pathlib import Path

    from bench.simulation.kernel import Process

TIMES = ServiceTimes(
    alone={"register": 150.0, "heartbeat": 10.0, "lookup": 10.0, "search": 300.0},
    batched={"register": 140.0, "heartbeat": 3.0, "lookup": 10.0},
)
SMALL = RunOptions(
    agents=200, per_host=50, keepalive_s=10, duration_s=20, searches_per_s=10
)
COLD = replace(SMALL, cold=True, duration_s=5)


async def simulate(options: RunOptions, times: ServiceTimes = TIMES) -> Outcome:
    return await SimulatedWorld(options, times).run()


@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        COLD,
        replace(SMALL, batch=False),
        replace(SMALL, restart_at_s=3.0),
        replace(SMALL, churn_per_h=20.0),
        replace(COLD, per_host=1),
    ],
    ids=["steady", "cold", "no batch", "restart", "churn", "separate"],
)
async def test_the_same_seed_gives_the_same_trace(options: RunOptions) -> None:
    first, second = await simulate(options), await simulate(options)
    assert first.trace == second.trace
    assert first.events == second.events
    assert first.account.requests == second.account.requests
    assert first.account.search_s == second.account.search_s
    other = await simulate(replace(options, seed=2))
    assert other.trace != first.trace


async def test_service_times_are_part_of_what_decides_the_trace(
    tmp_path: Path,
) -> None:
    path = tmp_path / "times.json"
    TIMES.save(path)
    run = await simulate(COLD, ServiceTimes.load(path))
    assert run.trace == (await simulate(COLD)).trace
    assert run.trace != (await simulate(COLD, replace(TIMES, wake=400.0))).trace


@pytest.mark.parametrize("batch", [True, False])
async def test_every_agent_beats_once_per_keepalive(batch: bool) -> None:
    run = await simulate(replace(SMALL, batch=batch))
    beats = run.account.requests["heartbeat"]
    # Two periods; the grid makes them a quarter of a second longer.
    assert 2 * 200 * 0.93 <= beats <= 2 * 200
    assert run.account.requests["poll_handshakes"] == beats
    assert not run.account.errors
    # Every signature was seen in the period before.
    assert run.account.checks == 0


async def test_all_agents_of_a_cold_start_come_up_tagged_and_findable() -> None:
    world = SimulatedWorld(COLD, TIMES)
    run = await world.run()
    assert run.all_up_s is not None
    assert run.refused == 0
    nodes = world.rendezvous.directory.nodes
    assert len(nodes.live) == len(nodes.public) == 200
    assert nodes.tags.count("worker") == nodes.tags.count("team-0") == 200
    # The one who watches the team was told of all of it.
    assert set(world.watchers[0].state.known) == set(world.nodes)
    assert len(set(world.nodes)) == 200
    assert run.account.requests["register"] == 200


async def test_batches_save_arrivals_and_time() -> None:
    alone = await simulate(replace(SMALL, batch=False, searches_per_s=0))
    together = await simulate(replace(SMALL, searches_per_s=0))
    assert together.account.wakes < alone.account.wakes
    assert together.account.busy_s < alone.account.busy_s


async def test_admission_spreads_a_crowd_of_separate_daemons() -> None:
    crowd = replace(COLD, agents=300, per_host=1, searches_per_s=20, watchers=False)
    config = ServiceConfig(new_nodes_per_second=50, new_nodes_burst=100)
    run = await SimulatedWorld(crowd, TIMES, config).run()
    assert run.all_up_s is not None
    # Of 300 a hundred fit; the others are told when to come, and come only then.
    assert 3.9 <= run.all_up_s <= 8.0
    assert 200 <= run.account.waits.total() <= 400
    assert run.account.requests["register"] == 300 + run.account.waits.total()
    assert run.account.dials[0] == 300


async def test_a_restart_is_survived_by_all_without_a_stampede() -> None:
    run = await simulate(replace(SMALL, restart_at_s=3.0, down_s=4.0))
    assert run.recovered_s is not None
    # One keepalive, the absence, and what the pauses of clients add.
    assert run.recovered_s < 10 + 4 + 15
    assert run.account.failed_searches > 0
    # A host dials with its links, each with growing pauses, never once an agent.
    hosts, links = SMALL.hosts, SMALL.links
    assert max(run.account.dials.values()) <= 2 * hosts * links
    assert run.account.dials.total() <= LinkConfig().attempts * hosts * links
    # What a restarted registry has forgotten is verified once more, and only once.
    assert 0 < run.account.checks <= 2 * SMALL.agents


async def test_churn_registers_agents_again() -> None:
    run = await simulate(replace(SMALL, churn_per_h=20.0))
    # 200 agents, 20 times an hour, over 20 s: about 22.
    assert 5 <= run.account.requests["register"] <= 50
    assert not run.account.errors


async def test_watchers_are_told_what_churn_changes() -> None:
    world = SimulatedWorld(replace(SMALL, churn_per_h=20.0), TIMES)
    run = await world.run()
    live = set(world.rendezvous.directory.nodes.live)
    known = world.watchers[0].state.known
    # All agents at first, and each new one since; the last may not be told yet.
    assert run.changes_seen > 200
    assert len(set(known) ^ live) <= 2
    assert run.account.told > 0
    assert run.account.watching_s > 0


async def test_a_wait_without_news_ends_and_is_asked_again() -> None:
    run = await simulate(replace(SMALL, agents=50, duration_s=40))
    assert run.account.requests["watch"] >= 1
    assert run.account.told == 0


async def test_watchers_come_back_after_a_restart() -> None:
    world = SimulatedWorld(replace(SMALL, restart_at_s=3.0, duration_s=30), TIMES)
    await world.run()
    state = world.watchers[0].state
    assert state.is_complete
    assert len(state.known) == 200


async def test_watches_take_a_quarter_of_a_core_and_answer_later_instead() -> None:
    slow = replace(TIMES, compare=500_000.0)
    options = replace(SMALL, churn_per_h=400.0, searches_per_s=0)
    quick, late = await simulate(options), await simulate(options, slow)
    # Four looks a second; and one of half a second, with three times that as a rest.
    assert quick.account.compared > 30
    assert 5 <= late.account.compared <= 11
    assert late.account.busy_s > quick.account.busy_s + 2


def test_numbers_without_sense_are_refused() -> None:
    for wrong in ({"agents": 0}, {"churn_per_h": -1.0}, {"duration_s": math.nan}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RunOptions(**wrong)


def test_memory_is_measured_in_parts() -> None:
    options = replace(SMALL, agents=20_000, per_host=5_000, duration_s=1)
    run = simulate_apart(options, TIMES)
    assert run.loaded is not None
    parts = run.loaded
    assert parts.directory_bytes > parts.signatures_bytes > 0
    assert parts.beacon_bytes > 0
    whole = memory_mib(run, TIMES)
    assert whole is not None
    assert whole * 1024 * 1024 > parts.bytes


async def test_needs_are_sums_of_their_parts_and_shrink_with_replicas() -> None:
    run = await simulate(SMALL)
    cpu, (into, out) = cpu_of(run, TIMES), megabits(run)
    assert cpu.total > cpu.answering > 0
    assert into > 0
    assert out > into
    one, two, four = (replica_of(run, TIMES, n) for n in (1, 2, 4))
    assert one.cores == pytest.approx(cpu.total)
    assert one.mbit_out == pytest.approx(out)
    assert cpu.total / 4 < four.cores < two.cores < one.cores
    assert one.mib is not None
    assert two.mib is not None
    assert run.loaded is not None
    # The directory is kept whole, what belongs to clients is not.
    assert run.loaded.directory_bytes / 2**20 < two.mib < one.mib


def test_a_change_in_a_shared_store_is_measured() -> None:
    times = with_shared_store(replace(TIMES, share=0.0, follow=0.0))
    assert 0 < times.share < 10_000
    assert 0 < times.follow < 10_000


async def test_calibration_measures_every_type_that_hosts_send() -> None:
    times = await calibrate(nodes=128)
    kinds = {"register", "lookup", "set_tags", "heartbeat", "poll_handshakes", "search"}
    assert kinds <= times.alone.keys() & times.batched.keys()
    assert all(0 < us < 50_000 for us in times.alone.values())
    assert times.verify > 0
    assert times.store > 0


async def test_a_registry_remembers_the_signatures_of_all_its_nodes() -> None:
    # Two of each agent come back in every period; a memory of fixed size forgets them.
    world = SimulatedWorld(replace(SMALL, searches_per_s=0), TIMES)
    world.rendezvous.signatures._half = 100
    run = await world.run()
    assert run.account.requests["heartbeat"] > 200
    assert run.account.checks == 0


async def test_events_keep_their_order_and_processes_resume() -> None:
    kernel, seen = Kernel(0), list[str]()

    def process(name: str, pause: float) -> Process:
        seen.append(f"{name} at {kernel.time}")
        yield pause
        answer = yield lambda resume: kernel.after(1.0, resume, "answer")
        seen.append(f"{name} has {answer} at {kernel.time}")

    kernel.spawn(process("one", 2.0))
    kernel.spawn(process("two", 1.0))
    await kernel.run(10.0)
    assert seen == [
        *("one at 0.0", "two at 0.0"),
        *("two has answer at 2.0", "one has answer at 3.0"),
    ]
    assert kernel.time == 10.0
