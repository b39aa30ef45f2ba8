"""A headless Chromium for tests that look at pages: Debian's `chromium` and `chromium-driver`, driven by selenium."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Browser", "open_browser"]

PHONE, DESKTOP = (360, 740), (1200, 860)


class Browser:
    """One Chromium for many pages."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, *, size: tuple[int, int] = DESKTOP, dark: bool = False) -> None:
        """Open a file as a screen of this size would, with nothing left of an earlier page."""
        self.driver.get("about:blank")
        self.errors()
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(page.resolve().as_uri())

    def run(self, script: str, *arguments: object) -> Any:
        """What a function of this body returns in the page."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression holds, 10 seconds at most."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, 10, 0.05).until(lambda driver: driver.execute_script(f"return Boolean({condition})"))

    def mouse(self, kind: str, x: float, y: float) -> None:
        """A real event of the mouse: "mouseMoved", "mousePressed" or "mouseReleased"."""
        event = {"type": kind, "x": x, "y": y, "button": "none" if kind == "mouseMoved" else "left", "clickCount": 1}
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    def click(self, x: float, y: float) -> None:
        """Press and release there."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.mouse(kind, x, y)

    def text(self, selector: str) -> str:
        """What stands in the first element of this selector, as a reader sees it."""
        return str(self.run("return document.querySelector(arguments[0]).innerText", selector))

    def errors(self) -> list[str]:
        """What the page has complained of in its console since last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def screenshot(self, path: Path) -> None:
        """Take a picture of what is on the screen."""
        path.write_bytes(self.driver.get_screenshot_as_png())


def open_browser() -> Browser:
    """Start one; skips the test, with the reason, where something is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    chauffeur = shutil.which("chromedriver")
    if not (chromium and chauffeur):
        pytest.skip("there is no Chromium with its driver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return Browser(webdriver.Chrome(options=options, service=webdriver.ChromeService(chauffeur)))
