"""The report: one HTML file without external resources: figures, picture, and answers at every α under a slider."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from parm_mlx.answers.store import Key, Result
from parm_mlx.evaluation.report.formatting import caption, count, fidelity, number, runs_of, timing, unit
from parm_mlx.evaluation.report.plots import attempt, draw, inline_svg
from parm_mlx.files import disk_errors
from parm_mlx.preference import Alpha, format_alpha

METRICS_FILE, PAGE_FILE = "metrics.json", "report.html"
Summary = Mapping[str, Any]
AllScores = Mapping[Key, Mapping[str, float]]
_HERE = Path(__file__).parent


def write_report(
    summary: Summary, results: Sequence[Result], scores: AllScores, out: Path, note: Callable[[str], None]
) -> None:
    """Writes ``metrics.json``, the pictures and the page into a folder; ``note`` receives why there is no picture."""
    with disk_errors(out):
        text = json.dumps(summary, indent=1, ensure_ascii=False)
        (out / METRICS_FILE).write_text(text + "\n", encoding="utf-8")
    write_page(summary, results, scores, out, note)


def write_page(
    summary: Summary,
    results: Sequence[Result],
    scores: AllScores,
    out: Path,
    note: Callable[[str], None] = lambda message: None,
) -> Path:
    """Writes ``report.html`` and the pictures; returns the page. A comparison (of ``metrics.json``) has no answers.

    Raises:
        RunError: The page cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    run = summary if summary["kind"] == "run" else None
    environment = Environment(autoescape=True, undefined=StrictUndefined, loader=FileSystemLoader(_HERE))
    environment.globals |= {"number": number, "alpha": format_alpha}
    svg, no_picture = attempt(lambda: inline_svg(draw(summary, out)))
    if no_picture:
        note(no_picture)
    html = environment.get_template("page.html").render(
        summary=summary,
        run=run,
        title=_title(summary),
        facts=_facts(summary),
        unit=unit(summary),
        caption=caption(summary),
        confidence=summary["confidence"]["text"],
        time=timing(run["time"]) if run else "",
        fidelity=fidelity(run.get("fidelity")) if run else "",
        svg=svg,
        no_picture=no_picture,
        data=embed(_answers(run, results, scores)) if run and results else "",
        css=(_HERE / "page.css").read_text(encoding="utf-8"),
        js=(_HERE / "page.js").read_text(encoding="utf-8"),
    )
    page = out / PAGE_FILE
    with disk_errors(page):
        page.write_bytes(html.encode("utf-8", "replace"))
    return page


def embed(value: Any) -> str:
    """Returns JSON that is safe inside a ``<script>`` element, whatever texts it holds.

    ``<``, ``>``, ``&`` and all characters outside ASCII are escaped, so that nothing ends the element, opens a comment
    or is a line end to JavaScript.
    """
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _answers(run: Summary, results: Sequence[Result], scores: AllScores) -> dict[str, Any]:
    """Returns the data of the page's script; page.js describes them."""
    alphas = [tuple(point["alpha"]) for point in run["points"]]
    rewards, seeds = list(run["rewards"]), list(run["seeds"])
    columns: dict[Alpha | None, int] = {None: 0, **{alpha: 1 + index for index, alpha in enumerate(alphas)}}
    prompts: dict[str, Any] = {}
    answers: dict[str, list[list[Any]]] = {}
    for result in results:
        if result.id not in prompts:
            prompts[result.id] = {"id": result.id, "content": result.prompt}
            answers[result.id] = [[None] * len(columns) for _ in seeds]
        found = [_rounded(scores[result.key][name]) for name in rewards]
        answer = [result.text, result.tokens, int(result.finish_reason != "length"), found]
        answers[result.id][seeds.index(result.seed)][columns[result.alpha]] = answer
    return {
        "objectives": run["objectives"],
        "rewards": rewards,
        "alphas": alphas,
        "seeds": seeds,
        "means": [[_rounded(point["raw"][name]) for name in rewards] for point in [run["unguided"], *run["points"]]],
        "first": min(range(len(alphas)), key=lambda index: sum(w**2 for w in alphas[index])),  # the most even α
        "prompts": list(prompts.values()),
        "answers": list(answers.values()),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def _title(summary: Summary) -> str:
    names = [str(run["name"]) for run in runs_of(summary)]
    return " and ".join(names) if len(names) <= 3 else f"{len(names)} runs"


def _facts(summary: Summary) -> str:
    objectives = ", ".join(summary["objectives"])
    if summary["kind"] == "comparison":
        return f"{count(len(summary['runs']), 'run')} compared · objectives {objectives}"
    size = (count(summary["prompts"], "prompt"), f"{len(summary['points'])} α", count(len(summary["seeds"]), "seed"))
    return f"objectives {objectives} · {' × '.join(size)}"
