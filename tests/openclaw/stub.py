"""A model for OpenClaw: an OpenAI-compatible streaming endpoint that keeps requests.

It answers with every nonce that the conversation holds, so an answer shows whose text
was in it, and what it keeps shows that OpenClaw itself asked.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

__all__ = ["MODEL", "NONCE", "Stub"]

MODEL: Final = "stub/echo"
NONCE: Final = re.compile(r"nonce-[0-9a-f]{16}")


class Stub:
    """The endpoint, in a thread of its own. A context manager."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        """Bodies, in the order they came."""
        self.held_after: int | None = None
        """So many are answered at once; later ones wait for `release`."""
        self._go_on = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        routes = [Route("/v1/chat/completions", self._chat, methods=["POST"])]
        config = uvicorn.Config(
            Starlette(routes=routes), log_level="error", lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}
        )

    def __enter__(self) -> Stub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
        self._socket.close()

    def config(self) -> dict[str, Any]:
        """Return the part of an OpenClaw configuration that has this as its model."""
        model = {
            "id": "echo",
            "name": "echo",
            "input": ["text"],
            "contextWindow": 200_000,
            "maxTokens": 8_192,
        }
        provider = {
            "baseUrl": f"http://127.0.0.1:{self.port}/v1",
            "apiKey": "stub-key",
            "api": "openai-completions",
            "models": [model],
        }
        return {"models": {"mode": "replace", "providers": {"stub": provider}}}

    def release(self) -> None:
        """Answer those that wait, and all that come."""
        assert self._loop is not None, "nothing was asked yet"
        self._loop.call_soon_threadsafe(self._go_on.set)

    async def _chat(self, request: Request) -> Response:
        self._loop = asyncio.get_running_loop()
        body = await request.json()
        self.requests.append(body)
        waits = self.held_after is not None and len(self.requests) > self.held_after
        return StreamingResponse(
            self._answer(body, waits=waits), media_type="text/event-stream"
        )

    async def _answer(self, body: dict[str, Any], *, waits: bool) -> AsyncIterator[str]:
        if waits:
            await self._go_on.wait()
        text = " ".join(sorted(set(NONCE.findall(json.dumps(body["messages"])))))
        yield _event(body, {"role": "assistant", "content": ""})
        half = len(text) // 2
        yield _event(body, {"content": text[:half]})
        yield _event(body, {"content": text[half:]})
        yield _event(body, {}, finish="stop")
        yield "data: [DONE]\n\n"


def _event(
    body: dict[str, Any], delta: dict[str, str], *, finish: str | None = None
) -> str:
    chunk = {
        "id": "stub",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return f"data: {json.dumps(chunk)}\n\n"
