"""The files of the pages: what is served, and what is in them."""

from __future__ import annotations

import gzip
import re
from importlib import resources
from typing import TYPE_CHECKING

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from pilotfleet.errors import NotFound
from pilotfleet.web.assets import Assets, shared_assets
from tests.support.http import fetch, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable

PACKAGES = ("pilotfleet.web", "pilotfleet.registry.dashboard")
OUTSIDE = re.compile(r"""(?:src|href|url|import|fetch)\W{1,4}(?:https?:)?//""")


def own_files() -> Iterator[tuple[str, str]]:
    """Yield all files that we wrote ourselves."""

    def below(folder: Traversable) -> Iterator[tuple[str, str]]:
        for entry in folder.iterdir():
            if entry.is_dir():
                if entry.name != "uplot":
                    yield from below(entry)
            else:
                yield entry.name, entry.read_text(encoding="utf-8")

    for package in PACKAGES:
        yield from below(resources.files(package).joinpath("static"))


async def test_files_have_their_types_and_are_asked_for_again() -> None:
    app = Starlette(routes=[shared_assets()])
    async with serve(app) as server:
        there = server.address
        for path, kind in (
            ("base.css", "text/css; charset=utf-8"),
            ("dom.js", "text/javascript; charset=utf-8"),
            ("icon.svg", "image/svg+xml"),
            ("uplot/uPlot.esm.js", "text/javascript; charset=utf-8"),
        ):
            answer = await fetch(there, f"/shared/{path}")
            assert answer.status == 200
            assert answer.headers["content-type"] == kind
            assert answer.headers["cache-control"] == "no-cache"
            tag = answer.headers["etag"]
            again = {"If-None-Match": tag}
            assert (await fetch(there, f"/shared/{path}", headers=again)).status == 304
            packed = await fetch(
                there, f"/shared/{path}", headers={"Accept-Encoding": "gzip, br"}
            )
            assert gzip.decompress(packed.body) == answer.body


@pytest.mark.parametrize(
    "path",
    [
        "../server.py",
        "%2e%2e/server.py",
        "..%2fserver.py",
        "",
        "uplot",
        "uplot/LICENSE",
    ],
)
async def test_nothing_else_is_served(path: str) -> None:
    async with serve(Starlette(routes=[shared_assets()])) as server:
        assert (await fetch(server.address, f"/shared/{path}")).status == 404


async def test_a_page_is_one_of_the_files() -> None:
    assets = Assets("pilotfleet.web")
    async with serve(
        Starlette(routes=[Route("/", assets.page("login.html"))])
    ) as server:
        answer = await fetch(server.address, "/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    with pytest.raises(NotFound):
        assets.page("nothing.html")


def test_the_vendored_library_has_its_licence() -> None:
    folder = resources.files("pilotfleet.web").joinpath("static", "uplot")
    assert "MIT" in folder.joinpath("LICENSE").read_text()
    assert "v1.6.32" in folder.joinpath("uPlot.esm.js").read_text()


def test_no_file_makes_markup_of_text_or_asks_elsewhere() -> None:
    for name, text in own_files():
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"):
            assert word not in text.replace("no innerHTML", ""), name
        assert "eval(" not in text, name
        assert not OUTSIDE.search(text), name
        if name.endswith(".html"):
            # The policy of the pages would refuse them.
            assert not re.search(r"\s(?:style|on\w+)=", text), name
            assert "<style" not in text, name
            assert not re.search(r"<script(?![^>]*\ssrc=)", text), name
