"""Extension frames."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import (
    DaemonError,
    DecodeError,
    NotFound,
    PilotError,
    TrustRequired,
)
from pilotfleet.protocol.ipc import extension


def test_a_request_carries_id_op_and_parameters() -> None:
    body = extension.encode_request(7, "search", {"tags": ["text"], "limit": 5})
    assert json.loads(body) == {"id": 7, "op": "search", "tags": ["text"], "limit": 5}
    request = extension.decode_request(body)
    assert (request.id, request.op) == (7, "search")
    assert request.params == {"tags": ["text"], "limit": 5}


def test_a_result_comes_back() -> None:
    reply = extension.decode_reply(extension.encode_result(7, {"total": 3}))
    assert reply == extension.ExtensionReply(7, {"total": 3})


@pytest.mark.parametrize("kind", [NotFound, TrustRequired])
def test_an_error_comes_back_as_its_class(kind: type[PilotError]) -> None:
    body = extension.encode_failure(1, kind("no such agent", hint="look again"))
    reply = extension.decode_reply(body)
    assert reply.error is not None
    error = extension.error_from_reply(reply.error)
    assert type(error) is kind
    assert str(error) == "no such agent"
    assert error.hint == "look again"


def test_an_unknown_code_is_a_daemon_error() -> None:
    reply = extension.decode_reply(b'{"id":1,"error":{"code":"new","message":"m"}}')
    assert reply.error is not None
    assert type(extension.error_from_reply(reply.error)) is DaemonError


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"x"',
        b"{",
        b"\xff",
        b"{}",
        b'{"id":1}',
        b'{"id":"1","op":"x"}',
        b'{"id":true,"op":"x"}',
        b'{"id":1,"op":2}',
    ],
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        extension.decode_request(body)


@given(st.binary(max_size=200))
def test_garbage_gives_a_value_or_our_error(data: bytes) -> None:
    for decode in (
        extension.decode_object,
        extension.decode_request,
        extension.decode_reply,
    ):
        try:
            decode(data)
        except DecodeError:
            continue


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(DecodeError):
        extension.decode_object(b'{"a":' * 100_000)
