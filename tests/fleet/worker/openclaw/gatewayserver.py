"""A small HTTP server of a gateway's shape, and a program that is one.

What a task says decides what becomes of it: ``status 500``, ``hang``, ``break off``,
``half``, ``die``, ``wait``; everything else is answered with what the server saw.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = ["GatewayServer", "main"]


class GatewayServer(ThreadingHTTPServer):
    """Answers as a gateway would. A context manager that serves in a thread."""

    daemon_threads = True

    def __init__(
        self,
        port: int = 0,
        *,
        token: str = "secret",
        agents: tuple[str, ...] = ("main",),
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.token = token
        self.agents = agents
        self.is_enabled = True
        self.delay_s = 0.0
        self.go_on = threading.Event()
        """Until it is set, tasks that say ``wait`` are not answered."""
        self.seen: list[dict[str, Any]] = []
        """Requests for a turn, with their headers."""
        self.most = 0
        """Turns at the same time, at most."""
        self.running = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> GatewayServer:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: GatewayServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/startupz":
            self._answer(200, {"status": "started"})
        elif self.headers["authorization"] != f"Bearer {self.server.token}":
            self._refuse(401, "Unauthorized")
        elif not self.server.is_enabled:
            self._refuse(404, "Not Found")
        else:
            names = ["openclaw", *(f"openclaw/{name}" for name in self.server.agents)]
            self._answer(200, {"data": [{"id": name} for name in names]})

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        body = json.loads(self.rfile.read(length))
        text = body["messages"][-1]["content"]
        server = self.server
        with server.lock:
            server.seen.append(
                {
                    "session": self.headers["x-openclaw-session-key"],
                    "model": self.headers["x-openclaw-model"],
                    "authorization": self.headers["authorization"],
                    "body": body,
                }
            )
            server.running += 1
            server.most = max(server.most, server.running)
        what, _, rest = text.partition(" ")
        try:
            time.sleep(server.delay_s)
            if what == "wait":
                server.go_on.wait(30)
            elif what == "hang":
                self.rfile.read()
        finally:
            # Before the answer: who has it may begin the next turn at once.
            with server.lock:
                server.running -= 1
        self._finish(text, what, rest)

    def _finish(self, text: str, what: str, rest: str) -> None:
        match what:
            case "status":
                self._refuse(int(rest), "because")
            case "hang":
                pass
            case "break":
                self.connection.close()
            case "half":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
            case "die":
                if _is_first(rest):
                    os.kill(os.getpid(), signal.SIGKILL)
                self._complete(text)
            case "nonsense":
                self._answer(200, {"choices": []})
            case "long":
                self._complete("x" * int(rest))
            case _:
                self._complete(text)

    def _complete(self, text: str) -> None:
        message = {"role": "assistant", "content": f"did {text}"}
        self._answer(200, {"choices": [{"message": message, "finish_reason": "stop"}]})

    def _refuse(self, status: int, why: str) -> None:
        self._answer(status, {"error": {"message": why, "type": "api_error"}})

    def _answer(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _is_first(mark: str) -> bool:
    """Tell whether this is the first to come here, of all processes."""
    if not mark:
        return True
    try:
        Path(mark).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def main() -> None:
    """Be ``openclaw gateway run``."""
    config = json.loads(Path(os.environ["OPENCLAW_CONFIG_PATH"]).read_text())
    includes = [str(path) for path in config["$include"]]
    if any("broken" in path for path in includes):
        raise SystemExit("Invalid config: broken")
    gateway = config["gateway"]
    GatewayServer(gateway["port"], token=gateway["auth"]["token"]).serve_forever()
