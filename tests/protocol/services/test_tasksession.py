"""Two ends of a task session in memory, without a network."""

from __future__ import annotations

import pytest

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.services.tasks import (
    Ack,
    Cancel,
    FrameType,
    Message,
    Ping,
    Results,
    StatusUpdate,
    Submit,
    SubmitResponse,
    encode_frame,
    encode_message,
)
from pilotfleet.protocol.services.tasksession import WINDOW, TaskSession, key_of


def carry(source: TaskSession, target: TaskSession, now: float) -> list[Message]:
    return target.receive_data(source.data_to_send(), now)


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (Submit("a", "text"), SubmitResponse("a", 200)),
        (Results("a"), Ack("a")),
        (Cancel("a"), Ack("a", FrameType.CANCEL)),
        (Ping(), Ack("ping", FrameType.PING)),
        (StatusUpdate("a", "DECLINED"), Ack("a", FrameType.STATUS_UPDATE)),
    ],
)
def test_what_must_arrive_is_kept_until_its_own_answer(
    message: Message, answer: Message
) -> None:
    near, far = TaskSession(), TaskSession()
    near.send(message, 1.0)
    key = key_of(message)
    assert key is not None
    assert near.is_waiting_for(key)
    assert near.waiting_since == 1.0
    assert carry(near, far, 2.0) == [message]
    far.send(answer, 2.0)
    assert carry(far, near, 3.0) == [answer]
    assert not near.is_waiting_for(key)
    assert near.waiting_since is None


def test_progress_is_not_acknowledged() -> None:
    near = TaskSession()
    near.send(StatusUpdate("a", "EXECUTING"), 1.0)
    assert near.waiting_since is None
    assert near.room == WINDOW


def test_answers_nobody_waits_for_are_dropped() -> None:
    near, far = TaskSession(), TaskSession()
    near.send(Submit("a", "text"), 1.0)
    far.send(SubmitResponse("b", 200), 1.0)
    far.send(Ack("a"), 1.0)
    far.send(Ack("a", 99), 1.0)
    assert carry(far, near, 2.0) == []
    assert near.is_waiting_for((FrameType.SUBMIT, "a"))


def test_second_answer_to_one_frame_is_dropped() -> None:
    near, far = TaskSession(), TaskSession()
    near.send(Results("a"), 1.0)
    far.send(Ack("a"), 1.0)
    far.send(Ack("a"), 1.0)
    assert carry(far, near, 2.0) == [Ack("a")]


def test_both_ends_may_submit() -> None:
    near, far = TaskSession(), TaskSession()
    near.send(Submit("a", "for far"), 1.0)
    far.send(Submit("a", "for near"), 1.0)
    assert carry(near, far, 2.0) == [Submit("a", "for far")]
    assert carry(far, near, 2.0) == [Submit("a", "for near")]
    far.send(SubmitResponse("a", 200), 2.0)
    carry(far, near, 3.0)
    assert not near.is_waiting_for((FrameType.SUBMIT, "a"))
    assert far.is_waiting_for((FrameType.SUBMIT, "a"))


def test_wait_begins_anew_with_every_answer() -> None:
    near, far = TaskSession(), TaskSession()
    near.send(Submit("a", ""), 1.0)
    near.send(Submit("b", ""), 5.0)
    assert near.waiting_since == 1.0
    far.send(SubmitResponse("a", 200), 8.0)
    carry(far, near, 9.0)
    assert near.waiting_since == 9.0


def test_many_frames_leave_in_one_write() -> None:
    near, far = TaskSession(), TaskSession()
    sent = [Submit(f"t{number}", "text") for number in range(WINDOW)]
    for message in sent:
        near.send(message, 1.0)
    assert near.room == 0
    data = near.data_to_send()
    assert near.unsent_bytes == 0
    assert near.data_to_send() == b""
    assert far.receive_data(data, 2.0) == sent


def test_submission_with_a_bad_id_is_refused_and_the_session_lives_on() -> None:
    near = TaskSession()
    bad = encode_frame(1, b'{"task_id":"../evil","task_description":"x"}')
    good = encode_message(Submit("good", "x"))
    assert near.receive_data(bad + good, 1.0) == [Submit("good", "x")]
    assert b'"status":400' in near.data_to_send()


@pytest.mark.parametrize(
    "data",
    [
        encode_frame(1, b"nonsense"),
        encode_frame(2, b'{"task_id":"a"}'),
        encode_frame(4, b'{"task_id":"../evil"}'),
        encode_frame(1, b'{"task_id":"../evil","status":200}'),
        b"\0\0\0\1\xff\xff\xff\xff",
    ],
)
def test_a_broken_peer_ends_the_session(data: bytes) -> None:
    with pytest.raises(DecodeError):
        TaskSession().receive_data(data, 1.0)
