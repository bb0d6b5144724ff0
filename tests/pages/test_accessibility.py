"""Both dashboards by keyboard, by screen reader, and in colours that the user chose."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.fleet.monitor.madefleet import MadeFleet
from tests.pages.browser import shoot
from tests.pages.serving import serving
from tests.pages.test_polo_dashboard import Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

    from tests.pages.browser import Chromium

pytestmark = pytest.mark.pages

FOCUS = Path(__file__).with_name("focus.js").read_text()
CONTRAST = Path(__file__).with_name("contrast.js").read_text()
BAR = ("a: Overview", "a: Agents", "a: Trust", "a: Alerts1 firing", "a: Events")
HEADS = ("Agent", "State", "Status", "Polo", "Completed", "Failed", "Tunnels", "Seen")
TAGS = ("worker", "text", "gpu", "eu", "us", "batch")
MOST_STOPS = 60
MONITOR_PAGES = {
    "/": ".charts .u-legend .u-value >> nth=8",
    "/agents": ".vrow .state",
    "/agent?name=worker-7": ".plain-table tbody tr",
    "/trust": ".changes li",
    "/alerts": ".alerts li",
    "/events": ".feed li .data",
}
GRID = """
- search:
  - searchbox "Search agents by name"
  - group "State":
    - button /alive \\d+/
    - button /late \\d+/ [pressed]
- grid "Agents":
  - row:
    - columnheader "Agent":
      - button "Agent"
  - rowgroup:
    - row /worker-\\d+ late/:
      - gridcell /worker-\\d+/:
        - link /worker-\\d+/
      - gridcell "late"
- status: /\\d+ agents/
"""
SHELL = """
- link "Skip to the content"
- banner:
  - link "pilotfleet"
  - navigation "Pages":
    - link "Overview"
    - link "Alerts 1 firing"
  - status: live
- main:
  - heading "Fleet batch" [level=1]
  - region "Agents":
    - paragraph:
      - link /\\d+ alive/
      - link /\\d+ late/
      - link /\\d+ lost/
  - region "Tasks per minute"
  - region "Error rate"
  - region "Trust changes"
  - region "Polo":
    - table "Agents by polo"
  - heading "Over time" [level=2]
  - group "Time shown":
    - radio "15 min" [checked]
    - radio "1 h"
  - figure "Tasks per minute":
    - paragraph: /Tasks per minute, .* completed. last .*, lowest .*, highest/
- status: /batch. \\d+ agents alive, \\d+ late, \\d+ lost/
- contentinfo
"""
POLO = """
- link "Skip to the directory"
- banner:
  - navigation "Pages":
    - link "Directory"
  - status: live
- main:
  - heading /the public agents of this network/ [level=1]
  - region "Directory":
    - searchbox "Hostname begins with"
    - searchbox "Find a tag"
    - checkbox "Online"
    - group "Filter by tag":
      - button /text \\d+/
    - grid "Public agents":
      - row:
        - columnheader "Agent"
        - columnheader "Polo"
      - rowgroup:
        - row:
          - gridcell /node-3/:
            - link "node-3"
    - status: /\\d+ public agents/
  - complementary "The network in charts"
- contentinfo
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(MadeFleet(agents=200, wall=time.time)) as url:
        yield url


@pytest.fixture(scope="module")
def polo() -> Iterator[str]:
    with Site() as site:
        for number in range(1, 4):
            name = f"node-{number}"
            site.do(site.world.add(number, name=name, tags=["text"], polo=number))
        yield site.url


def open_page(page: Page, address: str, content: str) -> None:
    page.goto(address)
    page.wait_for_selector(content)
    page.wait_for_selector("#live.good")


def walk(page: Page) -> list[str]:
    """Press Tab until the focus leaves the page; each stop must be seen."""
    stops: list[str] = []
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUS)
        if at is None:
            return stops
        assert at["isSeen"], at["stop"]
        stops.append(at["stop"])
    raise AssertionError(f"no end of stops: {stops}")


def test_monitor_is_walked_by_tab(chromium: Chromium, url: str) -> None:
    with chromium.page() as page:
        open_page(page, f"{url}/agents?search=worker-19", ".vrow .state")
        page.wait_for_selector("button.tag:has-text('batch')")
        stops = walk(page)
    begin = ["a: Skip to the content", "a: pilotfleet", *BAR]
    assert stops[: len(begin)] == begin
    rest = stops[len(begin) :]
    assert rest[0] == "search: Search agents by name"
    kinds = [stop.rstrip("0123456789 ") for stop in rest[1:]]
    states = [f"button: {state}" for state in ("alive", "late", "lost", "left")]
    assert kinds[: 4 + len(TAGS)] == states + [f"button: {tag}" for tag in TAGS]
    # The grid is one stop, then what orders it; its rows are for the arrows.
    at = rest.index("grid: Agents")
    assert rest[at + 1 :] == [f"button: {head}" for head in HEADS]


def test_polo_is_walked_by_tab(chromium: Chromium, polo: str) -> None:
    with chromium.page() as page:
        open_page(page, polo, ".vrow:not(.waiting)")
        page.wait_for_selector("#tags .tag")
        stops = walk(page)
    assert stops == [
        *("a: Skip to the directory", "a: Polo", "a: Directory", "a: API"),
        *("search: Hostname begins with", "search: Find a tag", "checkbox: Online"),
        *("button: text 3", "grid: Public agents"),
        *("button: Agent", "button: Polo", "button: Last seen"),
        "a: Agents as JSON",
    ]


@pytest.mark.parametrize("path", [path for path in MONITOR_PAGES if path != "/agents"])
def test_every_stop_of_a_page_is_seen(chromium: Chromium, url: str, path: str) -> None:
    with chromium.page(is_calm=True) as page:
        open_page(page, url + path, MONITOR_PAGES[path])
        # Long lists are cut short: their stops are alike.
        page.evaluate(
            "document.querySelectorAll('tbody tr, .names li').forEach("
            "(e, at) => at > 20 && e.remove())"
        )
        assert len(walk(page)) > len(BAR)


def test_grid_answers_to_its_keys(chromium: Chromium, url: str) -> None:
    with chromium.page() as page:
        open_page(page, f"{url}/agents", ".vrow .state")
        grid = page.get_by_role("grid")
        grid.focus()
        active = page.locator(".vrow[aria-selected=true]")
        for key, index in (
            ("ArrowDown", 2),
            ("ArrowDown", 3),
            ("ArrowUp", 2),
            ("End", 201),
            ("Home", 2),
        ):
            page.keyboard.press(key)
            expect(active).to_have_attribute("aria-rowindex", str(index))
            told = active.get_attribute("id")
            assert told is not None
            expect(grid).to_have_attribute("aria-activedescendant", told)
        page.keyboard.press("PageDown")
        far = int(active.get_attribute("aria-rowindex") or 0)
        assert far > 8
        expect(active).to_be_in_viewport()
        page.keyboard.press("PageUp")
        expect(active).to_have_attribute("aria-rowindex", "2")
        page.keyboard.press("Escape")
        expect(active).to_have_count(0)
        assert grid.get_attribute("aria-activedescendant") is None
        expect(grid).to_have_attribute("aria-rowcount", "201")


def test_screen_readers_get_the_monitor(chromium: Chromium, url: str) -> None:
    with chromium.page() as page:
        open_page(page, url, MONITOR_PAGES["/"])
        expect(page.locator("body")).to_match_aria_snapshot(SHELL)
        open_page(page, f"{url}/agents?state=late", ".vrow .state")
        expect(page.locator("main")).to_match_aria_snapshot(GRID)


def test_screen_readers_get_the_polo_dashboard(chromium: Chromium, polo: str) -> None:
    with chromium.page() as page:
        open_page(page, polo, ".vrow:not(.waiting)")
        page.wait_for_selector("#tags .tag")
        expect(page.locator("body")).to_match_aria_snapshot(POLO)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_the_user_are_kept(
    chromium: Chromium, url: str, polo: str, scheme: str
) -> None:
    shown = {"overview": "/", "agents": "/agents?state=late", "trust": "/trust"}
    with chromium.page(
        scheme="dark" if scheme == "dark" else "light",
        is_calm=True,
        has_forced_colors=True,
    ) as page:
        for name, path in shown.items():
            open_page(page, url + path, MONITOR_PAGES[path.partition("?")[0]])
            assert page.evaluate(CONTRAST) == []
            shoot(page, f"monitor-{name}-forced-{scheme}")
            # What is chosen has a line around it: backgrounds are not drawn.
            here = page.locator("nav a[aria-current]")
            assert here.evaluate("(e) => getComputedStyle(e).outlineStyle") == "solid"
        open_page(page, f"{polo}/?tag=text", ".vrow:not(.waiting)")
        page.wait_for_selector("#polo-bars .bar-column")
        chosen = page.locator("#tags [aria-pressed=true]")
        assert chosen.evaluate("(e) => getComputedStyle(e).outlineStyle") == "solid"
        assert page.evaluate(CONTRAST) == []
        shoot(page, f"polo-forced-{scheme}")
