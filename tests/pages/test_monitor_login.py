"""The monitor's login, as a browser meets it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.fleet.monitor.madefleet import MadeFleet
from tests.pages.browser import PHONE, assert_fits, shoot
from tests.pages.serving import serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.pages.browser import Chromium

pytestmark = pytest.mark.pages

TOKEN = "open sesame"


def log_in(page: Page, token: str) -> None:
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()


def test_the_token_opens_the_page_that_was_asked_for(chromium: Chromium) -> None:
    source = MadeFleet(agents=20, wall=time.time)
    with (
        serving(source, token=TOKEN) as url,
        chromium.page(PHONE, expected="401") as page,
    ):
        page.goto(f"{url}/agents?state=alive")
        assert_fits(page)
        shoot(page, "monitor-login-phone")
        log_in(page, "wrong")
        page.get_by_role("alert").get_by_text("This is not the token.").wait_for()
        log_in(page, TOKEN)
        page.wait_for_selector("#live.good")
        page.wait_for_selector(".vrow .state")
        assert page.url == f"{url}/agents?state=alive"
        page.get_by_role("button", name="Log out").click()
        page.get_by_label("Token").wait_for()
        page.goto(f"{url}/alerts")
        page.get_by_label("Token").wait_for()


def test_a_monitor_started_anew_asks_again(chromium: Chromium) -> None:
    """Also on a page that asks for nothing but the stream."""
    source = MadeFleet(agents=20, wall=time.time)
    with chromium.page(expected="Failed to load resource") as page:
        with serving(source, token=TOKEN) as url:
            page.goto(f"{url}/alerts")
            log_in(page, TOKEN)
            page.wait_for_selector("#live.good")
            port = int(url.rpartition(":")[2])
        page.wait_for_selector("#live.warn")
        with serving(source, port=port, token=TOKEN):
            log_in(page, TOKEN)
            page.wait_for_selector("#live.good")
            assert page.url == f"{url}/alerts"
