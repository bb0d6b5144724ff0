"""Call a Python function for a task: its text goes in, the result comes back."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import sys
import threading
import time
import typing
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pilotfleet.errors import InvalidArgument
from pilotfleet.fleet.worker.job import MAX_RESULT_BYTES, Job, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["CallRunner", "load_function"]

logger = logging.getLogger(__name__)

_Function: TypeAlias = "Callable[[Any], Any]"
"""Takes a task's text or its `Job`, and returns the result or an awaitable of it."""

MAX_ERROR_CHARS: Final = 2_000


def load_function(name: str, folder: Path) -> _Function:
    """Import what ``module:function`` names, with ``folder`` first on the path.

    As ``python -m`` does it for the folder that one is in.

    Raises:
        InvalidArgument: There is no such function, or it does not take one task.
    """
    module_name, separator, function_name = name.partition(":")
    if not (module_name and separator and function_name):
        raise InvalidArgument(f"{name!r} is not of the form module:function")
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # A module may raise anything while it is imported.
        raise InvalidArgument(
            f"cannot import {module_name}: {_describe(error)}",
            hint=f"modules are looked for in {folder} and where Python is installed",
        ) from error
    function: Any = module
    for part in function_name.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise InvalidArgument(f"module {module_name} has no function {function_name}")
    _parameter(function, name)
    return typing.cast("_Function", function)


class CallRunner:
    """Calls one function for any number of tasks.

    A coroutine function is awaited; any other runs in a thread of its own, as many
    at a time as there are places. A thread cannot be stopped: one that overstays the
    time limit keeps its place until the function returns.
    """

    def __init__(
        self,
        function: _Function,
        *,
        timeout_s: float | None,
        threads: int,
        name: str = "it",
        takes_job: bool = False,
    ) -> None:
        """Prepare to call a function.

        Args:
            function: Is called for each task.
            timeout_s: Longest call; None for no limit.
            threads: Places for functions that are no coroutine functions.
            name: What the function is called in errors.
            takes_job: It is given the `Job`, whatever its annotation says.

        Raises:
            InvalidArgument: It does not take one argument.
        """
        self._function = function
        self._timeout_s = timeout_s
        self._name = name
        self._takes_job = _takes_job(function, name) or takes_job
        self._is_async = inspect.iscoroutinefunction(
            function
        ) or inspect.iscoroutinefunction(type(function).__call__)
        self._threads = asyncio.Semaphore(threads)

    async def run(self, job: Job) -> Outcome:
        """Call the function on a task; never raises for what the function does.

        May be cancelled; a function in a thread runs on, and its result is lost.
        """
        started = time.monotonic()
        argument = job if self._takes_job else job.text
        try:
            async with asyncio.timeout(self._timeout_s):
                call = self._function if self._is_async else self._call_in_thread
                result = await call(argument)
                if inspect.isawaitable(result):
                    result = await result
        except TimeoutError:
            # The function's own TimeoutError is no less a time limit.
            error = f"no result within the time limit of {self._timeout_s:g} s"
            return Outcome(
                ok=False, error=error, retryable=True, wall_ms=_since(started)
            )
        except (Exception, SystemExit) as error:  # A function may raise anything.
            # No error of ours: a program that serves tasks need not see it.
            logger.info("task %s of %s failed", job.task_id, job.agent, exc_info=True)
            return Outcome(ok=False, error=_describe(error), wall_ms=_since(started))
        return self._outcome(result, _since(started))

    def _outcome(self, result: object, wall_ms: int) -> Outcome:
        if not isinstance(result, str):
            kind = type(result).__name__
            error = f"{self._name} returned {kind}; a result is a str"
        elif len(result.encode(errors="replace")) > MAX_RESULT_BYTES:
            error = f"the result is longer than {MAX_RESULT_BYTES} bytes"
        else:
            return Outcome(ok=True, result=result, wall_ms=wall_ms)
        return Outcome(ok=False, error=error, wall_ms=wall_ms)

    async def _call_in_thread(self, argument: object) -> object:
        await self._threads.acquire()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[object] = loop.create_future()

        def settle(result: object, error: BaseException | None) -> None:
            self._threads.release()
            if ended.done():
                return
            if error is None:
                ended.set_result(result)
            else:
                ended.set_exception(_raisable(error))

        def call() -> None:
            result, failure = None, None
            try:
                result = self._function(argument)
            except BaseException as error:
                failure = error
            try:
                loop.call_soon_threadsafe(settle, result, failure)
            except RuntimeError:  # The loop is closed: nobody waits any more.
                logger.debug("a call of %s came to its end too late", self._name)

        # Not a pool's thread: the interpreter waits for those before it exits, and
        # a function that never returns would keep the worker alive for ever.
        threading.Thread(target=call, name=f"call of {self._name}", daemon=True).start()
        return await ended


def _parameter(function: _Function, name: str) -> inspect.Parameter:
    """Return the one parameter that a task is given to."""
    try:
        signature = inspect.signature(function)
        signature.bind("text")
    except ValueError:  # Some functions written in C tell nothing of themselves.
        return inspect.Parameter("text", inspect.Parameter.POSITIONAL_ONLY)
    except TypeError:
        raise InvalidArgument(f"{name} does not take one argument, the task") from None
    return next(iter(signature.parameters.values()))


def _takes_job(function: _Function, name: str) -> bool:
    parameter = _parameter(function, name)
    try:
        annotation = typing.get_type_hints(function).get(parameter.name)
    except (NameError, TypeError, AttributeError):
        # Written as text, of a name that exists for type checkers only.
        annotation = parameter.annotation
    return annotation is Job or str(annotation).rpartition(".")[2] == Job.__name__


def _raisable(error: BaseException) -> BaseException:
    # A future takes no StopIteration: it would end the coroutine that awaits it.
    return RuntimeError("StopIteration") if isinstance(error, StopIteration) else error


def _describe(error: BaseException) -> str:
    """Return type and message: what may leave this machine, without the traceback."""
    text = str(error)
    kind = type(error).__name__
    return f"{kind}: {text}"[:MAX_ERROR_CHARS] if text else kind


def _since(started: float) -> int:
    return int((time.monotonic() - started) * 1000)
