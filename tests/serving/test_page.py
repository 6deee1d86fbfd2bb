"""The page, in headless Chromium."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from parm_mlx.serving.events import Text
from tests.browser import Browser, find_browser, open_browser
from tests.serving.running import QUESTION, Running, serving

pytestmark = pytest.mark.skipif(find_browser() is None, reason="needs Chromium and chromedriver")

HOSTILE = "<script>document.title = 'stolen'</script> **bold** \u202e drow \u001b[31mred <img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(window: Browser, running: Running) -> Iterator[Browser]:
    """The page without a conversation; the console and the hosts that it asked are judged afterwards."""
    window.size(1280, 900)
    window.open(running.url)
    window.run("localStorage.clear(); sessionStorage.clear()")
    window.open(running.url)
    window.wait_for("document.querySelector('#examples button')")
    window.press("#question", "")
    set_value(window, "#temperature-number", "0")
    set_value(window, "#max-tokens", "24")
    yield window
    assert window.console() == []
    hosts = window.run("return performance.getEntriesByType('resource').map(entry => new URL(entry.name).host)")
    assert set(hosts) <= {f"127.0.0.1:{running.port}"}


def set_value(window: Browser, selector: str, value: str) -> None:
    window.run(
        f"const field = document.querySelector('{selector}'); field.value = '{value}';"
        "for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, {bubbles: true}))"
    )


def ask(window: Browser, question: str = QUESTION) -> str:
    """Asks, and returns the answer."""
    before = window.run("return document.querySelectorAll('.answer').length")
    window.press("#question", question)
    window.click("#send")
    window.wait_for(f"document.querySelectorAll('.answer[data-state=done]').length > {before}")
    return last_text(window)


def last_text(window: Browser) -> str:
    return str(window.run("return [...document.querySelectorAll('.answer .text')].at(-1).textContent"))


def test_the_slider_changes_the_next_answer(page: Browser) -> None:
    set_value(page, "#alpha", "1")
    first = ask(page)
    page.click("#new")
    set_value(page, "#alpha-number", "0")
    second = ask(page)
    page.click("#new")
    page.run("document.querySelector('#base-alone').click()")
    third = ask(page)
    assert len({first, second, third}) == 3
    assert page.run("return document.querySelector('.answer').dataset.alpha") == "base alone"
    assert page.run("return document.querySelectorAll('#conversations li').length") == 3


def test_an_answer_that_streams_can_be_stopped(page: Browser) -> None:
    set_value(page, "#temperature-number", "2")
    set_value(page, "#max-tokens", "900")
    set_value(page, "#seed", "1")
    page.press("#question", "Tell me of bread.")
    page.click("#send")
    page.wait_for("document.querySelector('.answer[data-state=streaming] .text')?.textContent.length > 5")
    page.click("#stop")
    page.wait_for("document.querySelector('.answer[data-state=stopped]')")
    assert len(last_text(page)) > 5


def test_compare_and_why(page: Browser) -> None:
    page.press("#question", QUESTION)
    page.click("#compare")
    page.wait_for("document.querySelectorAll('.column[data-state=done]').length === 4")
    shown = page.run("return [...document.querySelectorAll('.column')].map(column => column.dataset.alpha)")
    assert shown[0] == "base alone"
    assert len(set(shown)) == 4
    page.run("document.querySelector('.column .why-toggle').click()")
    page.wait_for("document.querySelectorAll('.column .token').length > 3")
    page.run("document.querySelector('.token').focus()")
    page.wait_for("document.querySelector('#why-panel')?.textContent.includes('%')")
    panel = page.run("return document.querySelector('#why-panel').textContent")
    assert "base" in panel
    assert "guide" in panel
    page.run("document.querySelectorAll('.choose')[0].click()")
    assert ask(page, "And then?")


def test_edit_retry_and_export(page: Browser) -> None:
    set_value(page, "#alpha", "1")
    first = ask(page)
    page.run("document.querySelector('[data-action=retry]').click()")
    page.wait_for("document.querySelector('.answer[data-state=done]')")
    assert last_text(page) == first
    page.run(
        "window.blobs = []; const make = URL.createObjectURL;"
        "URL.createObjectURL = blob => { window.blobs.push(blob); return make.call(URL, blob) }"
    )
    page.click("#export")
    page.wait_for("window.blobs.length === 1")
    page.run("window.blobs[0].text().then(text => { window.exported = text })")
    page.wait_for("window.exported")
    exported = json.dumps(json.loads(page.run("return window.exported")), ensure_ascii=False)
    assert QUESTION in exported
    assert first[:20] in exported


def test_text_of_a_model_is_only_ever_text(page: Browser, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    service = running.service
    begin = type(service).begin

    async def hostile(self, wanted):  # type: ignore[no-untyped-def]
        answers = await begin(self, wanted)
        events = answers.events

        async def changed():  # type: ignore[no-untyped-def]
            async for index, event in events():
                yield index, Text(HOSTILE) if isinstance(event, Text) else event

        answers.events = changed  # type: ignore[method-assign]
        return answers

    monkeypatch.setattr(type(service), "begin", hostile)
    set_value(page, "#max-tokens", "1")
    text = ask(page)
    assert "<script>document.title = 'stolen'</script> **bold**" in text
    assert "onerror=alert(1)>" in text
    assert "\u001b" not in text
    assert page.run("return document.querySelectorAll('.answer script, .answer img').length") == 0
    assert page.run("return document.title") != "stolen"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(page: Browser, width: int, scheme: str, tmp_path: Path) -> None:
    page.media(prefers_color_scheme=scheme)
    page.size(width, 844)
    page.run("document.querySelector('#alpha')")
    ask(page)
    assert page.run("return document.documentElement.scrollWidth <= window.innerWidth")
    back = page.run("return getComputedStyle(document.body).backgroundColor")
    bright = sum(int(part) for part in back.removeprefix("rgb(").rstrip(")").split(",")[:3]) / 3
    assert (bright > 128) == (scheme == "light")


def test_controls_have_names(page: Browser) -> None:
    nameless = page.run(
        "return [...document.querySelectorAll('button, input, textarea, select')].filter(each =>"
        " !each.labels?.length && !each.getAttribute('aria-label') && !each.getAttribute('aria-labelledby')"
        " && !each.textContent.trim() && !each.title).map(each => each.outerHTML)"
    )
    assert nameless == []


def test_the_list_of_fields(page: Browser, running: Running) -> None:
    page.open(f"{running.url}/docs")
    page.wait_for("document.querySelector('#operations[aria-busy=false]')")
    shown = page.run("return document.body.textContent")
    assert "POST /v1/chat/completions" in shown
    assert "frequency_penalty" in shown
