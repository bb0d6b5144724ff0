"""The official Python SDK in a process of its own, driven call by call."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.support.official import sdk_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.interop.matrix.worlds import Node, Outcome

__all__ = ["Sdk", "opened"]

SCRIPT: Final = Path(__file__).with_name("sdk_session.py")
CALL_LIMIT_S: Final = 90.0


class Sdk:
    """A ``Driver`` of the SDK on one node's daemon."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(node.socket)],
            env=node.environment(**sdk_environment()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        node.pair.running.append(self._process)
        # A call that never returns ends with the process.
        self._guard = threading.Timer(CALL_LIMIT_S, self._process.kill)
        self._guard.start()

    def do(self, call: str, *args: Any, on: str = "driver", keep: str = "") -> Outcome:
        """Make a call; record and return its outcome."""
        self.begin(call, *args, on=on, keep=keep)
        return self.finish(call)

    def begin(
        self, call: str, *args: Any, on: str = "driver", keep: str = "", take: int = 0
    ) -> None:
        """Begin a call that waits for something; ``take`` items if it yields them."""
        step: dict[str, Any] = {
            "on": on,
            "call": call,
            "args": [_encoded(a) for a in args],
        }
        step |= {"keep": keep, "take": take}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(step) + "\n")
        self._process.stdin.flush()

    def finish(self, call: str) -> Outcome:
        """Record and return the outcome of the call that began last."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"the SDK ended or hung in {call}")
        answer = self._node.pair.plain(json.loads(line))
        return self._node.pair.record(f"{self._node.name}: sdk {call}", answer)

    def close(self) -> None:
        """End the process."""
        self._guard.cancel()
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def opened(node: Node) -> Iterator[Sdk]:
    """Yield a driver on ``node``'s daemon."""
    sdk = Sdk(node)
    try:
        yield sdk
    finally:
        sdk.close()


def bytes_of(outcome: Outcome) -> bytes:
    """Return the bytes that a call returned."""
    return base64.b64decode(outcome.value["result"]["bytes"])


def _encoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    return value
