"""The public directory's API against its description, and what it must not say."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate as validate_description

from pilotfleet.registry.dashboard import survey
from pilotfleet.registry.dashboard.config import DashboardConfig
from tests.registry.dashboardsupport import FAST, Shown, shown
from tests.support.http import TIMEOUT_S

SECRET_NAME = "hidden-name"
SECRET_TAG = "hidden-tag"
SECRET_POLO = 987_654


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let surveys follow each other at once."""
    monkeypatch.setattr(survey, "PERIOD_S", 0.0)


async def fill(world: Shown) -> None:
    for number in range(1, 13):
        await world.add(
            number,
            public=number % 4 != 0,
            tags=["text", f"tag-{number % 3}"] if number % 4 else [SECRET_TAG, "text"],
            name=f"agent-{number:02}" if number % 4 else f"{SECRET_NAME}-{number}",
            polo=10 * number if number % 4 else SECRET_POLO,
        )
    await world.add(13)


def schema_of(description: dict[str, Any], path: str, status: int) -> Any:
    """Return the schema of an answer, whole, or None where it has no JSON."""
    answers = description["paths"][path]["get"]["responses"]
    answer = answers[str(status)]
    if "$ref" in answer:
        answer = description["components"]["responses"][answer["$ref"].split("/")[-1]]
    content = answer["content"].get("application/json")
    if content is None:
        return None
    return {**content["schema"], "components": description["components"]}


REQUESTS = [
    ("/api/v1/figures", "", 200),
    ("/api/v1/history", "", 200),
    ("/api/v1/polo", "", 200),
    ("/api/v1/tags", "", 200),
    ("/api/v1/tags", "?prefix=tag-&limit=2", 200),
    ("/api/v1/tags", "?limit=0", 400),
    ("/api/v1/agents", "", 200),
    ("/api/v1/agents", "?limit=2", 200),
    ("/api/v1/agents", "?tag=text&tag=tag-1&online=1", 200),
    ("/api/v1/agents", "?tag=tag-1&tag=tag-2&any=true", 200),
    ("/api/v1/agents", "?sort=-polo&offset=2&limit=3", 200),
    ("/api/v1/agents", "?prefix=agent-0&sort=name", 200),
    ("/api/v1/agents", "?sort=last_seen", 200),
    ("/api/v1/agents", "?prefix=%00%FF", 200),
    ("/api/v1/agents", "?sort=key", 400),
    ("/api/v1/agents", "?limit=1001", 400),
    ("/api/v1/agents", "?limit=-1", 400),
    ("/api/v1/agents", "?offset=%D9%A1&sort=name", 400),
    ("/api/v1/agents", "?cursor=zzz", 400),
    ("/api/v1/agents", "?cursor=YWZ0ZXI6MQ==&sort=name", 400),
    ("/api/v1/agents", "?online=perhaps", 400),
    ("/api/v1/agents", "?" + "tag=a&" * 11, 400),
    ("/api/v1/agents/{key}", "agent-01", 200),
    ("/api/v1/agents/{key}", "AGENT-01", 200),
    ("/api/v1/agents/{key}", "0:0000.0000.0001", 200),
    ("/api/v1/agents/{key}", "nobody", 404),
    ("/api/v1/agents/{key}", "0:0000.0000.FFFF", 404),
    ("/api/v1/agents/{key}", "1:0001.0000.0001", 404),
    ("/api/v1/agents/{key}", "::::", 404),
]


async def test_answers_are_as_the_description_says() -> None:
    async with shown() as world:
        await fill(world)
        description = await world.json("/api/openapi.json")
        validate_description(description)
        asked = set()
        for path, rest, status in REQUESTS:
            url = path.replace("{key}", rest) if "{key}" in path else path + rest
            answer = await world.get(url)
            assert answer.status == status, url
            assert answer.headers["access-control-allow-origin"] == "*"
            schema = schema_of(description, path, status)
            Draft202012Validator(schema).validate(answer.json())
            asked.add(path)
        assert asked | {"/api/v1/stream"} == set(description["paths"])


async def test_the_cursor_leads_through_all_public_agents_once() -> None:
    async with shown() as world:
        await fill(world)
        found: list[int] = []
        cursor = ""
        while True:
            page = await world.json(f"/api/v1/agents?limit=3&cursor={cursor}")
            assert page["total"] == 10
            found += [agent["node_id"] for agent in page["agents"]]
            cursor = page["next_cursor"]
            if not cursor:
                break
    assert found == [1, 2, 3, 5, 6, 7, 9, 10, 11, 13]


async def test_windows_have_the_order_that_is_asked_for() -> None:
    async with shown() as world:
        await fill(world)

        async def ids(query: str) -> list[int]:
            page = await world.json(f"/api/v1/agents?{query}")
            return [agent["node_id"] for agent in page["agents"]]

        assert await ids("sort=-polo&limit=3") == [11, 10, 9]
        assert await ids("sort=polo&limit=2") == [13, 1]
        assert await ids("sort=polo&offset=8") == [10, 11]
        assert await ids("sort=-polo&offset=8") == [1, 13]
        assert await ids("sort=name&offset=1&limit=2") == [2, 3]
        # Those without a name come last.
        assert await ids("sort=name&offset=9") == [13]
        assert await ids("sort=-polo&offset=100") == []
        assert await ids("sort=name&tag=tag-0") == [3, 6, 9]
        assert await ids("sort=name&prefix=agent-1") == [10, 11]
        assert await ids("sort=name&tag=tag-0&tag=tag-2&any=1&limit=3") == [2, 3, 5]


async def test_private_agents_appear_nowhere() -> None:
    async with shown() as world:
        await fill(world)
        hidden = [4, 8, 12]
        urls = [
            "/",
            "/api/nodes",
            "/api/openapi.json",
            "/api/v1/figures",
            "/api/v1/history",
            "/api/v1/polo",
            "/api/v1/tags?limit=1000",
            f"/api/v1/tags?prefix={SECRET_TAG[:3]}",
            "/api/v1/agents?limit=1000",
            f"/api/v1/agents?tag={SECRET_TAG}",
            f"/api/v1/agents?tag={SECRET_TAG}&sort=name",
            f"/api/v1/agents?prefix={SECRET_NAME}",
            f"/api/v1/agents?prefix={SECRET_NAME}&sort=-polo",
            *(f"/api/v1/agents?sort={s}{o}" for s in ("", "-") for o in survey.ORDERS),
            *(f"/api/v1/agents/{SECRET_NAME}-{node}" for node in hidden),
            *(f"/api/v1/agents/0:0000.0000.{node:04X}" for node in hidden),
        ]
        for url in urls:
            text = (await world.get(url)).body.decode()
            for word in (SECRET_NAME, SECRET_TAG, str(SECRET_POLO), "127.0.0.1:100"):
                assert word not in text, url
            for node in hidden:
                assert f"0:0000.0000.{node:04X}" not in text, url
        figures = await world.json("/api/v1/figures")
        assert figures["public"] == figures["polo"]["agents"] == 10
        assert figures["registered"] == 13
        assert sum(figures["versions"].values()) == 10
        text_tag = (await world.json("/api/v1/tags?prefix=text"))["tags"]
        assert text_tag == [{"tag": "text", "agents": 9}]
        # A private agent is answered for as one that does not exist.
        answers = [
            await world.get(f"/api/v1/agents/{key}")
            for key in ("nobody", f"{SECRET_NAME}-4", "0:0000.0000.0004")
        ]
        assert len({answer.body for answer in answers}) == 1
        assert {answer.status for answer in answers} == {404}


async def test_an_agent_that_becomes_private_is_gone_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Even while the last survey, which has it, is still in use.
    monkeypatch.setattr(survey, "PERIOD_S", 3600.0)
    monkeypatch.setattr(survey, "OLD_S", 3600.0)
    async with shown() as world:
        await fill(world)
        before = await world.json("/api/v1/agents?sort=-polo&limit=2")
        assert [agent["node_id"] for agent in before["agents"]] == [11, 10]
        await world.hide(11, 11)
        after = await world.json("/api/v1/agents?sort=-polo&limit=2")
        assert [agent["node_id"] for agent in after["agents"]] == [10]
        assert after["total"] == 9
        assert (await world.get("/api/v1/agents/agent-11")).status == 404


async def test_each_address_has_a_rate() -> None:
    config = DashboardConfig(requests_per_second=0.01, burst=3)
    async with shown(config) as world:
        seen = [(await world.get("/api/v1/history")).status for _ in range(4)]
        assert seen == [200, 200, 200, 429]
        elsewhere = {"X-Forwarded-For": "203.0.113.7"}
        answer = await world.get("/api/v1/history", headers=elsewhere)
        assert answer.status == 200
        # Health is not what the rate is for.
        assert (await world.get("/healthz")).status == 200


async def test_a_token_closes_pages_and_api_but_not_health() -> None:
    async with shown(DashboardConfig(token="door")) as world:
        for path in ("/healthz", "/api/public-stats", "/metrics"):
            assert (await world.get(path)).status == 200
        for path in ("/api/v1/agents", "/api/openapi.json", "/api/nodes", "/agents/x"):
            assert (await world.get(path)).status == 401
        page = await world.get("/", headers={"Accept": "text/html"})
        assert page.headers["location"] == "/login?next=/"
        token = {"Authorization": "Bearer door"}
        assert (await world.get("/api/v1/agents", headers=token)).status == 200
        asked = await world.get("/api/v1/agents", method="OPTIONS")
        assert asked.status == 204
        assert "Authorization" in asked.headers["access-control-allow-headers"]


async def test_the_dashboard_can_be_off() -> None:
    async with shown(DashboardConfig(enabled=False)) as world:
        for path in ("/", "/api/v1/agents", "/api/openapi.json", "/static/agent.js"):
            assert (await world.get(path)).status == 404
        stats = await world.json("/api/public-stats")
        assert stats["components"]["dashboard"] == "down"
        assert (await world.get("/healthz")).status == 200


async def test_nodes_and_badges() -> None:
    async with shown() as world:
        await fill(world)
        nodes = await world.json("/api/nodes")
        assert nodes["count"] == 10
        assert nodes["nodes"][0]["hostname"] == "agent-01"
        far = {"X-Real-IP": "203.0.113.5"}
        assert (await world.get("/api/nodes", headers=far)).status == 403
        badge = await world.get("/api/badge/nodes")
        assert badge.headers["content-type"] == "image/svg+xml"
        assert badge.headers["cross-origin-resource-policy"] == "cross-origin"
        assert b"agents online: 13" in badge.body
        assert (await world.get("/api/badge/other")).status == 404
        seen = {(await world.get("/api/badge/requests")).status for _ in range(35)}
        assert seen == {200, 429}


async def test_the_figures_move_by_themselves() -> None:
    async with shown(FAST) as world:
        http = world.rendezvous.addresses.http
        assert http is not None
        reader, writer = await asyncio.open_connection(*http)
        writer.write(b"GET /api/v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")

        async def until_public(count: int) -> dict[str, Any]:
            async with asyncio.timeout(TIMEOUT_S):
                while True:
                    line = await reader.readline()
                    if line.startswith(b"data: "):
                        figures: dict[str, Any] = json.loads(line[6:])
                        if figures["public"] == count:
                            return figures

        await until_public(0)
        await world.add(1)
        figures = await until_public(1)
        writer.close()
    assert figures["online"] == figures["public_online"] == 1
