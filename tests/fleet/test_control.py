"""The control socket: real sockets, and an answer that the test decides."""

from __future__ import annotations

import asyncio
import contextlib
import json
import stat
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import (
    AlreadyExists,
    ConnectionFailed,
    InvalidArgument,
    NotFound,
    NotRunning,
)
from pilotfleet.fleet import controlserver
from pilotfleet.fleet.control import (
    CONTROL_SOCKET,
    MAX_LINE,
    FleetControl,
    Results,
    Rollout,
    Scale,
    Status,
    Submit,
    check_batch,
    decode_request,
)
from pilotfleet.fleet.controlserver import ControlServer
from pilotfleet.fleet.schedule import TaskResult
from pilotfleet.fleet.taskfile import MAX_TASK_BYTES, TaskLine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.fleet.control import Request
    from pilotfleet.fleet.controlserver import Reply


class Fleet:
    """Answers as the tests expect, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.cancelled = asyncio.Event()

    async def answer(self, request: Request, reply: Reply) -> Any:
        self.asked.append(request)
        match request:
            case Status():
                return {"name": "f"}
            case Submit(_, lines):
                if any(line.id == "known" for line in lines):
                    raise AlreadyExists("known", hint="another id")
                return {"added": len(lines)}
            case Results("none"):
                raise NotFound("no such batch")
            case Results(batch, _, follow):
                result = TaskResult(batch, "SUCCEEDED", "w", "\0" * 1_000_000, 1, 2.0)
                await reply.item({"seq": 7, "result": result})
                return {} if not follow else await self._wait_for_ever()
            case Scale(workers):
                reply.say("one")
                reply.say("two")
                return {"workers": workers}
        return {}

    async def _wait_for_ever(self) -> dict[str, Any]:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        return {}


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
async def control(tmp_path: Path, fleet: Fleet) -> AsyncIterator[FleetControl]:
    async with ControlServer(tmp_path / CONTROL_SOCKET, fleet.answer):
        yield FleetControl(tmp_path)


async def raw(control: FleetControl, data: bytes) -> dict[str, Any]:
    """Send bytes as they are and return the answer."""
    reader, writer = await asyncio.open_unix_connection(str(control.path))
    with contextlib.suppress(OSError):
        writer.write(data)
        await writer.drain()
    answer = await reader.readline()
    writer.close()
    return dict(json.loads(answer))


async def test_socket_is_for_its_user_alone(control: FleetControl) -> None:
    assert stat.S_IMODE(control.path.stat().st_mode) == 0o600


async def test_question_is_answered(control: FleetControl) -> None:
    assert await control.status() == {"name": "f"}


async def test_error_arrives_as_it_was_raised(control: FleetControl) -> None:
    with pytest.raises(AlreadyExists, match="known") as caught:
        await control.submit("b", [TaskLine("known", "x")])
    assert caught.value.hint == "another id"


async def test_progress_is_told(control: FleetControl) -> None:
    said: list[str] = []
    assert await control.scale(3, progress=said.append) == {"workers": 3}
    assert said == ["one", "two"]


async def test_many_lines_are_sent_in_pieces_that_fit(
    control: FleetControl, fleet: Fleet
) -> None:
    # The longest text there is, in the form in which JSON makes most of it.
    lines = [TaskLine(str(number), "\1" * MAX_TASK_BYTES) for number in range(40)]
    assert await control.submit("b", lines) == len(lines)
    pieces = [request.lines for request in fleet.asked if isinstance(request, Submit)]
    assert len(pieces) > 2
    assert [line for piece in pieces for line in piece] == lines


async def test_longest_result_fits(control: FleetControl) -> None:
    results = [item async for item in control.results("b", follow=False)]
    assert [(item.seq, len(item.result.result)) for item in results] == [(7, 1_000_000)]


async def test_follower_that_leaves_is_noticed(
    control: FleetControl, fleet: Fleet
) -> None:
    async with contextlib.aclosing(control.results("b")) as results:
        async for item in results:
            assert item.seq == 7
            break
    await fleet.cancelled.wait()


async def test_unknown_batch_is_told(control: FleetControl) -> None:
    with pytest.raises(NotFound):
        await anext(control.results("none"))


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"{\n", "control request"),
        (b"[1]\n", "control request"),
        (b'{"op":"dance"}\n', "dance"),
        (b'{"op":"scale"}\n', "workers"),
        (b'{"op":"scale","workers":0}\n', "workers"),
        (b'{"op":"submit","batch":"a/b","lines":[]}\n', "batch"),
        (b'{"op":"rollout","batch":1.5}\n', "batch"),
        (b"[" * 100_000 + b"\n", "control request"),
        (b"x" * (MAX_LINE + 1) + b"\n", "control request"),
    ],
)
async def test_bad_request_is_refused(
    control: FleetControl, data: bytes, named: str
) -> None:
    answer = await raw(control, data)
    assert answer["error"]["code"] == "invalid_argument"
    assert named in answer["error"]["message"]


async def test_clients_are_bounded(
    control: FleetControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controlserver, "MAX_CLIENTS", 1)
    async with contextlib.aclosing(control.results("b")) as results:
        await anext(results)
        with pytest.raises(ConnectionFailed):
            await control.status()
    for _ in range(100):
        with contextlib.suppress(ConnectionFailed):
            assert await control.status()
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the place was not given back")


async def test_nobody_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="no fleet runs in"):
        await FleetControl(tmp_path).status()


async def test_answers_under_way_are_given_up_in_the_end(
    tmp_path: Path, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controlserver, "CLOSE_S", 0.01)
    control = FleetControl(tmp_path)
    results = control.results("b")
    async with ControlServer(tmp_path / CONTROL_SOCKET, fleet.answer):
        await anext(results)
    with pytest.raises(ConnectionFailed, match="ended before it answered"):
        await anext(results)
    assert not control.path.exists()


async def test_socket_left_behind_is_replaced(tmp_path: Path, fleet: Fleet) -> None:
    (tmp_path / CONTROL_SOCKET).touch()
    async with ControlServer(tmp_path / CONTROL_SOCKET, fleet.answer):
        assert await FleetControl(tmp_path).status()


async def test_long_home_has_a_socket_too(tmp_path: Path, fleet: Fleet) -> None:
    home = tmp_path / ("x" * 90) / ("y" * 90)
    home.mkdir(parents=True)
    async with ControlServer(home / CONTROL_SOCKET, fleet.answer):
        assert await FleetControl(home).status()


@pytest.mark.parametrize("name", ["", "a/b", ".a", "x" * 65, "a b", "ä"])
def test_bad_batch_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="batch name"):
        check_batch(name)


def test_requests_have_defaults() -> None:
    assert decode_request(b'{"op":"rollout"}') == Rollout(batch=1, spec=None)
    assert decode_request(b'{"op":"results","batch":"b"}') == Results("b", 0, False)
