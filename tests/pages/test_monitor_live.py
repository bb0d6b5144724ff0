"""The monitor's pages on a live fleet of 200 agents, twenty of which are killed."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fleet.monitor.madefleet import HOSTILE
from tests.fleet.support import write_tasks
from tests.fleet.upsupport import fleet, fleet_data, fleet_world, wait_until
from tests.pages.browser import DESKTOP, PHONE, assert_fits, shoot
from tests.support.programs import BIN, data_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Locator, Page

    from tests.pages.browser import Chromium
    from tests.support.programs import Program, World

pytestmark = [pytest.mark.pages, pytest.mark.timeout(400)]

WORKERS = 180
EXTRA = 20
ALL = WORKERS + EXTRA
TASKS = 300
HEALTH_S = 2
"""Late after two of them, lost after five: a busy machine sees both."""
COMMAND = "grep -v bad"
SPEC = f"""
[fleet]
name = "live"
[workers]
exec = "{COMMAND}"
count = {WORKERS}
per_process = 60
tags = ["worker", "text"]
[health]
interval = "{HEALTH_S}s"
[monitor]
http = "127.0.0.1:0"
"""
RULES = """
[[rule]]
name = "workers-lost"
severity = "critical"
metric = "agents_lost"
above = 0
summary = "{value} workers are lost"
"""
TOKEN = "a token of the monitor that is looked at"


@dataclass
class Live:
    """A fleet that is up, and its monitor."""

    net: World
    url: str
    doomed: Program
    """The program of the workers that no keeper starts again."""


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with fleet_world() as net:
        spec = net.home / "live.toml"
        rules = net.home / "alerts.toml"
        rules.write_text(RULES)
        spec.write_text(f'{SPEC}alerts = "{rules}"\n')
        fleet_data(net, "up", spec)
        status = wait_until(net, lambda status: bool(status["monitor"]))
        doomed = start_extra(net, Path(status["home"]))
        publish_hostile(net)
        texts = {f"t-{n}": "bad" if n % 10 == 0 else HOSTILE for n in range(TASKS)}
        done = fleet(net, "submit", "--tasks", write_tasks(net, texts), "--wait")
        assert f"{TASKS // 10} failed" in done.stdout + done.stderr
        yield Live(net, status["monitor"].rstrip("/"), doomed)


def start_extra(net: World, home: Path) -> Program:
    """Start agents of the fleet that its launcher does not look after."""
    where = json.loads((home / "run" / "rendezvous.json").read_text())
    net.registry, net.beacon = where["registry"], where["beacon"]
    network = json.loads((home / "network.json").read_text())
    net.start_daemon(
        "extra",
        *("--agents", str(EXTRA), "--agent-first", str(WORKERS + 1)),
        *("--agent-prefix", "worker-", "--tag", "worker", "--tag", "doomed"),
        *("--broker", "live-hub", "--polo-gate", "off"),
        *("--join", f"{network['network_id']}:{network['token']}"),
    )
    return start_doomed(net)


def start_doomed(net: World) -> Program:
    """Start the program of those agents."""
    ready = net.home / "extra-worker.json"
    ready.unlink(missing_ok=True)
    program = net.start(
        "extra-worker",
        *(BIN / "openclaw-worker", "--ids", f"worker-[{WORKERS + 1}-{ALL}]"),
        *("--exec", COMMAND, "--health-interval", f"{HEALTH_S}s"),
        *("--socket", net.socket("extra"), "--ready-file", ready),
    )
    program.wait_until(ready.exists)
    return program


def publish_hostile(net: World) -> None:
    """Have a member of the fleet say what an enemy would say."""
    health = {"agent": HOSTILE, "status": HOSTILE, "interval_s": 3_600}
    for topic in ("fleet.health", f"fleet.{HOSTILE}"):
        arguments = ("--topic", topic, "--data", json.dumps(health))
        data_of(net.ctl("extra", "events", "publish", *arguments))


def open_agents(page: Page, live: Live) -> None:
    page.goto(f"{live.url}/agents")
    page.wait_for_selector(".vrow .state")
    page.wait_for_selector("#live.good")


def wait_for_rows(page: Page, count: int) -> None:
    """Wait until the table says that it has so many."""
    noun = "agent" if count == 1 else "agents"
    page.locator(".vfoot").get_by_text(f"{count:,} {noun}", exact=True).wait_for()


def wait_for_figure(page: Page, state: str, count: int) -> None:
    """Wait until the overview counts so many agents of a state."""
    page.locator(f"#figure-agents .states a:has-text('{count} {state}')").wait_for()


def test_all_agents_of_the_fleet_are_there(chromium: Chromium, live: Live) -> None:
    with chromium.page() as page:
        open_agents(page, live)
        # And the one that nobody hosts but that was told of.
        wait_for_rows(page, ALL + 1)
        page.get_by_role("button", name="doomed").click()
        wait_for_rows(page, EXTRA)
        page.get_by_label("Search agents by name").fill(f"worker-{ALL}")
        wait_for_rows(page, 1)


def test_figures_move_while_nobody_reloads(chromium: Chromium, live: Live) -> None:
    with chromium.page() as page:
        page.goto(live.url)
        wait_for_figure(page, "alive", ALL + 1)
        page.evaluate("window.isTheSame = true")
        failed = page.locator("#figure-errors .value")
        page.wait_for_selector("#figure-errors .value:has-text('10.0 %')")
        before = failed.text_content()
        rows = {f"more-{n}": "good" for n in range(TASKS)}
        tasks = write_tasks(live.net, rows)
        fleet_data(live.net, "submit", "--tasks", tasks, "--wait")
        page.wait_for_selector("#figure-errors .value:has-text('5.0 %')")
        assert before == "10.0 %"
        assert page.evaluate("window.isTheSame")


def test_an_agent_is_opened(chromium: Chromium, live: Live) -> None:
    with chromium.page() as page:
        open_agents(page, live)
        page.get_by_role("button", name="Completed").click()
        page.locator(".vrow .name").first.click()
        page.wait_for_selector(".plain-table tbody tr")
        page.locator("dd .mono").first.wait_for()
        # The text of tasks is what workers said: here, markup.
        page.get_by_text(HOSTILE).first.wait_for()
        page.locator(".feed .topic", has_text="fleet.health").first.wait_for()
        shoot(page, "live-agent-light")


def test_markup_of_the_fleet_is_text(chromium: Chromium, live: Live) -> None:
    with chromium.page() as page:
        open_agents(page, live)
        page.get_by_label("Search agents by name").fill("<script>")
        wait_for_rows(page, 1)
        page.locator(".vrow .name", has_text=HOSTILE).click()
        page.wait_for_selector(".facts")
        assert page.locator("h1").text_content() == HOSTILE
        page.locator(".feed .topic", has_text=HOSTILE).first.wait_for()
        assert page.evaluate("document.scripts.length") == 1


@pytest.mark.parametrize(
    ("name", "path", "content"),
    [
        ("overview", "/", "#figure-polo .value"),
        ("trust", "/trust", ".legend"),
        ("events", "/events", ".feed .data"),
        ("alerts", "/alerts", ".card"),
    ],
)
def test_pictures_are_taken(
    chromium: Chromium, live: Live, name: str, path: str, content: str
) -> None:
    for kind, size, scheme in (
        ("light", DESKTOP, "light"),
        ("dark", DESKTOP, "dark"),
        ("phone", PHONE, "light"),
    ):
        with chromium.page(
            size, scheme="dark" if scheme == "dark" else "light", is_calm=True
        ) as page:
            page.goto(live.url + path)
            page.wait_for_selector(content)
            page.wait_for_selector("#live.good")
            page.wait_for_load_state("load")
            if name == "overview":
                page.wait_for_selector(".charts .u-legend .u-value >> nth=8")
            if name == "trust":
                page.wait_for_selector(".plain-table tbody tr")
            assert_fits(page)
            shoot(page, f"live-{name}-{kind}", is_whole=kind == "phone")


def test_a_token_file_guards_the_monitor(chromium: Chromium, live: Live) -> None:
    token, ready = live.net.home / "token", live.net.home / "guarded.json"
    token.write_text(TOKEN)
    token.chmod(0o600)
    program = live.net.start(
        "guarded",
        *(BIN / "pilot-monitor", "--broker", "live-hub", "--http", "127.0.0.1:0"),
        *("--http-token-file", token, "--home", live.net.home / "guarded"),
        *("--socket", live.net.socket("extra"), "--ready-file", ready),
    )
    program.wait_until(ready.exists)
    url = f"http://{json.loads(ready.read_text())['http']}"
    with chromium.page(expected="401") as page:
        page.goto(f"{url}/?range=3600")
        page.get_by_label("Token").fill("another")
        page.get_by_role("button", name="Log in").click()
        page.get_by_text("This is not the token.").wait_for()
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_selector("#live.good")
        assert page.url == f"{url}/?range=3600"
        wait_for_figure(page, "alive", ALL + 1)
        page.get_by_role("button", name="Log out").wait_for()
    assert program.terminate() == 0


def test_killed_workers_turn_late_then_lost_then_come_back(
    chromium: Chromium, live: Live
) -> None:
    with (
        chromium.page() as page,
        chromium.page() as overview,
        chromium.page() as alerts,
    ):
        alerts.goto(f"{live.url}/alerts")
        alerts.get_by_text("Nothing fires.").wait_for()
        overview.goto(live.url)
        wait_for_figure(overview, "alive", ALL + 1)
        open_agents(page, live)
        page.get_by_role("button", name="doomed").click()
        wait_for_rows(page, EXTRA)
        live.doomed.kill()
        began = time.monotonic()
        page.get_by_role("button", name="late").click()
        wait_for_rows(page, EXTRA)
        late_s = time.monotonic() - began
        wait_for_figure(overview, "late", EXTRA)
        shoot(overview, "live-overview-late")
        shoot(page, "live-agents-late")
        page.get_by_role("button", name="late").click()
        page.get_by_role("button", name="lost").click()
        wait_for_rows(page, EXTRA)
        lost_s = time.monotonic() - began
        wait_for_figure(overview, "lost", EXTRA)
        wait_for_figure(overview, "alive", ALL + 1 - EXTRA)
        shoot(overview, "live-overview-lost")
        shoot(page, "live-agents-lost")
        # The last health event may have been almost an interval before.
        assert HEALTH_S < late_s < lost_s
        assert lost_s > 4 * HEALTH_S
        told = f"{EXTRA} workers are lost"
        group(alerts, "Firing").locator("li", has_text=told).wait_for()
        alerts.locator("#alert-badge", has_text="1").wait_for()
        shoot(alerts, "live-alerts-firing")
        live.doomed = start_doomed(live.net)
        wait_for_figure(overview, "alive", ALL + 1)
        wait_for_rows(page, 0)
        group(alerts, "Resolved").locator("li", has_text="workers-lost").wait_for()
        alerts.locator("#alert-badge").wait_for(state="hidden")
        shoot(alerts, "live-alerts-resolved")


def group(page: Page, name: str) -> Locator:
    """Return the alerts of a state."""
    return page.locator("section", has=page.get_by_role("heading", name=name))
