"""The files of a page, served from the package's own data."""

from __future__ import annotations

import gzip
import hashlib
from functools import cached_property
from importlib import resources
from typing import TYPE_CHECKING, Final

from starlette.responses import Response
from starlette.routing import Route

from pilotfleet.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from importlib.resources.abc import Traversable

    from starlette.requests import Request

__all__ = ["Assets", "shared_assets"]

TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}
"""Suffixes of what is served; other files are not."""
SHARED_PREFIX: Final = "/shared"


class Assets:
    """Files of the folder ``static`` of a package, read once.

    A browser keeps them and asks whether they have changed (``no-cache``), so a new
    release shows at once.
    """

    def __init__(self, package: str, *, folder: str = "static") -> None:
        files = _files_below(resources.files(package).joinpath(folder), "")
        self._files = {path: _Asset(path, data) for path, data in files.items()}

    def text(self, path: str) -> str:
        """Return a file as text.

        Raises:
            NotFound: There is none of this name.
        """
        return self._find(path).data.decode()

    def route(self, prefix: str) -> Route:
        """Return a route that serves all files below ``prefix``."""

        async def serve(request: Request) -> Response:
            asset = self._files.get(request.path_params["path"])
            if asset is None:
                return Response("no such file\n", 404, media_type="text/plain")
            return asset.respond(request)

        return Route(f"{prefix}/{{path:path}}", serve)

    def page(self, path: str) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint that answers with one of the files.

        Raises:
            NotFound: There is none of this name.
        """
        asset = self._find(path)

        async def serve(request: Request) -> Response:
            return asset.respond(request)

        return serve

    def _find(self, path: str) -> _Asset:
        asset = self._files.get(path)
        if asset is None:
            raise NotFound(f"there is no static file {path}")
        return asset


def shared_assets() -> Route:
    """Return the route to the files that all pages share: ``/shared/...``."""
    return Assets("pilotfleet.web").route(SHARED_PREFIX)


class _Asset:
    def __init__(self, path: str, data: bytes) -> None:
        self.data = data
        self._type = TYPES[_suffix(path)]
        self._etag = f'"{hashlib.sha256(data).hexdigest()[:20]}"'

    @cached_property
    def _packed(self) -> bytes:
        return gzip.compress(self.data, mtime=0)

    def respond(self, request: Request) -> Response:
        headers = {
            "Cache-Control": "no-cache",
            "ETag": self._etag,
            "Vary": "Accept-Encoding",
        }
        if self._etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        body = self.data
        if "gzip" in request.headers.get("accept-encoding", ""):
            body = self._packed
            headers["Content-Encoding"] = "gzip"
        # Not as media_type: Starlette would add the charset a second time.
        headers["Content-Type"] = self._type
        return Response(body, headers=headers)


def _files_below(folder: Traversable, prefix: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for entry in folder.iterdir():
        path = prefix + entry.name
        if entry.is_dir():
            found |= _files_below(entry, f"{path}/")
        elif _suffix(entry.name) in TYPES:
            found[path] = entry.read_bytes()
    return found


def _suffix(path: str) -> str:
    return path[path.rfind(".") :] if "." in path else ""
