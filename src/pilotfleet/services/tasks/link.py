"""One live task session, and the link between an agent and a peer that uses it.

A link holds what an agent still has to tell one peer. It dials port 1010 and keeps
the session while it is busy; a peer that refuses the port is an official one, is
remembered as such for a while, and gets one connection on port 1003 for each frame.
Everything is sent again after a failure, with growing pauses, until it is
acknowledged: receivers know repeats by the task id.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import (
    Closed,
    ConnectionRefused,
    DecodeError,
    NotSupported,
    PilotError,
    TimedOut,
)
from pilotfleet.protocol.address import BACKBONE, Address, SocketAddress
from pilotfleet.protocol.services.tasks import (
    SESSION_PORT,
    TASK_PORT,
    Ack,
    Message,
    Ping,
    Results,
    Submit,
    SubmitResponse,
    TaskFrameDecoder,
    decode_message,
    encode_message,
)
from pilotfleet.protocol.services.tasksession import Key, TaskSession, key_of
from pilotfleet.protocol.services.taskstate import FINAL
from pilotfleet.services.tasks.messages import (
    acknowledged_key,
    acknowledgement,
    official_messages,
    status_update,
)
from pilotfleet.services.tasks.record import Pending, TaskKey, TaskRecord
from pilotfleet.services.tasks.turns import Turns
from pilotfleet.transport.backoff import backoff_s

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from pilotfleet.services.tasks.parts import LinkOwner, TaskAgent, TaskStream

__all__ = ["LiveSession", "PeerLink"]

# Of our choosing.
IDLE_S: Final = 60.0
"""A session that carried nothing for this long is closed."""
PING_S: Final = 10.0
"""While the peer works for us, silence of this length is checked."""
ANSWER_LIMIT_S: Final = 30.0
"""A peer that acknowledges nothing for this long is given up, and dialled again."""
DIAL_LIMIT_S: Final = 20.0
OFFICIAL_S: Final = 600.0
"""How long a peer that refused port 1010 counts as official."""
NOTICE_DELAY_S: Final = 0.25
"""Progress reports wait this long: most tasks have ended by then, and the result
says more than the report."""
ANSWER_DELAY_S: Final = 0.35
"""An answer that nobody waits for waits this long for other frames to leave in the
same packet: the result of a quick task, or the next task. A packet costs more than
what is in it."""
MAX_WAITING: Final = 8 * 1024
"""Bytes of answers that wait, some 60 of them: the other side may have no room for
more frames until it gets them."""
ACK_DELAY_S: Final = 0.4
"""So long an acknowledgement of the stream waits to go with a frame: a little longer
than answers, which take it along then."""
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
MAX_UNSENT: Final = 1 << 20
"""Bytes that wait in a session; what is sent of our own stops far below it."""
FILL: Final = 256 * 1024
READ_SIZE: Final = 65_536


class LiveSession:
    """The I/O of one task session: a reader and a writer."""

    def __init__(self, owner: LinkOwner, link: PeerLink, stream: TaskStream) -> None:
        self._owner = owner
        self._link = link
        self._stream = stream
        # Both nodes are ours here, frames go both ways, and they are gathered above.
        stream.defer_acks(ACK_DELAY_S)
        self._core = TaskSession()
        self._wake = asyncio.Event()
        self._last_traffic = owner.now()
        self._is_silent = False
        self._answers_due: asyncio.TimerHandle | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self.is_proven = False
        """True once the peer has sent something: its end is no failed dial then."""
        self.in_flight: dict[Key, TaskRecord] = {}
        """What was sent and is not acknowledged."""

    def wake(self) -> None:
        """Make the writer look for something to send."""
        self._wake.set()

    @property
    def has_room(self) -> bool:
        """True while more of our own may be sent."""
        return self._core.room > 0 and self._core.unsent_bytes < FILL

    def is_in_flight(self, message: Message) -> bool:
        """Return whether this was sent already and is not acknowledged."""
        key = key_of(message)
        return key is not None and self._core.is_waiting_for(key)

    def send(self, message: Message, record: TaskRecord | None = None) -> None:
        """Queue a message, which belongs to ``record``."""
        key = key_of(message)
        if key is not None and record is not None:
            self.in_flight[key] = record
        self._core.send(message, self._owner.now())

    async def run(self) -> None:
        """Carry frames both ways until an end, an error or long silence."""
        reader = asyncio.ensure_future(self._read())
        writer = asyncio.ensure_future(self._write())
        try:
            done, _ = await asyncio.wait(
                (reader, writer), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
            await self._stream.close()
        except BaseException:
            self._stream.abort()
            raise
        finally:
            self._stop_timers()
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
            self._link.detach(self)

    async def _read(self) -> None:
        while data := await self._stream.read(READ_SIZE):
            self._last_traffic = self._owner.now()
            self.is_proven = True
            had = self._core.unsent_bytes
            messages = self._core.receive_data(data, self._last_traffic)
            must_wake = self._core.unsent_bytes > had
            for message, answer in await self._receive_all(messages):
                self._core.send(answer, self._owner.now())
                must_wake = must_wake or not self._may_wait(message, answer)
            if self._core.unsent_bytes > MAX_UNSENT:
                raise DecodeError("task session: the peer reads no answers")
            # What was acknowledged makes room for more of our own.
            is_much = self._core.unsent_bytes > MAX_WAITING
            if must_wake or is_much or self._link.has_unsaid:
                self._wake.set()
            elif self._core.unsent_bytes and self._answers_due is None:
                loop = asyncio.get_running_loop()
                self._answers_due = loop.call_later(ANSWER_DELAY_S, self._wake.set)

    async def _receive_all(
        self, messages: list[Message]
    ) -> list[tuple[Message, Message]]:
        """Apply messages; return what has an answer once all of it is durable."""
        stored = []
        answered: list[tuple[Message, Message]] = []
        for message in messages:
            if isinstance(message, (SubmitResponse, Ack)):
                # Nothing is awaited for these, and they come first: a result may be
                # right behind the answer to its submission.
                answer = await self._receive(message)
                if answer is not None:
                    answered.append((message, answer))
            else:
                stored.append(message)
        if len(stored) == 1:  # The commonest, and far cheaper without a gather.
            answers = [await self._receive(stored[0])]
        else:
            # Together, so that the store writes them together.
            answers = await asyncio.gather(*(self._receive(m) for m in stored))
        for message, answer in zip(stored, answers, strict=True):
            if answer is not None:
                answered.append((message, answer))
        return answered

    def _may_wait(self, message: Message, answer: Message) -> bool:
        """Return whether nobody is kept by an answer that comes a moment later."""
        owner, agent = self._owner, self._link.agent
        match message, answer:
            # Where no program works there is no result that it could go with, and
            # where none follows its tasks no next one.
            case Submit(), SubmitResponse():
                is_unawaited = message.patient and answer.is_accepted
                return is_unawaited and owner.is_served(agent)
            case Results(), _:
                return owner.is_watched(agent)
        return False

    def _stop_timers(self) -> None:
        for timer in (self._answers_due, self._alarm):
            if timer is not None:
                timer.cancel()
        self._answers_due = self._alarm = None

    async def _receive(self, message: Message) -> Message | None:
        key = acknowledged_key(message)
        if key is not None:
            self.in_flight.pop(key, None)
        return await self._owner.receive(
            self._link.agent.name, self._link.peer, message
        )

    async def _write(self) -> None:
        while True:
            self._wake.clear()
            await self._link.fill(self)
            data = self._core.data_to_send()
            if data:
                if self._answers_due is not None:
                    self._answers_due.cancel()
                    self._answers_due = None
                await self._stream.write(data)
                self._last_traffic = self._owner.now()
            elif not self._wake.is_set() and not await self._woken():
                return

    async def _woken(self) -> bool:
        """Wait for something to send; False when the session may end."""
        self._is_silent = False
        if self._alarm is None:
            # One alarm for many frames: it looks at the time when it goes off.
            quiet_s = self._owner.now() - self._last_traffic
            pause_s = PING_S - quiet_s if quiet_s < PING_S else PING_S
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(pause_s, self._on_alarm)
        await self._wake.wait()
        now = self._owner.now()
        is_quiet = self._is_silent and now - self._last_traffic >= PING_S
        return not is_quiet or self._check_silence(now)

    def _on_alarm(self) -> None:
        self._alarm = None
        self._is_silent = True
        self._wake.set()

    def _check_silence(self, now: float) -> bool:
        since = self._core.waiting_since
        if since is not None and now - since > ANSWER_LIMIT_S:
            raise TimedOut("task session: the peer acknowledges nothing")
        if since is None and self._link.is_expecting:
            self._core.send(Ping(), now)
            return True
        return since is not None or now - self._last_traffic < IDLE_S


class PeerLink:
    """What one agent still has to tell one peer, and the way to tell it."""

    def __init__(self, owner: LinkOwner, agent: TaskAgent, peer: int) -> None:
        self.agent = agent
        self.peer = peer
        self._owner = owner
        self._outbox: dict[TaskKey, TaskRecord] = {}
        self._turns = Turns()
        self._is_queued = False
        """True while it waits for the dials of other links."""
        self._notices: dict[TaskKey, TaskRecord] = {}
        self._notices_due = False
        self._expected: set[str] = set()
        self._session: LiveSession | None = None
        self._is_connecting = False
        self._failures = 0

    @property
    def is_expecting(self) -> bool:
        """True while the peer works on tasks of this agent."""
        return bool(self._expected)

    @property
    def has_work(self) -> bool:
        """True while there is a reason to be connected."""
        due = self._notices_due and self._notices
        return bool(self._outbox or due or self._expected)

    @property
    def _is_wanting(self) -> bool:
        return self.has_work and self._session is None

    @property
    def has_unsaid(self) -> bool:
        """True while something waits for room in the session."""
        return bool(self._outbox)

    def enqueue(self, record: TaskRecord) -> None:
        """Tell the peer what ``record.pending`` says, until it acknowledges it."""
        self._outbox[record.key] = record
        if self._session is not None or self._is_queued:
            self._turns.wait(record, self._owner.now())
        self._go()

    def is_held(self, record: TaskRecord) -> bool:
        """Return whether a submission waits for us, and not we for the peer."""
        return record in self._turns

    def notice(self, record: TaskRecord) -> None:
        """Tell the peer soon how far the task is, unless it ends before."""
        if not self._notices and not self._notices_due:
            loop = asyncio.get_running_loop()
            loop.call_later(NOTICE_DELAY_S, self._release_notices)
        self._notices[record.key] = record

    def expect(self, task_id: str) -> None:
        """Watch the peer: it has a task of this agent."""
        self._expected.add(task_id)
        self._go()

    def settle(self, record: TaskRecord) -> None:
        """Stop watching for a task, and trying to deliver it."""
        self._expected.discard(record.task_id)
        self._turns.drop(record)
        if record.pending is Pending.NOTHING:
            self._outbox.pop(record.key, None)

    def start_session(self, stream: TaskStream) -> Coroutine[Any, Any, None]:
        """Use a stream from now on; the caller runs the session that is returned.

        When both nodes dial at once there are two. Both are read, the newer one is
        written to, and the other ends by its silence.
        """
        self._session = LiveSession(self._owner, self, stream)
        # The session's room may not be enough for all of them at once.
        self._wait_for_turn()
        self._owner.official_peers.discard(self.peer)
        return self._session.run()

    def detach(self, session: LiveSession) -> None:
        """Note the end of a session; what it left unacknowledged is sent again."""
        records = {record.key: record for record in session.in_flight.values()}
        self._outbox = {
            key: record
            for key, record in (records | self._outbox).items()
            if record.pending is not Pending.NOTHING
        }
        if self._session is session:
            self._session = None
            self._come_to_turn()
        # A peer that accepts and closes at once is dialled with pauses as well.
        self._failures = 0 if session.is_proven else self._failures + 1
        self._go()

    async def fill(self, session: LiveSession) -> None:
        """Move what there is to say into the session, as far as it has room."""
        if session is not self._session:
            return
        if self._notices_due:
            self._send_notices(session)
        while self._outbox and session.has_room:
            key = next(iter(self._outbox))
            record = self._outbox[key]
            self._turns.come(record, self._owner.now())
            message = await self._owner.message(record)
            self._outbox.pop(key, None)
            if message is not None and not session.is_in_flight(message):
                session.send(message, record)

    def _send_notices(self, session: LiveSession) -> None:
        notices, self._notices = self._notices, {}
        self._notices_due = False
        for record in notices.values():
            if record.status not in FINAL:
                session.send(status_update(record))

    def _release_notices(self) -> None:
        self._notices = {
            key: record
            for key, record in self._notices.items()
            if record.status not in FINAL
        }
        self._notices_due = bool(self._notices)
        self._go()

    def _go(self) -> None:
        if self._session is not None:
            self._session.wake()
        elif self._is_connecting:
            return
        elif self.has_work:
            self._is_connecting = True
            name = f"task link {self.agent.name} to {self.peer}"
            self._owner.spawn(self._connect(), name=name)
        elif not self._notices:
            self._owner.link_idle(self)

    async def _connect(self) -> None:
        """Deliver by whatever way the peer offers, until nothing is left."""
        try:
            while self._is_wanting:
                if self._failures:
                    await asyncio.sleep(self._pause_s())
                try:
                    await self._deliver()
                except PilotError as error:
                    if self._is_wanting:
                        self._note_failure(error)
        finally:
            self._is_connecting = False
        self._go()

    async def _deliver(self) -> None:
        officials = self._owner.official_peers
        if not officials.get(self.peer, self._owner.now()):
            try:
                stream = await self._dial(SESSION_PORT)
            except ConnectionRefused:
                officials.put(self.peer, True, self._owner.now() + OFFICIAL_S)
            else:
                name = f"task session {self.agent.name} to {self.peer}"
                self._owner.spawn(self.start_session(stream), name=name)
                return
        await self._deliver_officially()

    async def _deliver_officially(self) -> None:
        """Say everything on port 1003, one connection for each frame."""
        self._expected.clear()
        notices, self._notices = self._notices, {}
        self._notices_due = False
        for record in notices.values():
            if record.status not in FINAL:
                await self._exchange(status_update(record))
        while self._outbox:
            key = next(iter(self._outbox))
            record = self._outbox[key]
            content = await self._owner.content(record)
            for message in official_messages(record, content):
                await self._exchange(message)
            self._outbox.pop(key, None)
            # Port 1003 has no acknowledgements: its clean end stands for one.
            if record.pending in (Pending.STATUS, Pending.RESULTS, Pending.CANCEL):
                told = acknowledgement(record)
                await self._owner.receive(self.agent.name, self.peer, told)
        self._failures = 0

    async def _exchange(self, message: Message) -> None:
        """Send one frame on a connection of its own and wait for its end."""
        try:
            stream = await self._dial(TASK_PORT)
        except ConnectionRefused as error:
            self._owner.official_peers.discard(self.peer)
            raise NotSupported(f"node {self.peer} has no task service") from error
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                await stream.write(encode_message(message))
                answer = await _read_answer(stream)
        except TimeoutError:
            raise TimedOut(f"node {self.peer} does not answer on port 1003") from None
        finally:
            await stream.close()
        if not isinstance(message, Submit):
            return
        match answer:
            case SubmitResponse() if answer.task_id == message.task_id:
                await self._owner.receive(self.agent.name, self.peer, answer)
            case _:
                raise DecodeError(f"node {self.peer} did not answer a submission")

    async def _dial(self, port: int) -> TaskStream:
        remote = SocketAddress(Address(BACKBONE, self.peer), port)
        # Peers that did not answer must not be in the way of those never asked.
        owner = self._owner
        slots = owner.redial_slots if self._failures else owner.dial_slots
        self._is_queued = True
        self._wait_for_turn()
        try:
            await slots.acquire()
        finally:
            self._is_queued = False
            self._come_to_turn()
        try:
            if port == SESSION_PORT and not self._is_wanting:
                raise Closed(f"no session with node {self.peer} is needed any more")
            return await self.agent.dial(remote, timeout=DIAL_LIMIT_S)
        finally:
            slots.release()

    def _wait_for_turn(self) -> None:
        now = self._owner.now()
        for record in self._outbox.values():
            self._turns.wait(record, now)

    def _come_to_turn(self) -> None:
        now = self._owner.now()
        for record in self._outbox.values():
            self._turns.come(record, now)

    def _note_failure(self, error: PilotError) -> None:
        self._failures += 1
        waiting = [r for r in self._outbox.values() if r.pending is Pending.SUBMIT]
        for record in waiting:
            self._owner.delivery_failed(record, error)
        lost = self._expected.union(record.task_id for record in waiting)
        # Each time: who watches since the last one has not heard it yet.
        if lost:
            self._owner.unreachable(self.agent.name, sorted(lost))
        self._outbox = {
            key: record
            for key, record in self._outbox.items()
            if record.pending is not Pending.NOTHING
        }

    def _pause_s(self) -> float:
        return backoff_s(
            self._failures, first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S
        )


async def _read_answer(stream: TaskStream) -> Message | None:
    """Read until the peer closes, or has answered."""
    decoder = TaskFrameDecoder()
    while data := await stream.read(READ_SIZE):
        frames = decoder.feed(data)
        if frames:
            return decode_message(*frames[0])
    return None
