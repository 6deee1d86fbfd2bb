"""Headless Chromium for tests, through chromedriver and the W3C WebDriver protocol; it needs no Python package."""

import base64
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def find_browser() -> tuple[str, str] | None:
    """The browser and its driver on this machine, or None."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), str(_MAC) if _MAC.exists() else None)
    driver = shutil.which("chromedriver", path=f"{os.environ.get('CHROMEWEBDRIVER', '')}:{os.environ.get('PATH', '')}")
    return (browser, driver) if browser and driver else None


@contextmanager
def open_browser(profile: Path) -> Iterator["Browser"]:
    """Starts the browser with a profile of its own, and ends it."""
    found = find_browser()
    assert found is not None
    command = [found[1], "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        assert driver.stdout is not None
        try:
            port = next(
                int(match[1]) for line in driver.stdout if (match := re.search(r"successfully on port (\d+)", line))
            )
            threading.Thread(target=driver.stdout.read, daemon=True).start()
            browser = Browser(port, found[0], profile)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()


class Browser:
    """A window of the browser.

    Args:
        port: Where chromedriver listens.
        binary: The browser.
        profile: An empty folder.
    """

    def __init__(self, port: int, binary: str, profile: Path) -> None:
        self._port, self._session = port, ""
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        arguments += [f"--user-data-dir={profile}", "--window-size=1280,1000"]
        wanted = {
            "goog:chromeOptions": {"binary": binary, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        self._session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(f"{method} {path}: {answer['error']}: {answer['message'].splitlines()[0]}")
        return answer

    def _do(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._call("POST" if body is not None else "GET", f"/session/{self._session}{path}", body)

    def open(self, page: Path | str) -> None:
        """Opens a file, or an address."""
        self._do("/url", {"url": page if isinstance(page, str) else page.resolve().as_uri()})

    def wait_for(self, condition: str, seconds: float = 60) -> None:
        """Waits until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < end, condition
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        """What a script returns."""
        return self._do("/execute/sync", {"script": script, "args": []})

    def text(self, selector: str) -> str:
        """The text of an element, as a person sees it."""
        return str(self._do(f"/element/{self._find(selector)}/text"))

    def press(self, selector: str, keys: str) -> None:
        """Presses keys while an element has the focus."""
        self._do(f"/element/{self._find(selector)}/value", {"text": keys})

    def click(self, selector: str) -> None:
        """Clicks an element."""
        self._do(f"/element/{self._find(selector)}/click", {})

    def _find(self, selector: str) -> str:
        return str(self._do("/element", {"using": "css selector", "value": selector})[_ELEMENT])

    def console(self) -> list[str]:
        """What the console says since the last call."""
        return [entry["message"] for entry in self._do("/se/log", {"type": "browser"})]

    def media(self, **features: str) -> None:
        """Sets media features: ``media(prefers_color_scheme="dark")``."""
        wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self._do("/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"features": wanted}})

    def size(self, width: int, height: int) -> None:
        """Sets the size of the window's content."""
        params = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._do("/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": params})

    def picture(self, out: Path, whole: bool = True) -> None:
        """A picture of the whole page, or of the window."""
        params = {"format": "png", "captureBeyondViewport": whole}
        found = self._do("/goog/cdp/execute", {"cmd": "Page.captureScreenshot", "params": params})
        out.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        """Ends the browser."""
        if self._session:
            self._call("DELETE", f"/session/{self._session}")
