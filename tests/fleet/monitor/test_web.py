"""The pages and the JSON API of the monitor over HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from pilotfleet.fleet.monitor.source import SERIES
from tests.fleet.monitor.filledview import FLEET, START, filled_source
from tests.fleet.monitor.madefleet import HOSTILE, HOSTILE_NAMES, MadeFleet
from tests.fleet.monitor.websupport import Site, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pilotfleet.fleet.monitor.figures import Figures

NOW = 1_700_000_000.0
AGENTS = 60
BATCH = "/api/fleets/batch"


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    fleet = MadeFleet(agents=AGENTS, wall=lambda: NOW)
    async with served(fleet, wall=lambda: NOW) as site:
        yield site


async def test_every_page_is_the_one_shell(site: Site) -> None:
    shell = await site.get("/")
    assert shell.status == 200
    assert shell.headers["content-type"] == "text/html; charset=utf-8"
    assert b'<main id="main"' in shell.body
    for path in ("/agents", "/agent?name=x", "/trust", "/alerts", "/events"):
        assert (await site.get(path)).body == shell.body


async def test_nothing_in_the_shell_needs_an_inline_script_or_style(
    site: Site,
) -> None:
    shell = await site.get("/")
    policy = shell.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for word in (b"<style", b"style=", b"onclick", b"<script>", b"javascript:"):
        assert word not in shell.body


async def test_modules_never_make_markup_of_text(site: Site) -> None:
    for name in ("monitor", "tiles", "agentspage", "agentpage", "trustpage", "parts"):
        module = (await site.get(f"/static/{name}.js")).body
        for word in (b"innerHTML", b"outerHTML", b"insertAdjacentHTML", b"eval("):
            assert word not in module


async def test_health_says_that_it_runs(site: Site) -> None:
    health = (await site.get("/healthz")).json
    assert (health["status"], health["uptime_seconds"]) == ("ok", 5)


async def test_figures_are_those_of_the_source() -> None:
    source = filled_source(agents=3, completed=18, failed=2)
    async with served(source) as site:
        assert (await site.get("/api/fleets")).json == {"fleets": [FLEET]}
        figures = (await site.get(f"/api/fleets/{FLEET}/figures")).json
        assert figures["agents"] == {"alive": 3, "late": 0, "lost": 0, "left": 0}
        assert figures["tasks"]["error_rate"] == pytest.approx(0.1)
        assert figures["trust_links"] == 1
        [tag] = (await site.get(f"/api/fleets/{FLEET}/tags")).json["tags"]
        assert (tag["tag"], tag["agents"]["alive"]) == ("text", 3)
        agent = (await site.get(f"/api/fleets/{FLEET}/agents/worker-1")).json
        assert agent["row"]["last_seen"] == START
        assert {task["agent"] for task in agent["tasks"]} == {"worker-1"}
        graph = (await site.get(f"/api/fleets/{FLEET}/trust")).json
        assert {"one", "other", "kind"} == graph["links"][0].keys()


async def test_rows_are_filtered_and_paged(site: Site) -> None:
    page = (await site.get(f"{BATCH}/agents?limit=2&offset=1&sort=name")).json
    assert (page["total"], page["offset"], len(page["rows"])) == (AGENTS, 1, 2)
    found = (await site.get(f"{BATCH}/agents?search=WORKER-1&tag=worker&tag=eu")).json
    assert all({"worker", "eu"} <= set(row["tags"]) for row in found["rows"])
    assert all("worker-1" in row["name"] for row in found["rows"])
    some = (await site.get(f"{BATCH}/agents?state=late&state=lost")).json
    assert {row["state"] for row in some["rows"]} <= {"late", "lost"}


@pytest.mark.parametrize("name", HOSTILE_NAMES)
async def test_an_agent_of_any_name_has_a_page(site: Site, name: str) -> None:
    answer = await site.get(f"{BATCH}/agents/{quote(name, safe='')}")
    assert answer.json["row"]["name"] == name
    assert answer.headers["content-type"] == "application/json"


async def test_series_have_the_metrics_that_were_asked_for(site: Site) -> None:
    path = f"{BATCH}/series?metric=p50_ms&metric=error_rate&range=60"
    series = (await site.get(path)).json
    assert series["values"].keys() == {"p50_ms", "error_rate"}
    assert len(series["times"]) == len(series["values"]["p50_ms"]) == 60
    everything = (await site.get(f"{BATCH}/series?start=100&end=200")).json
    assert everything["values"].keys() == set(SERIES)
    assert everything["times"][0] == 100


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("agents?limit=1001", "<= 1000, in limit"),
        ("agents?limit=0", ">= 1, in limit"),
        ("agents?limit=ten", "Expected int, got str, in limit"),
        ("agents?limit=1&limit=2", "limit is there twice"),
        ("agents?offset=-1", "in offset"),
        ("agents?offset=99999999999999999999999", "in offset"),
        ("agents?state=dead", "Invalid enum value 'dead'"),
        ("agents?sort=password", "in sort"),
        (f"agents?search={'x' * 257}", "in search"),
        (f"agents?{'&'.join(['tag=x'] * 11)}", "in tag"),
        ("agents?colour=red", "unknown field colour"),
        ("figures?at=1", "unknown field at"),
        ("events?limit=9999", "in limit"),
        ("trust?limit=501", "in limit"),
        ("trust-changes?limit=", "in limit"),
        ("series?metric=happiness", "no metric happiness"),
        ("series?range=0", "in range"),
        ("series?range=nan", "in range"),
        ("series?range=inf", "in range"),
        ("series?start=nan", "in start"),
        ("series?start=5&end=5", "start must be before end"),
        ("series?start=0&end=99999999", "401 days"),
        ("series?start=1700000000000", "in start"),
        ("series?points=2001", "in points"),
        ("series?points=1", "in points"),
    ],
)
async def test_bad_parameters_are_refused_by_name(
    site: Site, path: str, message: str
) -> None:
    answer = await site.get(f"{BATCH}/{path}")
    assert answer.status == 400
    assert answer.error["code"] == "invalid_argument"
    assert message in answer.error["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/fleets/nobody/figures",
        "/api/fleets/nobody/agents",
        "/api/fleets/nobody/series",
        "/api/fleets/batch/agents/nobody",
        "/api/fleets/batch/agents/",
        "/api/nothing",
        f"/api/fleets/{quote(HOSTILE)}/figures",
    ],
)
async def test_what_does_not_exist_is_not_found(site: Site, path: str) -> None:
    answer = await site.get(path)
    assert answer.status == 404
    assert answer.error["code"] == "not_found"


async def test_a_path_elsewhere_is_not_found(site: Site) -> None:
    assert (await site.get("/nowhere")).status == 404
    assert (await site.get("/static/../web.py")).status == 404
    assert (await site.get("/static/%2e%2e/web.py")).status == 404


async def test_a_token_closes_all_but_the_health() -> None:
    source = filled_source()
    async with served(source, token="open-sesame") as site:
        assert (await site.get("/api/fleets")).status == 401
        assert (await site.get("/static/monitor.js")).status == 401
        assert (await site.get("/healthz")).status == 200
        allowed = {"Authorization": "Bearer open-sesame"}
        assert (await site.get("/api/fleets", **allowed)).status == 200
        assert (await site.get("/api/session", **allowed)).json["login"] is True


class BrokenFleet(MadeFleet):
    """Has a fault of its own."""

    def figures(self, fleet: str) -> Figures:
        raise ZeroDivisionError(HOSTILE)


async def test_a_fault_of_the_source_is_not_shown_to_the_world() -> None:
    fleet = BrokenFleet(agents=3, wall=time.time)
    async with served(fleet) as site:
        answer = await site.get(f"{BATCH}/figures")
        assert answer.status == 500
        assert answer.error["message"] == "the monitor has a fault"


async def test_the_stream_moves_with_the_source() -> None:
    source = filled_source(agents=3)
    async with served(source) as site:
        host, port = "127.0.0.1", int(site.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /api/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        first = await _next_state(reader)
        assert first["fleets"][0]["agents"]["alive"] == 3
        source.view.advance(START + 3_600)
        second = await _next_state(reader)
        assert second["fleets"][0]["agents"]["lost"] == 3
        assert second["alerts"] == []
        writer.close()
        await writer.wait_closed()


async def _next_state(reader: asyncio.StreamReader) -> Any:
    async with asyncio.timeout(10):
        while not (line := await reader.readline()).startswith(b"data: "):
            assert line, "the stream ended"
    return json.loads(line.removeprefix(b"data: "))
