"""The public Polo dashboard in a browser, on a live rendezvous with 200 agents."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from pilotfleet.registry.directory.records import (
    Claim,
    encode_record,
    host_key,
    node_key,
)
from pilotfleet.registry.store.base import Entry
from tests.pages.browser import PHONE, assert_fits, shoot
from tests.registry.dashboardsupport import FAST, Shown, shown
from tests.support.programs import world

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from playwright.sync_api import Page, Response

    from pilotfleet.registry.dashboard.config import DashboardConfig
    from tests.pages.browser import Chromium

pytestmark = pytest.mark.pages

AGENTS = 200
PRIVATE = 30
KINDS = ("crawler", "parser", "summariser", "worker")
TAGS = ("text", "gpu", "python", "rust", "search", "code-review", "translation")
SECRET = "secret"
HOSTILE = "<script>alert(1)</script>"
WINDOW = (1280, 900)
READY_S = 60
CONTRAST = Path(__file__).with_name("contrast.js").read_text()
NAMES = Path(__file__).with_name("names.js").read_text()


class Site:
    """A rendezvous that runs beside the test, in a thread of its own."""

    def __init__(self, config: DashboardConfig = FAST) -> None:
        self._config = config
        self._started: Future[Shown] = Future()
        self._thread = threading.Thread(target=self._run, name="rendezvous")

    def __enter__(self) -> Site:
        self._thread.start()
        self.world = self._started.result(READY_S)
        self.url = self.world.url
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(READY_S)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do something in the rendezvous' loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(READY_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # Whatever it is, the test must hear of it.
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with shown(self._config) as world:
            self._started.set_result(world)
            await self._stop.wait()


async def fill(world: Shown) -> None:
    """Register 200 agents, of which 30 are private."""
    for number in range(1, AGENTS + 1):
        public = number > PRIVATE
        await world.add(
            number,
            public=public,
            name=f"{KINDS[number % 4]}-{number}" if public else f"{SECRET}-{number}",
            tags=[TAGS[number % 7], TAGS[number // 7 % 7]] if public else [SECRET],
            polo=number * number % 211 if public else 100_000 + number,
        )


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as site:
        site.do(fill(site.world))
        yield site


def open_directory(page: Page, site: Site, query: str = "") -> None:
    page.goto(f"{site.url}/{query}")
    page.wait_for_selector(".vrow:not(.waiting)")
    page.wait_for_selector("#live.good")


def foot_says(page: Page, text: str) -> None:
    page.locator(".vfoot").get_by_text(text, exact=True).wait_for()


@pytest.mark.parametrize(
    ("kind", "size", "scheme"),
    [("light", WINDOW, "light"), ("dark", WINDOW, "dark"), ("phone", PHONE, "light")],
)
def test_pages_fit_and_can_be_read(
    chromium: Chromium,
    site: Site,
    kind: str,
    size: tuple[int, int],
    scheme: Literal["light", "dark"],
) -> None:
    with chromium.page(size, scheme=scheme, is_calm=True) as page:
        open_directory(page, site)
        page.wait_for_selector("#polo-bars .bar-column")
        page.wait_for_selector("#request-chart .u-legend .u-value")
        for path, ready in ((None, "#tags .tag"), ("/agents/worker-51", "#facts .tag")):
            if path is not None:
                page.goto(site.url + path)
            page.wait_for_selector(ready)
            assert_fits(page)
            assert page.evaluate(CONTRAST) == []
            assert page.evaluate(NAMES) == []
            name = "polo-agent" if path else "polo"
            shoot(page, f"{name}-{kind}", is_whole=kind == "phone")


def test_filter_by_tag_and_search(chromium: Chromium, site: Site) -> None:
    with chromium.page(WINDOW) as page:
        open_directory(page, site)
        foot_says(page, f"{AGENTS - PRIVATE} public agents")
        page.locator("#tags [data-tag=gpu]").click()
        tagged = [
            number
            for number in range(PRIVATE + 1, AGENTS + 1)
            if "gpu" in (TAGS[number % 7], TAGS[number // 7 % 7])
        ]
        foot_says(page, f"{len(tagged)} public agents")
        page.get_by_label("Hostname begins with").fill("worker-1")
        fits = [n for n in tagged if f"{KINDS[n % 4]}-{n}".startswith("worker-1")]
        foot_says(page, f"{len(fits)} public agents")
        shoot(page, "polo-filtered")
        # The address brings all of it back, also from an agent's page.
        page.reload()
        foot_says(page, f"{len(fits)} public agents")
        page.locator(".vrow a").first.click()
        page.get_by_text("Directory").click()
        foot_says(page, f"{len(fits)} public agents")


def test_order_is_chosen_at_the_head(chromium: Chromium, site: Site) -> None:
    with chromium.page(WINDOW) as page:
        open_directory(page, site)
        first = page.locator(".vrow .name a").first
        scores = {n: n * n % 211 for n in range(PRIVATE + 1, AGENTS + 1)}
        best = max(scores, key=lambda number: (scores[number], number))
        assert first.text_content() == f"{KINDS[best % 4]}-{best}"
        page.get_by_role("button", name="Agent").click()
        page.wait_for_function(
            "() => document.querySelector('.vrow .name a')"
            "?.textContent.startsWith('crawler')"
        )
        head = page.get_by_role("columnheader", name="Agent")
        assert head.get_attribute("aria-sort") == "ascending"


def test_the_keyboard_alone_opens_an_agent(chromium: Chromium, site: Site) -> None:
    with chromium.page(WINDOW) as page:
        open_directory(page, site, "?sort=name")
        page.get_by_role("grid").focus()
        page.keyboard.press("End")
        page.wait_for_function(
            "() => document.querySelector('.vrow.active .name a')"
            "?.textContent.startsWith('worker')"
        )
        name = page.locator(".vrow.active .name a").text_content()
        index = page.locator(".vrow.active").get_attribute("aria-rowindex")
        assert index == str(AGENTS - PRIVATE + 1)
        page.keyboard.press("Enter")
        page.wait_for_selector("#facts .tag")
        assert page.locator("h1").text_content() == name


def test_private_agents_never_appear(chromium: Chromium, site: Site) -> None:
    with chromium.page(WINDOW) as page:
        answers: list[Response] = []
        page.on("response", lambda answer: answers.append(answer))
        open_directory(page, site)
        page.get_by_label("Hostname begins with").fill(SECRET)
        page.get_by_text("No public agent fits.").wait_for()
        page.get_by_label("Hostname begins with").fill("")
        page.get_by_label("Find a tag").fill(SECRET)
        page.wait_for_function(
            "() => document.querySelector('#tags').children.length === 0"
        )
        assert SECRET not in page.locator("main").inner_text()
        bodies = [
            answer.text()
            for answer in answers
            if "/api/v1/" in answer.url and "stream" not in answer.url
        ]
        assert len(bodies) >= 5
        assert not any(SECRET in body for body in bodies)
    with chromium.page(WINDOW, expected="404") as page:
        page.goto(f"{site.url}/agents/{SECRET}-1")
        page.get_by_text("There is no public agent").or_(
            page.get_by_text("there is no public agent")
        ).wait_for()
        assert page.locator("h1").text_content() == "No such agent"


def test_figures_and_rows_move_without_reload(chromium: Chromium, site: Site) -> None:
    async def join(numbers: range) -> None:
        for number in numbers:
            await site.world.add(number, name=f"late-{number}", tags=["text"])

    with chromium.page(WINDOW) as page:
        open_directory(page, site)
        page.evaluate("window.isTheSame = true")
        before = int(page.locator("#public").text_content() or "")
        site.do(join(range(1001, 1011)))
        page.locator("#public").get_by_text(str(before + 10), exact=True).wait_for()
        foot_says(page, f"{before + 10} public agents")
        assert page.evaluate("window.isTheSame")
        # A private one moves the count of all, and nothing else.
        online = int(page.locator("#online").text_content() or "")
        site.do(site.world.add(1011, public=False, name=f"{SECRET}-late"))
        page.locator("#online").get_by_text(str(online + 1), exact=True).wait_for()
        assert page.locator("#public").text_content() == str(before + 10)


def test_markup_is_text(chromium: Chromium) -> None:
    """The registry refuses such names and tags; a store may hold them all the same.

    Neither events nor texts of tasks come to this dashboard.
    """
    with Site() as site, chromium.page(WINDOW) as page:
        node = site.do(site.world.add(1, name="plain", tags=["text"]))
        directory = site.world.rendezvous.directory

        async def smuggle() -> None:
            record = directory.node(node).record
            changed = type(record)(
                id=node,
                key=record.key,
                created=record.created,
                public=True,
                tags=(HOSTILE,),
                version=HOSTILE,
            )
            directory.apply(Entry(node_key(node), encode_record(changed), 10_000))
            claim = encode_record(Claim(id=node))
            directory.apply(Entry(host_key(HOSTILE), claim, 10_001))

        site.do(smuggle())
        open_directory(page, site)
        page.locator(".vrow .tag").get_by_text(HOSTILE, exact=True).wait_for()
        page.locator("#versions").get_by_text(HOSTILE, exact=True).wait_for()
        page.locator("#tags .tag").click()
        foot_says(page, "1 public agent")
        page.locator(".vrow .name").get_by_text(HOSTILE, exact=True).click()
        page.locator("#facts .tag").get_by_text(HOSTILE).wait_for()
        assert page.locator("h1").text_content() == HOSTILE
        assert page.evaluate("document.scripts.length") == 1
        shoot(page, "polo-hostile")


def test_who_comes_back_finds_the_table_where_it_was(
    chromium: Chromium, site: Site
) -> None:
    with chromium.page(WINDOW) as page:
        open_directory(page, site, "?sort=name")
        for way_back in ("browser", "link"):
            page.locator(".vbody").evaluate("(body) => (body.scrollTop = 2500)")
            row = page.locator(".vrow:not(.waiting)[aria-rowindex='80']")
            name = row.locator(".name a").text_content()
            row.locator(".name a").click()
            page.wait_for_selector("#facts .tag")
            if way_back == "browser":
                page.go_back()
            else:
                page.get_by_role("link", name="Directory").click()
            page.locator(".vrow.active").get_by_text(name or "", exact=True).wait_for()
            top = page.locator(".vbody").evaluate("(body) => body.scrollTop")
            assert abs(top - 2500) < 36


def test_a_token_file_guards_the_pages_and_they_come_back(chromium: Chromium) -> None:
    """With the real program, which is stopped and started again."""
    with world() as net, chromium.page(WINDOW, expected="Failed to load") as page:
        token = net.home / "token"
        token.write_text("open sesame\n")
        token.chmod(0o600)
        program = net.start_rendezvous(
            None, "--http", "127.0.0.1:0", "--http-token-file", token
        )
        http = json.loads((net.home / "rendezvous.ready.json").read_text())["http"]
        page.goto(f"http://{http}/?sort=name")
        shoot(page, "polo-login")
        log_in(page, "wrong")
        page.get_by_text("This is not the token.").wait_for()
        log_in(page, "open sesame")
        page.wait_for_selector("#live.good")
        assert page.url.endswith("/?sort=name")
        assert program.terminate() == 0
        page.wait_for_selector("#live.warn")
        assert "not live" in (page.locator("#live").text_content() or "")
        net.start_rendezvous(None, "--http", http, "--http-token-file", token)
        # Sessions end with the program, so the page asks again by itself.
        log_in(page, "open sesame")
        page.wait_for_selector("#live.good")
        foot_says(page, "0 public agents")


def log_in(page: Page, token: str) -> None:
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()
