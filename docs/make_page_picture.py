"""Draws docs/page.png: the page of the server with SmolLM2, one question compared, and why, with Chromium.

python docs/make_page_picture.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.browser import Browser, open_browser  # noqa: E402

PICTURE = ROOT / "docs" / "page.png"
QUESTION = "How do I make a friend?"
SETTINGS = {"#max-tokens": 44, "#seed": 2}
SIZE = 1400, 900


def main() -> None:
    """Serves, asks and draws."""
    command = [sys.executable, "-m", "parm_mlx.cli.main", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = next(line.split("served at ")[1].split()[0] for line in server.stdout if "served at " in line)
            with tempfile.TemporaryDirectory() as profile, open_browser(Path(profile)) as browser:
                draw(browser, url)
        finally:
            server.terminate()
    print(PICTURE)


def draw(browser: Browser, url: str) -> None:
    """Compares one question on the page, and shows why one token came."""
    browser.size(*SIZE)
    browser.open(url)
    browser.wait_for("document.querySelector('#examples button')")
    for field, value in SETTINGS.items():
        browser.run(
            f"const field = document.querySelector('{field}'); field.value = '{value}';"
            "for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, {bubbles: true}))"
        )
    browser.press("#question", QUESTION)
    browser.click("#compare")
    browser.wait_for("document.querySelectorAll('.column[data-state=done]').length === 4", 300)
    browser.run("[...document.querySelectorAll('.why-toggle')].at(-1).click()")
    browser.wait_for("document.querySelector('.token')")
    browser.run(
        "[...document.querySelectorAll('.token[data-moved=up][data-turned]')].at(-1).focus({preventScroll: true})"
    )
    browser.run("window.scrollTo(0, 0)")
    browser.picture(PICTURE, whole=False)


if __name__ == "__main__":
    main()
