"""Results that local programs hand over in parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.errors import Busy, InvalidArgument, NotFound
from pilotfleet.protocol.services.tasks import MAX_SENT_FILE

if TYPE_CHECKING:
    from pilotfleet.services.tasks.serving import PushSession

__all__ = ["Uploads"]

MAX_BYTES: Final = 64 * 1024 * 1024
"""Of all uploads of the daemon together."""


class Uploads:
    """Parts by connection and task; they go when their connection does."""

    def __init__(self) -> None:
        self._parts: dict[PushSession, dict[str, bytearray]] = {}
        self._bytes = 0

    def add(self, session: PushSession, task_id: str, data: bytes) -> int:
        """Take one more part; return how many bytes there are now.

        Raises:
            Busy: Too much is being uploaded.
            InvalidArgument: No result may be as long.
        """
        if self._bytes + len(data) > MAX_BYTES:
            raise Busy("too many results are being uploaded")
        if session not in self._parts:
            self._parts[session] = {}
            session.on_close(lambda: self._forget(session))
        buffer = self._parts[session].setdefault(task_id, bytearray())
        if len(buffer) + len(data) > MAX_SENT_FILE:
            raise InvalidArgument(f"results over {MAX_SENT_FILE} bytes")
        buffer += data
        self._bytes += len(data)
        return len(buffer)

    def take(self, session: PushSession, task_id: str) -> bytes:
        """Return what was uploaded, and forget it.

        Raises:
            NotFound: Nothing was.
        """
        buffer = self._parts.get(session, {}).pop(task_id, None)
        if buffer is None:
            raise NotFound(f"nothing was uploaded for task {task_id}")
        self._bytes -= len(buffer)
        return bytes(buffer)

    def _forget(self, session: PushSession) -> None:
        self._bytes -= sum(map(len, self._parts.pop(session).values()))
