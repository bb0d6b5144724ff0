"""The monitor's pages on a made-up fleet: how they look, read and answer to keys."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from tests.fleet.monitor.madefleet import HOSTILE, HOSTILE_NAMES, MadeFleet
from tests.pages.browser import DESKTOP, PHONE, assert_fits, shoot
from tests.pages.serving import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

    from tests.pages.browser import Chromium

pytestmark = pytest.mark.pages

AGENTS = 200
PAGES = {
    "overview": ("/", "#figure-polo .bar-column"),
    "agents": ("/agents", ".vrow .state"),
    "agent": ("/agent?name=worker-7", ".plain-table tbody tr"),
    "trust": ("/trust", ".changes li"),
    "alerts": ("/alerts", ".alerts li"),
    "events": ("/events", ".feed li .data"),
}
HAS_MOVED = """
(before) => document.querySelector("#figure-tasks .value").textContent !== before
"""
IN_ORDER = """
(top) => {
  const rows = [...document.querySelectorAll(".vrow:not(.waiting)")];
  const indexes = rows.map((row) => Number(row.getAttribute("aria-rowindex")));
  return indexes.includes(Math.floor(top / 36) + 3)
    && indexes.every((index, at) => at === 0 || index === indexes[at - 1] + 1);
}
"""
CONTRAST = Path(__file__).with_name("contrast.js").read_text()
NAMES = Path(__file__).with_name("names.js").read_text()


@pytest.fixture(scope="module")
def fleet() -> MadeFleet:
    return MadeFleet(agents=AGENTS, wall=time.time)


@pytest.fixture(scope="module")
def url(fleet: MadeFleet) -> Iterator[str]:
    with serving(fleet) as url:
        yield url


def open_page(page: Page, url: str, name: str) -> None:
    """Open a page and wait until it shows what it is for."""
    path, content = PAGES[name]
    page.goto(url + path)
    page.wait_for_selector(content)
    page.wait_for_selector("#live.good")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(
    ("kind", "size", "scheme"),
    [("light", DESKTOP, "light"), ("dark", DESKTOP, "dark"), ("phone", PHONE, "light")],
)
def test_page_fits_and_can_be_read(
    chromium: Chromium,
    url: str,
    name: str,
    kind: str,
    size: tuple[int, int],
    scheme: Literal["light", "dark"],
) -> None:
    with chromium.page(size, scheme=scheme, is_calm=True) as page:
        open_page(page, url, name)
        if name == "overview":
            page.wait_for_selector(".charts .u-legend .u-value >> nth=8")
        assert_fits(page)
        assert page.evaluate(CONTRAST) == []
        assert page.evaluate(NAMES) == []
        shoot(page, f"monitor-{name}-{kind}", is_whole=kind == "phone")


@pytest.mark.parametrize("name", PAGES)
def test_hostile_strings_are_text(chromium: Chromium, url: str, name: str) -> None:
    """What a script of theirs would do is a dialog, and that fails the test."""
    with chromium.page() as page:
        open_page(page, url, name)
        assert page.evaluate("document.scripts.length") == 1
        assert page.locator("main script, main img, main b[onclick]").count() == 0
        if name != "agent":
            page.get_by_text(HOSTILE).first.wait_for(state="attached")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_an_agent_of_any_name_can_be_opened(
    chromium: Chromium, url: str, name: str
) -> None:
    with chromium.page() as page:
        open_page(page, url, "agents")
        page.get_by_label("Search agents by name").fill(name)
        page.wait_for_function(
            "() => document.querySelector('.vfoot').textContent === '1 agent'"
        )
        page.locator(".vrow .name").click()
        page.wait_for_selector(".plain-table tbody tr")
        assert page.locator("h1").text_content() == name


def test_figures_move_without_reload(chromium: Chromium, url: str) -> None:
    with chromium.page() as page:
        open_page(page, url, "overview")
        page.evaluate("window.isTheSame = true")
        before = page.locator("#figure-tasks .value").text_content()
        page.wait_for_function(
            HAS_MOVED,
            arg=before,
        )
        assert page.evaluate("window.isTheSame")


def test_range_is_kept_in_the_address(chromium: Chromium, url: str) -> None:
    with chromium.page() as page:
        open_page(page, url, "overview")
        with page.expect_request(lambda request: "range=604800" in request.url):
            page.get_by_text("7 d", exact=True).click()
        assert page.url.endswith("?range=604800")
        page.reload()
        assert page.get_by_role("radio", name="7 d").is_checked()


def test_table_is_filtered_by_state_and_tag(
    chromium: Chromium, url: str, fleet: MadeFleet
) -> None:
    with chromium.page() as page:
        open_page(page, url, "agents")
        foot = page.locator(".vfoot")
        page.get_by_role("button", name="gpu").click()
        gpus = [row for row in fleet.rows if "gpu" in row.tags]
        foot.get_by_text(f"{len(gpus)} agents", exact=True).wait_for()
        page.get_by_role("button", name="late").click()
        late = [row for row in gpus if row.state == "late"]
        foot.get_by_text(re.compile(rf"^{len(late)} agents?$")).wait_for()
        assert page.evaluate("document.activeElement.textContent").startswith("late")
        assert "state=late" in page.url
        assert "tag=gpu" in page.url
        # The address brings all of it back.
        page.reload()
        foot.get_by_text(re.compile(rf"^{len(late)} agents?$")).wait_for()
        page.locator("button.tag[aria-pressed=true] >> nth=1").wait_for()


def test_table_is_sorted_by_its_heads(
    chromium: Chromium, url: str, fleet: MadeFleet
) -> None:
    best = max(fleet.rows, key=lambda row: row.polo or 0)
    with chromium.page() as page:
        open_page(page, url, "agents")
        page.get_by_role("button", name="Polo").click()
        page.wait_for_function(
            "(name) => document.querySelector('.vrow .name')?.textContent === name",
            arg=best.name,
        )
        head = page.get_by_role("columnheader", name="Polo")
        assert head.get_attribute("aria-sort") == "descending"


def test_keyboard_alone_is_enough(chromium: Chromium, url: str) -> None:
    with chromium.page() as page:
        open_page(page, url, "agents")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        box = page.get_by_label("Search agents by name")
        box.focus()
        page.keyboard.type("worker-19")
        page.locator(".vfoot").get_by_text("11 agents", exact=True).wait_for()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("End")
        page.keyboard.press("Home")
        row = page.locator(".vrow.active")
        assert row.get_attribute("aria-selected") == "true"
        name = row.locator(".name").text_content()
        page.keyboard.press("Enter")
        page.wait_for_selector(".plain-table tbody tr")
        assert page.locator("h1").text_content() == name
        # Who listens is told the new page.
        assert page.evaluate("document.activeElement.tagName") == "H1"
        page.go_back()
        page.wait_for_selector(".vrow .state")
        assert page.get_by_label("Search agents by name").input_value() == "worker-19"


def test_escape_empties_the_search(chromium: Chromium, url: str) -> None:
    with chromium.page() as page:
        open_page(page, url, "agents")
        box = page.get_by_label("Search agents by name")
        box.fill("nobody at all")
        page.get_by_text("No agent fits the search.").wait_for()
        box.press("Escape")
        page.locator(".vfoot").get_by_text("200 agents", exact=True).wait_for()
        assert box.input_value() == ""


def test_graph_tells_of_the_agent_that_is_chosen(
    chromium: Chromium, url: str, fleet: MadeFleet
) -> None:
    with chromium.page(is_calm=True) as page:
        open_page(page, url, "trust")
        page.get_by_label("Search the agents of the graph by name").fill("worker-42")
        page.get_by_role("button", name="worker-42", exact=True).press("Enter")
        chosen = page.locator("section", has_text="Chosen agent")
        chosen.get_by_role("link", name="worker-42").wait_for()
        links = [link for link in fleet.links if "worker-42" in (link.one, link.other)]
        trust = sum(link.kind == "trust" for link in links)
        assert f"{trust} trust" in (chosen.text_content() or "")
        shoot(page, "monitor-trust-chosen")
        page.keyboard.press("Escape")
        chosen.get_by_text("None.").wait_for()
        box = page.locator("canvas").bounding_box()
        assert box is not None
        page.get_by_role("button", name="Larger").click()
        page.get_by_role("button", name="Show all").click()


def test_paused_events_stay(chromium: Chromium, url: str) -> None:
    with chromium.page() as page:
        open_page(page, url, "events")
        page.get_by_role("button", name="Pause").click()
        first = page.locator(".feed li time").first.get_attribute("datetime")
        with page.expect_response(lambda answer: "/events?" in answer.url):
            pass
        still = page.locator(".feed li time").first.get_attribute("datetime")
        assert still == first
        page.get_by_label("Show events with this text").fill("fleet.task")
        page.wait_for_function(
            "() => [...document.querySelectorAll('.topic')]"
            ".every((e) => e.textContent === 'fleet.task')"
        )


def test_fleets_are_chosen_and_kept(chromium: Chromium) -> None:
    second = "<img src=x onerror=alert(3)>"
    names = ("batch", second)
    source = MadeFleet(agents=20, wall=time.time, names=names)
    with serving(source) as url, chromium.page() as page:
        open_page(page, url, "overview")
        page.get_by_label("Fleet", exact=True).select_option(second)
        page.locator("nav a", has_text="Agents").click()
        page.wait_for_selector(".vrow .state")
        assert page.get_by_label("Fleet", exact=True).input_value() == second
        assert "fleet=%3Cimg" in page.url


def test_lost_connection_is_shown_and_comes_back(chromium: Chromium) -> None:
    source = MadeFleet(agents=20, wall=time.time)
    with chromium.page(expected="Failed to load resource") as page:
        with serving(source) as url:
            open_page(page, url, "overview")
            port = int(url.rpartition(":")[2])
        page.wait_for_selector("#live.warn")
        assert "not live" in (page.locator("#live").text_content() or "")
        page.get_by_text("the server does not answer").wait_for()
        # The last figures stay, and by themselves they go on.
        before = page.locator("#figure-tasks .value").text_content()
        assert before != "\N{EN DASH}"
        with serving(source, port=port):
            page.wait_for_selector("#live.good")
            page.get_by_text("the server does not answer").wait_for(state="hidden")
            page.wait_for_function(
                HAS_MOVED,
                arg=before,
            )


def test_who_comes_back_finds_the_table_where_it_was(
    chromium: Chromium, url: str
) -> None:
    with chromium.page() as page:
        open_page(page, url, "agents")
        page.get_by_role("button", name="Completed").click()
        page.get_by_role("button", name="worker", exact=False).first.click()
        for way_back in ("browser", "link"):
            page.locator(".vbody").evaluate("(body) => (body.scrollTop = 2500)")
            row = page.locator(".vrow:not(.waiting)[aria-rowindex='80']")
            name = row.locator(".name").text_content()
            row.locator(".name").click()
            page.wait_for_selector(".plain-table tbody tr")
            assert page.locator("h1").text_content() == name
            if way_back == "browser":
                page.go_back()
            else:
                page.locator(".crumb a").click()
            row = page.locator(".vrow.active")
            row.get_by_text(name or "", exact=True).wait_for()
            assert row.get_attribute("aria-rowindex") == "80"
            top = page.locator(".vbody").evaluate("(body) => body.scrollTop")
            assert abs(top - 2500) < 36
            assert "sort=-completed" in page.url
            page.locator("button.tag[aria-pressed=true]").wait_for()


def test_rows_are_in_order_for_readers_after_a_scroll(
    chromium: Chromium, url: str
) -> None:
    with chromium.page() as page:
        open_page(page, url, "agents")
        for top in (400, 300, 4000, 3800):
            page.locator(".vbody").evaluate(
                "(body, top) => (body.scrollTop = top)", top
            )
            page.wait_for_function(IN_ORDER, arg=top)


def test_alert_fires_and_is_resolved_while_it_is_looked_at(chromium: Chromium) -> None:
    source = MadeFleet(agents=20, wall=time.time)
    source.firing = False
    with serving(source) as url, chromium.page() as page:
        open_page(page, url, "alerts")
        firing = page.locator("section", has=page.get_by_role("heading", name="Firing"))
        firing.get_by_text("Nothing fires.").wait_for()
        assert page.locator("#alert-badge").is_hidden()
        source.firing = True
        firing.locator("li", has_text="errors").wait_for()
        page.locator("#alert-badge", has_text="1").wait_for()
        source.firing = False
        firing.get_by_text("Nothing fires.").wait_for()
        page.locator("#alert-badge").wait_for(state="hidden")
