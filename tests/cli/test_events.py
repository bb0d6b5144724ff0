"""``subscribe``, ``publish`` and ``events …`` (cli.md sections 6.6 and 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.protocol.services.events import encode_event
from tests.cli.support import frame

if TYPE_CHECKING:
    from tests.cli.support import Shell

OPEN = "--no-auto-handshake"
STREAM = bytes.fromhex("00000064")
DIAL = [["c2s", "0300000000000703ea"], ["s2c", "0400000064"]]
CLOSE = [["c2s", "0800000064"]]
TOO_OLD = frame(0x0A, b"\0\1unknown command: 0x80")
OWN = [["c2s", "0d"], ["s2c", frame(0x0E, {"address": "0:0000.0000.0007"})]]


def sent(topic: str, payload: bytes = b"") -> list[str]:
    return ["c2s", frame(6, STREAM + encode_event(topic, payload))]


def received(topic: str, payload: bytes = b"") -> list[str]:
    return ["s2c", frame(7, STREAM + encode_event(topic, payload))]


def called(op: str, reply: dict[str, Any] | str, **request: Any) -> list[list[str]]:
    request = {**request, "id": 1, "op": op}
    if isinstance(reply, dict):
        reply = frame(0x81, {"id": 1, "result": reply})
    return [["c2s", frame(0x80, request)], ["s2c", reply]]


def test_endless_subscription_prints_bare_lines(shell: Shell) -> None:
    tokens = ["subscribe", "7", "t", "--timeout", "300ms", OPEN]
    frames = [*DIAL, sent("t"), received("t", b"1"), received("t", b"2"), *CLOSE]
    result = shell.play(frames, "--json", *tokens)
    assert result.code == 0
    assert result.stdout == (
        '{"bytes":1,"data":"1","topic":"t"}\n{"bytes":1,"data":"2","topic":"t"}\n'
    )
    assert shell.play(frames, *tokens).stdout == "[t] 1\n[t] 2\n"


def test_subscription_that_breaks_keeps_what_it_had(shell: Shell) -> None:
    tokens = ["--json", "subscribe", "7", "t", "--count", "2", OPEN]
    frames = [*DIAL, sent("t"), received("t", b"1"), ["s2c", "0900000064"], *CLOSE]
    data = shell.play(frames, *tokens).data
    assert data["error"] == "the broker closed the subscription"
    assert len(data["events"]) == 1
    frames.remove(received("t", b"1"))
    assert shell.play(frames, *tokens).error["code"] == "connection_failed"


def test_broker_that_sends_nonsense(shell: Shell) -> None:
    frames = [*DIAL, sent("t"), ["s2c", "0700000064ffff"], *CLOSE]
    error = shell.play(frames, "--json", "subscribe", "7", "t", OPEN).error
    assert "topic of 65535 bytes" in error["message"]


def test_topic_that_is_too_long(shell: Shell) -> None:
    tokens = ["--json", "subscribe", "7", "t" * 1025, OPEN]
    assert shell.play([], *tokens).error["code"] == "invalid_argument"


def test_publishing_to_the_fleet_goes_through_the_daemon(shell: Shell) -> None:
    answer = {"topic": "fleet.x", "bytes": 2, "target": "0:0000.0000.0009"}
    frames = called("publish", answer, topic="fleet.x", data="{}")
    tokens = ["events", "publish", "--topic", "fleet.x", "--data", "{}"]
    assert shell.play(frames, "--json", *tokens).data == answer
    frames = called("publish", answer, topic="fleet.x", data="{}", broker="hub")
    assert shell.play(frames, *tokens, "--broker", "hub").stdout == (
        "published 2 bytes to fleet.x\n"
    )


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ('hostname "nobody" not found', "not_found"),
        ("dial timeout", "connection_failed"),
    ],
)
def test_publishing_to_a_broker_that_is_not_there(
    shell: Shell, said: str, code: str
) -> None:
    frames = called("publish", {}, topic="t", data="x", broker="nobody")
    failure = {"code": "connection_failed", "message": said}
    frames[1] = ["s2c", frame(0x81, {"id": 1, "error": failure})]
    tokens = ["events", "publish", "t", "--data", "x", "--broker", "nobody"]
    assert shell.play(frames, "--json", *tokens).error["code"] == code


def test_publishing_through_an_official_daemon(shell: Shell) -> None:
    frames = called("publish", TOO_OLD, topic="t", data="x")
    frames += [*OWN, *DIAL, sent("t"), sent("t", b"x"), *CLOSE]
    result = shell.play(frames, "--json", "events", "publish", "t", "--data", "x")
    assert result.data["target"] == "0:0000.0000.0007"


@pytest.mark.parametrize("flag", ["--target", "--on"])
def test_publishing_at_a_named_node(shell: Shell, flag: str) -> None:
    frames = [*DIAL, sent("t"), sent("t", b"x"), *CLOSE]
    tokens = ["events", "publish", "--topic=t", flag, "7", "--data", "x", OPEN]
    assert shell.play(frames, "--json", *tokens).data["bytes"] == 1


def test_confirmation_is_asked_for_and_must_be_said(shell: Shell) -> None:
    tokens = ["events", "publish", "t", "--data", "x", "--confirm"]
    answer = {"topic": "t", "bytes": 1, "target": "0:0000.0000.0009"}
    frames = called(
        "publish", {**answer, "confirmed": True}, topic="t", data="x", confirm=True
    )
    assert shell.play(frames, "--json", *tokens).data == {**answer, "confirmed": True}
    frames = called("publish", answer, topic="t", data="x", confirm=True)
    error = shell.play(frames, "--json", *tokens).error
    assert "cannot wait for a confirmation" in error["message"]
    frames = called("publish", TOO_OLD, topic="t", data="x", confirm=True)
    error = shell.play(frames, "--json", *tokens).error
    assert error["message"] == "the daemon does not offer 'publish'"


def test_status_of_the_broker(shell: Shell) -> None:
    counters = {"subscribers": 1, "dropped": 120}
    frames = called("events", counters)
    assert shell.play(frames, "--json", "events", "status").data == counters
    text = shell.play(frames, "events", "status").stdout
    assert text == "subscribers  1\ndropped      120\n"


@pytest.mark.parametrize("second", ["subscribe", "publish"])
def test_topic_is_needed(shell: Shell, second: str) -> None:
    error = shell.run("--json", "events", second).error
    assert error["message"].startswith(f"usage: pilotctl events {second} --topic")
