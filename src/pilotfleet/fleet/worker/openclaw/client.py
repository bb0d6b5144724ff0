"""One task as one turn of an OpenClaw agent, over a gateway's HTTP endpoint.

The endpoint is ``POST /v1/chat/completions``; its ``model`` names an agent of the
gateway, and a header names the session that the turn belongs to. What the statuses
mean was found by asking the program (2026.9.6):

* 400 and 404: the request itself is refused, and would be again;
* 401: the token is wrong, or the model's provider refuses its key;
* 408, 429 and 5xx: the model did not answer, or the run failed on the way.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

import msgspec

from pilotfleet.errors import (
    NotFound,
    NotSupported,
    PermissionDenied,
    ProtocolError,
    Unavailable,
)
from pilotfleet.fleet.worker.job import MAX_RESULT_BYTES, Outcome
from pilotfleet.fleet.worker.openclaw.http import exchange

if TYPE_CHECKING:
    from pilotfleet.fleet.worker.job import Job
    from pilotfleet.fleet.worker.openclaw.http import Endpoint

__all__ = ["ask", "check", "session_key"]

COMPLETIONS: Final = "/v1/chat/completions"
MODELS: Final = "/v1/models"
REFUSALS: Final = frozenset({400, 404, 405, 413, 415, 422})
"""Statuses that another attempt would get, too."""
MAX_REASON_CHARS: Final = 1_000
MAX_KEY_PART: Final = 48

_UNSAFE: Final = re.compile(r"[^a-z0-9_-]+")


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class _Failure(msgspec.Struct):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Failure


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def session_key(openclaw_agent: str, job: Job) -> str:
    """Return the session of one fleet identity and task, and of no other.

    OpenClaw ignores case in a key, and "a-b" with "c" must not be "a" with "b-c", so
    the readable part is followed by a digest of both.
    """
    identity = f"{job.agent}\0{job.task_id}".encode(errors="replace")
    digest = hashlib.sha256(identity).hexdigest()[:16]
    agent, task_id = _readable(job.agent), _readable(job.task_id)
    return f"agent:{openclaw_agent}:{agent}-{task_id}-{digest}"


async def ask(endpoint: Endpoint, job: Job, *, agent: str, model: str = "") -> Outcome:
    """Have an agent of the gateway do a task; return its answer or why there is none.

    Without a time limit of its own. When cancelled, the gateway ends the turn.

    Args:
        endpoint: The gateway.
        job: The task.
        agent: Agent of the gateway.
        model: ``provider/model`` to use in place of the agent's own.

    Raises:
        ConnectionFailed: The gateway cannot be reached, or breaks off.
    """
    headers = {
        "content-type": "application/json",
        "x-openclaw-session-key": session_key(agent, job),
    }
    if model:
        headers["x-openclaw-model"] = model
    body = {
        "model": f"openclaw/{agent}",
        "messages": [
            {"role": "system", "content": _introduction(job)},
            {"role": "user", "content": job.text.encode(errors="replace").decode()},
        ],
    }
    try:
        status, answer = await exchange(
            endpoint,
            "POST",
            COMPLETIONS,
            headers=headers,
            body=msgspec.json.encode(body),
        )
        return _outcome(status, answer)
    except ProtocolError as error:
        return Outcome(ok=False, error=f"openclaw: {error}", retryable=True)


async def check(endpoint: Endpoint, agent: str) -> None:
    """Ask a gateway whether it would take tasks for one of its agents.

    Raises:
        ConnectionFailed: It cannot be reached.
        PermissionDenied: It refuses the token.
        NotSupported: Its endpoint is not enabled.
        NotFound: It has no such agent.
        Unavailable: It is not ready.
        ProtocolError: It is no gateway.
    """
    status, answer = await exchange(endpoint, "GET", MODELS)
    match status:
        case 200:
            pass
        case 401 | 403:
            raise PermissionDenied(
                f"the gateway at {endpoint.url} refuses the token",
                hint="give the one in its configuration with --gateway-token-file",
            )
        case 404:
            raise NotSupported(
                f"the gateway at {endpoint.url} has no /v1/chat/completions",
                hint="set gateway.http.endpoints.chatCompletions.enabled in its"
                " configuration",
            )
        case _:
            raise Unavailable(f"the gateway at {endpoint.url} answered {status}")
    try:
        known = {model.id for model in msgspec.json.decode(answer, type=_Models).data}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProtocolError(f"{endpoint.url} is no OpenClaw gateway") from None
    if f"openclaw/{agent}" not in known:
        raise NotFound(
            f"the gateway at {endpoint.url} has no agent {agent}",
            hint=f"it has {', '.join(sorted(known))}",
        )


def _introduction(job: Job) -> str:
    """Say who the agent is: many identities share it, and pilotctl has to be told."""
    return (
        f"You work on one task of a Pilot fleet, as its agent {job.agent}."
        f" Where you use pilotctl, act as that agent: pilotctl --agent {job.agent} …"
    )


def _outcome(status: int, answer: bytes) -> Outcome:
    if status != 200:
        return Outcome(
            ok=False,
            error=f"openclaw answered {status}: {_reason(answer)}",
            retryable=status not in REFUSALS,
        )
    try:
        completion = msgspec.json.decode(answer, type=_Completion)
        result = completion.choices[0].message.content or ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError):
        raise ProtocolError("the answer is no chat completion") from None
    if len(result.encode(errors="replace")) > MAX_RESULT_BYTES:
        error = f"the result is longer than {MAX_RESULT_BYTES} bytes"
        return Outcome(ok=False, error=error)
    return Outcome(ok=True, result=result)


def _reason(answer: bytes) -> str:
    try:
        reason = msgspec.json.decode(answer, type=_Refusal).error.message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        reason = answer[:MAX_REASON_CHARS].decode(errors="replace")
    return reason.strip()[:MAX_REASON_CHARS] or "no reason given"


def _readable(text: str) -> str:
    return _UNSAFE.sub("-", text.lower())[:MAX_KEY_PART]
