"""Time that a task spends in our own queues is not time that its worker had."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from pilotfleet.errors import TimedOut
from pilotfleet.node.cache import ExpiringCache
from pilotfleet.protocol.services.tasks import Submit
from pilotfleet.protocol.services.taskstate import Role
from pilotfleet.services.tasks.link import ANSWER_LIMIT_S, PeerLink
from pilotfleet.services.tasks.record import Pending, TaskRecord
from pilotfleet.services.tasks.turns import LONGEST_TURN_S, WorkingClock
from tests.services.tasks.support import TaskWorld, pair, submit, until

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from pilotfleet.errors import PilotError
    from pilotfleet.protocol.address import SocketAddress
    from pilotfleet.protocol.services.tasks import Message

pytestmark = pytest.mark.timeout(60)


class Dialler:
    """An agent whose dials end when the test says so."""

    name = "hub"

    def __init__(self) -> None:
        self.dials: list[tuple[int, asyncio.Future[Any]]] = []

    async def dial(self, remote: SocketAddress, *, timeout: float | None = None) -> Any:
        outcome = asyncio.get_running_loop().create_future()
        self.dials.append((remote.address.node, outcome))
        return await outcome


class Owner:
    """A task service with one slot for each kind of dial, and a clock of its own."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.dial_slots = asyncio.Semaphore(1)
        self.redial_slots = asyncio.Semaphore(1)
        self.official_peers: ExpiringCache[int, bool] = ExpiringCache(10)
        self.failed: list[str] = []
        self.tasks: list[asyncio.Task[Any]] = []

    def now(self) -> float:
        return self.time

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str) -> object:
        self.tasks.append(asyncio.ensure_future(coro))
        return self.tasks[-1]

    def link_idle(self, link: PeerLink) -> None:
        pass

    def unreachable(self, agent: str, task_ids: list[str]) -> None:
        pass

    def delivery_failed(self, record: TaskRecord, error: PilotError) -> None:
        self.failed.append(record.task_id)

    async def message(self, record: TaskRecord) -> Message | None:
        return Submit(record.task_id, "text", "a", "b")

    async def receive(self, agent: str, peer: int, message: Message) -> Message | None:
        return None

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def owner() -> Any:
    owner = Owner()
    yield owner
    await owner.close()


def link_to(owner: Owner, agent: Dialler, peer: int) -> PeerLink:
    return PeerLink(cast("Any", owner), cast("Any", agent), peer)


def record_for(peer: int, deliver_by: float = 5000.0) -> TaskRecord:
    return TaskRecord(
        *("hub", Role.SUBMITTED, f"task-{peer}", peer, "a", "b", "text", 4000.0),
        deliver_by=deliver_by,
        pending=Pending.SUBMIT,
    )


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_wait_for_other_dials_takes_no_time_of_the_delivery(
    owner: Owner,
) -> None:
    agent = Dialler()
    first, second = link_to(owner, agent, 1), link_to(owner, agent, 2)
    one, two = record_for(1), record_for(2)
    first.enqueue(one)
    second.enqueue(two)
    await turns()
    assert [peer for peer, _ in agent.dials] == [1]
    assert (first.is_held(one), second.is_held(two)) == (False, True)
    owner.time += 300.0
    late = record_for(2)
    late.task_id = "late"
    second.enqueue(late)
    owner.time += 100.0
    agent.dials[0][1].set_exception(TimedOut("no"))
    await turns()
    assert [peer for peer, _ in agent.dials] == [1, 2]
    assert not second.is_held(two)
    assert not second.is_held(late)
    assert (one.deliver_by, two.deliver_by, late.deliver_by) == (5000, 5400, 5100)
    assert owner.failed == ["task-1"]


async def test_peers_that_do_not_answer_are_not_in_the_way_of_others(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.services.tasks.link.FIRST_PAUSE_S", 0.0)
    agent = Dialler()
    dead, alive = link_to(owner, agent, 1), link_to(owner, agent, 2)
    dead.enqueue(record_for(1))
    await turns()
    agent.dials[0][1].set_exception(TimedOut("no"))
    await turns(50)
    alive.enqueue(record_for(2))
    await turns()
    assert [peer for peer, _ in agent.dials] == [1, 1, 2]


async def test_nobody_is_dialled_for_what_is_not_wanted_any_more(owner: Owner) -> None:
    agent = Dialler()
    first, second = link_to(owner, agent, 1), link_to(owner, agent, 2)
    record = record_for(2)
    first.enqueue(record_for(1))
    second.enqueue(record)
    await turns()
    record.pending = Pending.NOTHING
    second.settle(record)
    assert not second.is_held(record)
    agent.dials[0][1].set_exception(TimedOut("no"))
    await turns()
    assert [peer for peer, _ in agent.dials] == [1]
    assert not owner.dial_slots.locked()


class SlowStream:
    """A peer that answers when the test says so, and reads everything."""

    def __init__(self) -> None:
        self.written = b""

    async def read(self, limit: int = 0) -> bytes:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def write(self, data: bytes) -> None:
        self.written += data

    def defer_acks(self, delay_s: float) -> None:
        pass

    async def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


async def test_what_has_no_room_in_a_session_waits_without_losing_time(
    owner: Owner,
) -> None:
    agent = Dialler()
    link = link_to(owner, agent, 1)
    records = [record_for(1) for _ in range(257)]
    for number, record in enumerate(records):
        record.task_id = f"t{number}"
        link.enqueue(record)
    await turns()
    agent.dials[0][1].set_result(SlowStream())
    await turns(1000)
    assert [link.is_held(record) for record in records] == [False] * 256 + [True]


def test_a_loop_that_comes_round_late_has_waited_for_a_turn_only() -> None:
    now = 1000.0
    working = WorkingClock(lambda: now)
    begin = working()
    now += LONGEST_TURN_S
    assert working() == begin + LONGEST_TURN_S
    assert working.tick() == 0.0
    now += ANSWER_LIMIT_S
    # Looking at it often, in one long turn of the loop, does not make it go.
    assert [working(), working()] == [begin + 2 * LONGEST_TURN_S] * 2
    assert working.tick() == ANSWER_LIMIT_S - LONGEST_TURN_S
    assert working() == begin + 2 * LONGEST_TURN_S
    now += 0.5
    assert working() == begin + 2 * LONGEST_TURN_S + 0.5


async def test_a_task_in_our_own_queue_does_not_expire(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    await boss.call("watch")
    await program.call("serve", agents=["worker"])
    slots = hub.tasks.dial_slots
    taken = 0
    while not slots.locked():
        await slots.acquire()
        taken += 1
    task_id = await submit(boss, worker, wait=False, deliver_within_s=100)
    await until(lambda: slots._waiters, "the link waits for a slot")
    hub.wall.ahead += 101.0
    # Whoever looks at the limits finds a task that nobody has had a chance to take.
    [record] = hub.tasks.table
    hub.tasks.submitted.check_limits(record)
    assert record.is_open
    hub.wall.ahead = 0.0
    for _ in range(taken):
        slots.release()
    assert await program.offer() == task_id


async def test_a_process_without_turns_loses_no_delivery(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    await worker.close()
    boss = await hub.program()
    await submit(boss, worker, wait=False, deliver_within_s=100)
    [record] = hub.tasks.table
    before = record.deliver_by
    hub.tasks.now._ticked -= 50.0
    await until(lambda: record.deliver_by > before, "the time is given back")
    assert before + 48.0 < record.deliver_by < before + 60.0
