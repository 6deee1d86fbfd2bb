"""Writes the model card of the SmolLM2 PARM, of the answers of its evaluation and checks.json.

    python examples/smollm2/card.py --run work/run
    python examples/smollm2/card.py

Answers are kept in answers.tar.xz; without ``--run`` the card is made of those.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import parm_mlx  # noqa: F401  (loads the fast BLAS before mlx)
from parm_mlx.answers.store import read_run

# isort: split
sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))

import archive
from checks import SHOWN, by_alpha

from parm_mlx.named import MODELS

HERE = Path(__file__).parent
CHECKS, KEPT, TEMPLATE = HERE / "checks.json", HERE / "answers.tar.xz", HERE / "card_template.md"
CARD = MODELS / "smollm2-parm" / "README.md"
QUALITIES = {
    "ended": "answers that ended",
    "words": "words",
    "relevance": "relevance to the question",
    "copied_4_grams": "runs of four words copied from it",
    "distinct_2": "distinct-2",
    "perplexity": "perplexity under the base",
}


def table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def steering(report: dict[str, Any]) -> str:
    """Returns the mean scores at every weight, and the distance of the corners."""
    found = {name: value for name, value in report["steering"].items() if isinstance(value, dict)}
    weights = list(next(iter(found.values()))["means"])
    header = ["weight", *sorted(weights, key=float), "base", "Spearman", "corners apart, in sd of the base"]
    rows = []
    for name, value in found.items():
        means = [f"{value['means'][weight]:.2f}" for weight in sorted(weights, key=float)]
        low, high = value["corners"]["interval"]
        apart = f"{value['corners']['distance']:.2f} ({low:.2f} to {high:.2f})"
        rows.append([name, *means, f"{value['base']:.2f}", f"{value['spearman']:.3f}", apart])
    return table(header, rows)


def quality(report: dict[str, Any]) -> str:
    """Returns what numbers tell of the answers' quality, for the base and five preferences."""
    found = report["quality"]
    columns = ["base", *(name for name in ("1,0", "0.7,0.3", "0.5,0.5", "0.3,0.7", "0,1") if name in found)]
    rows = [
        [title, *(f"{found[column][name]:.3g}" if name in found[column] else "" for column in columns)]
        for name, title in QUALITIES.items()
    ]
    return table(["", *columns], rows)


def answers(run: Path) -> str:
    """Returns every fifteenth question with the answers of the base and of the corners, as they came."""
    _, results, _ = read_run(run)
    found = by_alpha(list(results.values()))
    corners = sorted((alpha for alpha in found if alpha is not None and max(alpha) == 1), reverse=True)
    lines = []
    for i in range(0, len(found[None]), SHOWN):
        lines.append(f"**{i}. {found[None][i].prompt}**\n")
        for alpha in (None, *corners):
            name = "base" if alpha is None else "cheer" if alpha[0] == 1 else "formality"
            text = " ".join(found[alpha][i].text.split()).replace("*", "\\*").replace("_", "\\_")
            lines.append(f"- {name}: {text}{'' if found[alpha][i].finish_reason == 'stop' else ' …'}")
        lines.append("")
    return "\n".join(lines).rstrip()


def main() -> None:
    """Keeps the answers, and writes the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of the evaluation (default: the answers that are kept)")
    parser.add_argument("--out", type=Path, default=CARD, help="file to write (default: the card of the package)")
    options = parser.parse_args()
    if options.run:
        archive.pack(options.run, map(Path, archive.RUN_FILES), KEPT)
    report = json.loads(CHECKS.read_text(encoding="utf-8"))
    text = TEMPLATE.read_text(encoding="utf-8").format(
        questions=report["questions"],
        correlation=report["steering"]["correlation_on_base_answers"],
        steering=steering(report),
        quality=quality(report),
        answers=answers(archive.unpack(KEPT)),
    )
    options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
