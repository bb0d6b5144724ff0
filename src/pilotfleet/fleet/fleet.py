"""A fleet, as a Python program uses it.

The fleet itself is a process of its own, the one that ``pilotctl fleet up`` starts:
it goes on whether or not the program does, and ``pilotctl fleet`` commands see it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from pilotfleet.errors import (
    InvalidArgument,
    NotFound,
    NotRunning,
    StorageError,
    error_from_fields,
)
from pilotfleet.fleet.agent import Agent
from pilotfleet.fleet.control import FleetControl
from pilotfleet.fleet.processes import find_program
from pilotfleet.fleet.taskfile import TaskLine

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        Callable,
        Iterable,
        Mapping,
        Sequence,
    )
    from types import TracebackType

    from pilotfleet.fleet.schedule import TaskResult
    from pilotfleet.fleet.spec import FleetSpec

__all__ = ["Fleet"]

SPEC_FILE: Final = "spec.toml"
MAX_OUTPUT: Final = 16 << 20


class Fleet:
    """A fleet that runs. An asynchronous context manager.

    One that :meth:`up` started is stopped at the end of the context; one that was only
    attached to goes on.
    """

    def __init__(self, home: Path, *, is_owned: bool) -> None:
        """For :meth:`up` and :meth:`attach`."""
        self.home = home
        """The folder where everything of it is kept."""
        self._control = FleetControl(home)
        self._is_owned = is_owned

    @classmethod
    async def up(
        cls,
        spec: str | Path | FleetSpec | Mapping[str, Any],
        *,
        home: str | Path | None = None,
        part: str | None = None,
    ) -> Self:
        """Start a fleet, unless it runs already, and return when all of it is up.

        Args:
            spec: The path of a ``fleet.toml``, or what would stand in one.
            home: Its folder; by default ``~/.pilot/fleets/NAME``. The same home is the
                same fleet: it goes on with the tasks that it has.
            part: Which part of it runs on this machine, such as ``2/3``.

        Raises:
            ConfigError: The specification is wrong; the message names the key.
            PilotError: A part of it does not start.
        """
        path = spec
        if not isinstance(spec, str | Path):
            if home is None:
                raise InvalidArgument(
                    "a fleet without a file needs a home", hint="give home=…"
                )
            path = await asyncio.to_thread(_write_spec, spec, Path(home))
        words = ["up", str(path)]
        words += ["--home", str(home)] if home else []
        words += ["--part", part] if part else []
        status = await _pilotctl_fleet(words)
        return cls(Path(status["home"]), is_owned=not status.get("already"))

    @classmethod
    async def attach(cls, home: str | Path) -> Self:
        """Use a fleet that runs.

        Raises:
            NotRunning: None runs in that folder.
        """
        fleet = cls(_absolute(home), is_owned=False)
        await fleet.status()
        return fleet

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_owned:
            # Somebody else may have stopped it meanwhile.
            with contextlib.suppress(NotRunning):
                await self.down(now=kind is not None)

    async def agent(self, name: str | None = None) -> Agent:
        """Return an agent of the fleet on this machine: the hub, or by name.

        What it submits itself has nothing to do with the fleet's batches.

        Raises:
            NotFound: It runs nowhere here.
        """
        folder = self.home / "run"
        if name is None:
            return await Agent.connect(folder / "hub.sock")
        for socket in await asyncio.to_thread(_sockets, folder):
            with contextlib.suppress(NotFound, NotRunning):
                return await Agent.connect(socket, name=name)
        raise NotFound(
            f"no agent {name} in the fleet in {self.home}",
            hint="pilotctl fleet status shows its members",
        )

    async def status(self) -> dict[str, Any]:
        """Return the state of the fleet, its members, workers and batches."""
        return await self._control.status()

    async def scale(
        self, workers: int, *, progress: Callable[[str], None] | None = None
    ) -> None:
        """Have so many workers; returns when they are there."""
        await self._control.scale(workers, progress=progress)

    async def submit(
        self, tasks: Iterable[str | TaskLine], *, batch: str | None = None
    ) -> str:
        """Give the fleet tasks. They are on disk when this returns.

        Args:
            tasks: Texts, which get the ids ``1``, ``2`` and so on, or task lines.
            batch: A name to ask for the results by; an existing one is added to, and
                tasks that it has already are left as they are.

        Returns:
            The name of the batch.

        Raises:
            AlreadyExists: The batch has another task of the same id.
            Busy: The fleet has too many tasks already.
        """
        name = batch or f"batch-{uuid.uuid4().hex[:12]}"
        await self._control.submit(name, _lines(tasks))
        return name

    async def results(
        self, batch: str, *, follow: bool = True
    ) -> AsyncGenerator[TaskResult, None]:
        """Yield the results of a batch in the order of the tasks' ends.

        Args:
            batch: The batch.
            follow: Go on until each task has one, else end with what there is.

        Raises:
            NotFound: There is no such batch.
        """
        async with aclosing(self._control.results(batch, follow=follow)) as found:
            async for row in found:
                yield row.result

    async def map(
        self,
        tasks: Iterable[str | TaskLine] | AsyncIterable[str | TaskLine],
        *,
        tags: Sequence[str] = (),
    ) -> AsyncGenerator[TaskResult, None]:
        """Have tasks done and yield their results in the order of the tasks' ends.

        All tasks are on the fleet's disk before the first result comes. Afterwards,
        or when the caller stops early and they are all done, the fleet forgets them.

        Args:
            tasks: Texts, which get the ids ``1``, ``2`` and so on, or task lines.
            tags: What a worker must carry, beside the tags of a line.
        """
        gathered = (
            [task async for task in tasks]
            if hasattr(tasks, "__aiter__")
            else list(tasks)
        )
        lines = [
            msgspec.structs.replace(
                line, tags=tuple(dict.fromkeys((*line.tags, *tags)))
            )
            for line in _lines(gathered)
        ]
        if not lines:
            return
        batch = await self.submit(lines)
        async with aclosing(self.results(batch)) as results:
            async for result in results:
                yield result
        await self._control.forget(batch)

    async def rollout(
        self,
        *,
        batch: int = 1,
        spec: FleetSpec | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Replace the members, ``batch`` at a time; returns when all are new.

        Raises:
            NotRunning: A new one did not come up; the others are left as they are.
        """
        await self._control.rollout(batch=batch, spec=spec, progress=progress)

    async def down(self, *, now: bool = False) -> None:
        """Stop the fleet; returns when it has stopped. No task is lost.

        Args:
            now: Do not let the tasks under way end: they are done when it is up again.
        """
        await self._control.down(now=now)


def _sockets(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.sock"))


def _absolute(path: str | Path) -> Path:
    return Path(path).absolute()


def _lines(tasks: Iterable[str | TaskLine]) -> list[TaskLine]:
    return [
        TaskLine(id=str(number), task=task) if isinstance(task, str) else task
        for number, task in enumerate(tasks, 1)
    ]


def _write_spec(spec: FleetSpec | Mapping[str, Any], home: Path) -> Path:
    """Write a specification as the file that ``pilotctl`` reads; return its path."""
    tables = msgspec.to_builtins(spec)
    lines: list[str] = []
    for name, table in tables.items():
        if table is not None:
            lines += [f"[{name}]", *(f"{key} = {_toml(table[key])}" for key in table)]
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        (home / SPEC_FILE).write_text("\n".join([*lines, ""]), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {home / SPEC_FILE}: {error}") from None
    return home / SPEC_FILE


def _toml(value: Any) -> str:
    """Return a value in TOML: JSON means the same there, but for a bare DEL."""
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")


async def _pilotctl_fleet(words: Sequence[str]) -> dict[str, Any]:
    """Run ``pilotctl --json fleet …`` and return its data.

    Raises:
        PilotError: What it says went wrong.
    """
    process = await asyncio.create_subprocess_exec(
        *(find_program("pilotctl"), "--json", "fleet", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ,
        limit=MAX_OUTPUT,
    )
    try:
        output, errors = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            # As from the terminal: it stops what it has started so far.
            process.send_signal(2)
        await process.wait()
        raise
    answer = _last_object(output) or _last_object(errors)
    if process.returncode == 0 and "data" in answer:
        data: dict[str, Any] = answer["data"]
        return data
    ended = {"message": f"pilotctl ended with {process.returncode}"}
    raise error_from_fields({**ended, **answer})


def _last_object(output: bytes) -> dict[str, Any]:
    for line in reversed(output.splitlines()):
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(line, type=dict[str, Any])
    return {}
