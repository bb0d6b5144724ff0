"""What the JSON API of the monitor can be asked, and how much of it at once.

Everything in a query string is checked here, so that what a source is asked is
always sound: anything else is an :class:`InvalidArgument` that names the parameter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Final, TypeVar

import msgspec
from msgspec import Meta

from pilotfleet.errors import InvalidArgument
from pilotfleet.fleet.monitor.figures import AgentQuery, AgentState
from pilotfleet.fleet.monitor.source import MAX_ROWS, SERIES, SORTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.datastructures import QueryParams

__all__ = [
    "AgentParams",
    "FeedParams",
    "GraphParams",
    "NoParams",
    "Params",
    "SeriesParams",
    "read_params",
]

MAX_NODES: Final = 500
"""More cannot be drawn so that anyone sees something."""
MAX_OFFSET: Final = 1_000_000
MAX_TEXT: Final = 256
MAX_TAGS: Final = 10
MAX_POINTS: Final = 2_000
MAX_SPAN_S: Final = 401 * 86_400
"""History keeps 400 days."""
LAST_TIME: Final = 253_402_300_799
"""The end of the year 9999: later times are mistakes of milliseconds for seconds."""
_SORT: Final = f"^-?({'|'.join(SORTS)})$"

Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Time = Annotated[float, Meta(ge=0, le=LAST_TIME)]


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of a request."""

    LISTS: ClassVar[frozenset[str]] = frozenset()
    """Those that may come several times."""


class NoParams(Params, frozen=True):
    """Nothing can be chosen."""


class AgentParams(Params, frozen=True):
    """Which rows of the table of agents."""

    LISTS: ClassVar[frozenset[str]] = frozenset({"tag", "state"})

    search: Text = ""
    tag: Annotated[tuple[Text, ...], Meta(max_length=MAX_TAGS)] = ()
    state: Annotated[tuple[AgentState, ...], Meta(max_length=len(AgentState))] = ()
    sort: Annotated[str, Meta(pattern=_SORT)] = "name"
    offset: Annotated[int, Meta(ge=0, le=MAX_OFFSET)] = 0
    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = 100

    @property
    def query(self) -> AgentQuery:
        """The same, as a source takes it."""
        return AgentQuery(
            search=self.search,
            tags=self.tag,
            states=self.state,
            sort=self.sort,
            offset=self.offset,
            limit=self.limit,
        )


class FeedParams(Params, frozen=True):
    """How much of a feed, the newest first."""

    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = 100


class GraphParams(Params, frozen=True):
    """How many agents are drawn."""

    limit: Annotated[int, Meta(ge=1, le=MAX_NODES)] = MAX_NODES


class SeriesParams(Params, frozen=True):
    """Which values over which time."""

    LISTS: ClassVar[frozenset[str]] = frozenset({"metric"})

    metric: Annotated[tuple[Text, ...], Meta(max_length=len(SERIES))] = ()
    """All of them if none is named."""
    range: Annotated[float, Meta(gt=0, le=MAX_SPAN_S)] = 3_600.0
    """Seconds before the end, or before now."""
    start: Time | None = None
    """Goes before the range."""
    end: Time | None = None
    tag: Text | None = None
    points: Annotated[int, Meta(ge=2, le=MAX_POINTS)] = 600

    def span(self, now: float) -> tuple[float, float]:
        """Return the start and the end.

        Raises:
            InvalidArgument: They are no span of time that history can have.
        """
        end = now if self.end is None else self.end
        start = end - self.range if self.start is None else self.start
        if end <= start:
            raise InvalidArgument("parameter start must be before end")
        if end - start > MAX_SPAN_S:
            raise InvalidArgument("start and end are at most 401 days apart")
        return start, end


_Params = TypeVar("_Params", bound=Params)


def read_params(kind: type[_Params], query: QueryParams) -> _Params:
    """Return the parameters of a query string.

    Raises:
        InvalidArgument: There is one too many, or one of a wrong form.
    """
    try:
        return msgspec.convert(_plain(kind, query), kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"bad parameter: {_readable(str(error))}") from error


def _plain(kind: type[Params], query: QueryParams) -> Mapping[str, str | list[str]]:
    """Return lists for what may come several times, and one text for the rest."""
    found: dict[str, str | list[str]] = {}
    for name in query:
        values = query.getlist(name)
        if name in kind.LISTS:
            found[name] = values
        elif len(values) == 1:
            found[name] = values[0]
        else:
            raise InvalidArgument(f"parameter {name[:MAX_TEXT]} is there twice")
    return found


def _readable(text: str) -> str:
    """Return what msgspec says without its notation for paths."""
    return text.replace("`", "").replace(" - at $.", ", in ")
