"""Headless Chromium, watched: what a page complains about fails the test."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

__all__ = ["DESKTOP", "PHONE", "Chromium", "artefact", "assert_fits", "shoot"]

DESKTOP: Final = (1440, 900)
PHONE: Final = (360, 740)
WAIT_MS: Final = 30_000
"""How long something may take to appear; it ends the wait, it is no pause."""
_VIOLATIONS: Final = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


class Chromium:
    """A browser that runs while it is entered."""

    def __enter__(self) -> Self:
        program = shutil.which("chromium")
        assert program is not None, "chromium is not installed: make pages"
        # In a container it can make no sandbox of its own; all it sees is ours.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        self._driver = sync_playwright().start()
        self._browser = self._driver.chromium.launch(
            executable_path=program, args=arguments
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._browser.close()
        self._driver.stop()

    @contextlib.contextmanager
    def page(
        self,
        size: tuple[int, int] = DESKTOP,
        *,
        scheme: Literal["light", "dark"] = "light",
        is_calm: bool = False,
        has_forced_colors: bool = False,
        expected: str | None = None,
    ) -> Iterator[Page]:
        """Yield an empty page; at the end it must have had nothing to complain about.

        Args:
            size: Width and height.
            scheme: What the user prefers.
            is_calm: Whether the user prefers less motion.
            has_forced_colors: Whether the user has chosen all colours.
            expected: Part of each complaint that the test provokes.
        """
        context = self._browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,
            reduced_motion="reduce" if is_calm else "no-preference",
            forced_colors="active" if has_forced_colors else "none",
        )
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.add_init_script(_VIOLATIONS)
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("console", lambda message: _note(message, complaints))
        # A dialog would be the work of a script that came with a string.
        page.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
        try:
            yield page
            violations: list[str] = page.evaluate("window.violations ?? []")
            complaints += violations
        finally:
            context.close()
        unexpected = [
            text for text in complaints if expected is None or expected not in text
        ]
        assert unexpected == []


def _note(message: Any, complaints: list[str]) -> None:
    if message.type in ("error", "warning"):
        complaints.append(f"{message.type}: {message.text} {message.location}")


def artefact(name: str) -> Path:
    """Return where something to look at is written."""
    given = os.environ.get("PILOTFLEET_ARTEFACTS")
    folder = Path(given) if given else Path(__file__).with_name("artefacts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def shoot(page: Page, name: str, *, is_whole: bool = False) -> None:
    """Write a picture of the page."""
    page.screenshot(path=artefact(f"{name}.png"), full_page=is_whole)


def assert_fits(page: Page) -> None:
    """Check that the page does not scroll sideways."""
    page.wait_for_function("document.fonts.status === 'loaded'")
    wide: int = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0
