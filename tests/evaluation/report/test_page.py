import dataclasses
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser, open_browser
from evaluation.made_up import made_up_run

from parm_mlx.answers.store import Result
from parm_mlx.errors import RunError
from parm_mlx.evaluation.report import page, plots
from parm_mlx.evaluation.report.page import embed, write_page
from parm_mlx.evaluation.summary import Run, compare, summarise

RIGHT, END, HOME = "\ue014", "\ue010", "\ue011"
HOSTILE = [
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "<!--<script>",
    "quotes \" and ' and ` and \\ and \\u003c",
    "line\u2028and\u2029paragraph\nnew line\x00",
    "&lt;b&gt; &amp; ]]>",
    "half of 😀: \ud83d",
]


def hostile(run: Run) -> Run:
    """The run with answers, prompts and ids that would break a page that does not escape them."""
    renamed = {f"p{i:02}": f"p{i:02} {HOSTILE[i % len(HOSTILE)]}" for i in range(100)}
    results, scores = [], {}
    for number, old in enumerate(run.results):
        text = f"{HOSTILE[number % len(HOSTILE)]} answer {number}"
        prompt: Any = HOSTILE[number % 2] if number % 3 else [{"role": "user", "content": HOSTILE[0]}]
        new = dataclasses.replace(old, id=renamed[old.id], prompt=prompt, text=text)
        results.append(new)
        scores[new.key] = run.scores[old.key]
    return dataclasses.replace(run, name='<b>bold</b> & "co"', results=results, scores=scores)


def written(folder: Path, run: Run) -> Path:
    return write_page(summarise(run, samples=20), run.results, run.scores, folder)


class Parsed(HTMLParser):
    """What a page refers to, its scripts and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]

    def handle_data(self, data: str) -> None:
        (self.scripts if self.tags and self.tags[-1] == "script" else self.texts).append(data)


def content(file: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', file.read_text(encoding="utf-8"))
    assert found is not None
    return dict(json.loads(found[1]))


def test_embedded_json_holds_nothing_that_ends_a_script() -> None:
    text = embed(HOSTILE)
    assert json.loads(text) == HOSTILE
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_the_page_stands_alone_and_hostile_texts_stay_texts(tmp_path: Path) -> None:
    run = hostile(made_up_run(2, 0.25, prompts=8))
    text = written(tmp_path, run).read_text(encoding="utf-8")
    parsed = Parsed(text)
    assert [link for link in parsed.links if not link.startswith(("#", "data:"))] == []
    assert "img" not in parsed.tags
    assert text.count("<script") == text.count("</script>") == 2
    assert not re.search(r"@import|url\((?!#)", text)
    assert '<b>bold</b> & "co"' in parsed.texts
    shown = content(tmp_path / "report.html")
    assert {answer[0] for prompt in shown["answers"] for row in prompt for answer in row} == {
        r.text for r in run.results
    }


def test_what_the_script_reads(tmp_path: Path) -> None:
    run = made_up_run(2, 0.5, prompts=3, seeds=(4, 7), extra=True)
    data = content(written(tmp_path, run))
    assert data["alphas"] == [[1, 0], [0.5, 0.5], [0, 1]]
    assert data["rewards"] == ["warmth", "focus", "length"]
    assert data["seeds"] == [4, 7]
    assert data["first"] == 1
    for result in run.results:
        prompt = [item["id"] for item in data["prompts"]].index(result.id)
        column = 0 if result.alpha is None else 1 + data["alphas"].index(list(result.alpha))
        text, tokens, ended, scores = data["answers"][prompt][data["seeds"].index(result.seed)][column]
        assert (text, tokens, ended) == (result.text, result.tokens, result.finish_reason == "stop")
        assert scores == pytest.approx(list(run.scores[result.key].values()), rel=1e-4)


def test_figures_are_on_the_page(tmp_path: Path) -> None:
    run = made_up_run(2, 0.25, prompts=8)
    summary = summarise(run, samples=20)
    text = " ".join(Parsed(write_page(summary, run.results, run.scores, tmp_path).read_text("utf-8")).texts)
    assert f"{summary['hv']['value']:.3g}" in text
    assert f"{summary['mip']['low']:.3g} to {summary['mip']['high']:.3g}".replace("-", "−") in text
    assert summary["normalization"]["text"] in text
    assert "warmth −2, focus −2" in text
    assert all(finding["text"] in text for finding in summary["diagnosis"])


def test_a_comparison_has_a_table_of_runs_and_no_answers(tmp_path: Path) -> None:
    runs = [made_up_run(2, 0.25, prompts=8, name=name, seed=len(name)) for name in ("one", "three")]
    text = write_page(compare(runs, samples=20), [], {}, tmp_path).read_text(encoding="utf-8")
    parsed = Parsed(text)
    assert {"one", "three", "three − one"} <= set(parsed.texts)
    assert "script" not in parsed.tags
    assert parsed.tags.count("svg") == 1


@pytest.mark.parametrize("reason", ["missing", "failing"])
def test_without_a_picture_the_page_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    def fail(summary: object, out: object) -> str:
        raise RuntimeError("no <fonts>")

    if reason == "missing":
        monkeypatch.setattr(plots, "can_draw", lambda: False)
    monkeypatch.setattr(page, "draw", fail)
    parsed = Parsed(written(tmp_path, made_up_run(1, 0.5, prompts=2)).read_text(encoding="utf-8"))
    assert "svg" not in parsed.tags
    wanted = "no picture: matplotlib is not installed" if reason == "missing" else "no picture: no <fonts>"
    assert any(wanted in text for text in parsed.texts)


def test_ten_thousand_answers_make_a_page_of_a_few_megabytes(tmp_path: Path) -> None:
    """The page costs less than 64 bytes per answer, beside the answers themselves."""
    run = made_up_run(2, 0.1, prompts=840)
    summary = summarise(run, samples=2)
    file = write_page(summary, run.results, run.scores, tmp_path)
    whole = file.stat().st_size
    empty = write_page(summary, [], {}, tmp_path).stat().st_size
    texts = sum(len(json.dumps(result.text)) for result in run.results)
    assert len(run.results) == 10080
    assert whole - empty - texts < 64 * len(run.results) + 200 * 840 + 20_000


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"report.html was not written: Not a directory"):
        written(tmp_path / "file", made_up_run(1, 0.5, prompts=2))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if find_browser() is None:
        pytest.skip("the page is not tried out: no Chromium with chromedriver on this machine")
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def answer(run: Run, number: int, alpha: tuple[float, ...] | None, seed: int = 0) -> Result:
    ids = list(dict.fromkeys(result.id for result in run.results))
    return next(r for r in run.results if (r.id, r.alpha, r.seed) == (ids[number], alpha, seed))


def shown(browser: Browser, what: str = "guided") -> str:
    return str(browser.run(f"return document.getElementById('{what}').textContent"))


def test_the_slider_changes_the_answer(tmp_path: Path, browser: Browser) -> None:
    run = hostile(made_up_run(2, 0.25, prompts=4, seeds=(0, 1)))
    browser.open(written(tmp_path, run))
    assert shown(browser) == answer(run, 0, (0.5, 0.5)).text
    assert shown(browser, "alone") == answer(run, 0, None).text
    browser.press("#slider-0", RIGHT)
    assert shown(browser) == answer(run, 0, (0.75, 0.25)).text
    assert shown(browser, "alone") == answer(run, 0, None).text
    assert browser.text("#chosen") == "α: warmth 0.75, focus 0.25"
    assert browser.run("return document.getElementById('slider-0').ariaValueText") == "warmth 0.75, focus 0.25"
    assert browser.run("return document.querySelector('#strip [aria-pressed=true] .alpha').textContent") == "0.75, 0.25"
    assert browser.run("return document.querySelectorAll('.picture .here').length") == 1
    browser.press("#slider-0", END)
    assert shown(browser) == answer(run, 0, (1.0, 0.0)).text
    assert browser.run("return window.pwned === undefined && document.images.length === 0")
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    assert browser.console() == []


def test_prompts_seeds_cards_and_points_are_chosen(tmp_path: Path, browser: Browser) -> None:
    run = made_up_run(2, 0.25, prompts=4, seeds=(0, 1))
    browser.open(written(tmp_path, run))
    browser.click("#next")
    assert shown(browser) == answer(run, 1, (0.5, 0.5)).text
    browser.run("const s = document.getElementById('seed'); s.value = '1'; s.dispatchEvent(new Event('change'))")
    assert shown(browser) == answer(run, 1, (0.5, 0.5), 1).text
    browser.click("#strip button:first-child")
    assert shown(browser) == answer(run, 1, (0.0, 1.0), 1).text
    browser.click(".points tr[data-point='1'] button")
    assert shown(browser) == answer(run, 1, (0.75, 0.25), 1).text
    browser.run("document.querySelector('.picture [data-point=\"0\"]').dispatchEvent(new MouseEvent('click'))")
    assert shown(browser) == answer(run, 1, (1.0, 0.0), 1).text
    browser.press("#search", "matter 3")
    browser.run("const end = Date.now() + 400; while (Date.now() < end);")
    assert browser.text("#position") == "1 of 1"
    assert shown(browser) == answer(run, 3, (1.0, 0.0), 1).text
    scores = browser.run(
        "return [...document.querySelectorAll('#guided-scores tbody td:nth-child(2)')].map(c => c.textContent)"
    )
    wanted = run.scores[answer(run, 3, (1.0, 0.0), 1).key].values()
    assert [float(score.replace("−", "-")) for score in scores] == pytest.approx(list(wanted), rel=6e-3)
    assert browser.console() == []


def test_more_objectives_have_a_slider_each(tmp_path: Path, browser: Browser) -> None:
    """Each slider reaches both ends; the other weights stay on the grid and follow in proportion."""
    run = made_up_run(3, 0.25, prompts=2)
    browser.open(written(tmp_path, run))
    for which in range(3):
        browser.press(f"#slider-{which}", END)
        alpha = tuple(float(i == which) for i in range(3))
        assert shown(browser) == answer(run, 0, alpha).text
        browser.press(f"#slider-{which}", HOME)
        weights = browser.run("return [...document.querySelectorAll('.slider output')].map(o => Number(o.textContent))")
        assert weights[which] == 0
        assert sorted(weights) == [0, 0.5, 0.5]
        assert shown(browser) == answer(run, 0, tuple(weights)).text
    assert browser.run("return document.querySelectorAll('.picture .here').length") == 4
    assert browser.console() == []


@pytest.mark.parametrize("k", [1, 2, 5])
def test_one_or_many_objectives(tmp_path: Path, browser: Browser, k: int) -> None:
    run = made_up_run(k, 0.5, prompts=2)
    browser.open(written(tmp_path, run))
    assert browser.run("return document.querySelectorAll('#sliders input').length") == {1: 0, 2: 1}.get(k, k)
    assert (
        browser.run("return document.querySelectorAll('#strip button').length")
        == len({r.alpha for r in run.results}) - 1
    )
    for width in (390, 1280):
        browser.size(width, 1000)
        assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.console() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(tmp_path: Path, browser: Browser, scheme: str) -> None:
    """Contrast as WCAG 2 defines it, (L1 + 0.05) / (L2 + 0.05), is at least 4.5 for every colour of text."""
    browser.media(prefers_color_scheme=scheme)
    browser.open(written(tmp_path, made_up_run(2, 0.5, prompts=2)))
    names = ["ink", "soft", "accent", "warn", "good", "paper", "ground", "tint", "warn-tint"]
    style = "const style = getComputedStyle(document.documentElement);"
    found = browser.run(f"{style} return {names}.map(name => style.getPropertyValue('--' + name).trim())")
    colours = dict(zip(names, found, strict=True))

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    pairs = [(text, "paper") for text in ("ink", "soft", "accent", "warn", "good")]
    pairs += [("ink", "ground"), ("soft", "ground"), ("ink", "tint"), ("soft", "tint"), ("accent", "tint")]
    pairs += [("ink", "warn-tint"), ("soft", "warn-tint"), ("warn", "warn-tint")]
    for text, ground in pairs:
        dark, light = sorted((luminance(colours[text]), luminance(colours[ground])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{text} on {ground}"
    browser.media(prefers_color_scheme="light")
