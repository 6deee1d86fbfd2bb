"""Writes the tables of experiments: examples/experiments/README.md, and the part of README.md between its two marks.

    python docs/make_results.py

They are made of the JSON files that the experiments leave beside their pages.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "examples" / "experiments"
BEGIN, END = "<!-- results: made by docs/make_results.py -->", "<!-- end of results -->"
PAGE = """# Experiments

What can be expected of a PARM, and which settings matter. The first three rows are of a real model; where a page does
not say otherwise, the others are of the bundled world, with three seeds each. Every experiment is one command; it goes
on where it was stopped, and shares what is expensive with the others in `build/experiments`. Its answers and their
scores are kept in `answers`, of which

    python examples/experiments/rebuild.py

makes all pages and both tables again in a minute, without training or generating.

{table}

± is half of a 95 % interval. Scores are in standard deviations of the unguided answers. Hypervolumes of different
experiments have different reference points; the pages give them.

## Intervals

A mean over seeds would be another with other seeds, and with other questions, which all runs of an experiment share.
The half width is the root of the sum of two squares: that over the seeds, by Student's t (so wide with three), and that
over the questions, by the jackknife in 20 groups of two, which holds for hypervolumes, ratios and differences alike
(`intervals.py`; for Spearman's ranks, which change by leaps, it is rough). Differences are of the same seed and the
same questions. Where a page has one run and no seeds, its intervals are over the questions.

The first experiment in a work folder samples the pairs in one go, nine minutes on two cores. `settings.yaml` holds
what all share, the YAML file of an experiment what is its own. A quick trial of any:
`--pairs 200 --seeds 1 --iters 2 --questions 2`. Pages and pictures are made by the scripts from `templates/`; what was
found is written there by hand, after reading the numbers.
"""


def real_model() -> str:
    """The first row: what the card of SmolLM2's PARM says."""
    found = json.loads((ROOT / "examples" / "smollm2" / "checks.json").read_text(encoding="utf-8"))
    parts = []
    for name in ("cheer", "formality"):
        r = found["steering"][name]
        low, high = r["corners"]["interval"]
        corners = f"{r['corners']['distance']:.1f} sd [{low:.1f}, {high:.1f}]"
        parts.append(f"{name} Spearman {r['spearman']:.2f}, corners {corners}")
    return f"{'; '.join(parts)} ({found['questions']} questions × 11 preferences)"


def number(found: Mapping[str, float], digits: int = 2) -> str:
    """``mean ± half``; of one seed the number alone."""
    half = found["high"] - found["value"]
    return f"{found['value']:.{digits}f}" + (f" ± {half:.{digits}f}" if half else "")


def adapters(results: Any) -> str:
    """Systems against each other."""
    return "; ".join(f"{name} {number(r['hv'])} / {number(r['mip'])}" for name, r in results["systems"].items())


def weak_to_strong(results: Any) -> str:
    """What is kept on another base than the guide's own."""

    def kept(found: Any) -> str:
        value, low, high = (round(found[name], 2) + 0.0 for name in ("value", "low", "high"))
        return f"{value:.0%} [{low:.0%}, {high:.0%}]"

    words = results["vocabulary"]["wording"]["guided"]["of_the_guide"]
    cases = {
        f"SmolLM2 by a guide of 1/43 of its size, with {words:.0%} of the words the guide's": "vocabulary",
        "the same at β = 4": "gentle",
        "SmolLM2 in 3 bits by its own": "bits",
    }
    return "gain by α kept: " + "; ".join(f"{name} {kept(results[key]['kept']['gain'])}" for name, key in cases.items())


def vocabularies(results: Any) -> str:
    """The gain by α across vocabularies, and with the own one."""

    def gain(found: Any) -> str:
        return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"

    return "gain by α: " + "; ".join(f"{pair} PARM {gain(r['mip_gain'])}" for pair, r in results.items())


def real_preferences(results: Any) -> str:
    """Accuracy on held-out pairs: of each objective at its own corner, beside the base."""
    parts = []
    for name, corner in zip(results["data"]["objectives"], (-1, 0), strict=True):
        r = results[name]
        own, base = r["alphas"][corner], r["base"]["value"]
        parts.append(f"{name} {own['value']:.0%} [{own['low']:.0%}, {own['high']:.0%}], base alone {base:.0%}")
    return "right at the own corner: " + "; ".join(parts)


def interpolation(results: Any) -> str:
    """Jumps and clusters."""
    runs = results["runs"]
    jumps = ", ".join(str(len(run["jumps"])) for run in runs)
    clusters = ", ".join(str(len(run["clusters"])) for run in runs)
    real = results["smollm2"]
    counts = f"jumps {len(real['jumps'])}, clusters {len(real['clusters'])}"
    return f"jumps {jumps}; clusters {clusters} (by seed, of 20 steps); SmolLM2: {counts}"


def initialisation(results: Any) -> str:
    """The best and the worst start."""
    variants = results["variants"]
    ordered = sorted(variants, key=lambda name: variants[name]["hv"]["value"])
    named = {"default": "default", "lowest": ordered[0], "highest": ordered[-1]}
    return "HV " + "; ".join(
        f"{what} {number(variants[name]['hv'])}" + ("" if what == name else f" ({name})")
        for what, name in named.items()
    )


def cross_domain(results: Any) -> str:
    """How far the corner of the third objective moved, and what is left of the others."""
    ways = ("longer, before", "longer, agreeing")
    kept = {way: min(found["value"] for found in results[way]["kept"].values()) for way in ways}
    moved = {way: ", ".join(f"{value:.1f}" for value in results[way]["moved_by_seed"]) for way in ways}
    found = "; ".join(f"{way} {moved[way]} sd, the others keep at least {kept[way]:.0f} % in the mean" for way in ways)
    return f"its corner moves in 50 steps, by seed: {found}"


def many_objectives(results: Any) -> str:
    """Mean Spearman of the recipes that were tried at several k."""
    several = {name: of for name, of in results["recipes"].items() if len(of) > 1}
    ks = max(several.values(), key=len)
    found = "; ".join(f"{name} {', '.join(number(r['spearman']) for r in of.values())}" for name, of in several.items())
    return f"mean Spearman at k = {', '.join(ks)}: {found}"


def nonconvex(results: Any) -> str:
    """True points recovered."""
    toy = results["constructed"]
    total = len(toy["linear"]["recovered"][0])
    counts = {kind: toy[kind]["count"]["value"] for kind in ("linear", "tchebycheff")}
    return (
        f"of {total} true points linear recovers {counts['linear']:.1f}, smooth Tchebycheff {counts['tchebycheff']:.1f}"
    )


def design(results: Any) -> str:
    """Changes of the default that make a difference of which 0 is not in the interval."""
    changed = [r for label, r in results["variants"].items() if label != "default"]
    parts = []
    for metric, shown in (("hv", "HV"), ("mip_gain", "gain by α")):
        less = {r["name"]: r["less_default"][metric] for r in changed}
        told = [f"{name}: {number(d)}" for name, d in less.items() if d["low"] > 0 or d["high"] < 0]
        parts.append(f"{shown} less the default's: {', '.join(told)} ({len(less) - len(told)} others not told apart)")
    return "; ".join(parts)


def costs(results: Any) -> str:
    """Time for a token with the most objectives, on each base."""
    k = max(row["k"] for systems in results["bases"].values() for row in systems)
    times = {
        base: {row["system"]: f"{row['of_base']['value']:.1f}" for row in systems if row["k"] == k}
        for base, systems in results["bases"].items()
    }
    systems = " / ".join(name.replace("PARM, ", "PARM with ") for name in next(iter(times.values())))
    each = "; ".join(f"{base} {' / '.join(found.values())}" for base, found in times.items())
    return f"time per token at k = {k}, times the base's, {systems}: {each}"


@dataclass(frozen=True)
class Row:
    """A line of the tables.

    Attributes:
        question: What the page asks.
        answer: In a few words, after reading the page.
        measured: The figures, of the page's JSON file.
    """

    question: str
    answer: str
    measured: Callable[[Any], str]


ROWS = {
    "jokes": Row(
        "Does it learn how people rate jokes?",
        "Yes, from 4,076 pairs: both objectives, and α weighs harmlessness",
        real_preferences,
    ),
    "real_preferences": Row(
        "Does it learn what people prefer (HH-RLHF)?", "Not from 865 pairs of uneven length", real_preferences
    ),
    "adapters": Row(
        "Which adapter, at equal size? (HV / MIP)",
        "PBLoRA before LoRA, SVD-LoRA and MoSLoRA; GenARM cannot be told apart",
        adapters,
    ),
    "baselines": Row(
        "A PARM or the paper's baselines? (HV / MIP)", "Beside the base they cannot be told apart", adapters
    ),
    "weak_to_strong": Row(
        "Does a PARM guide a base that it was not trained on?",
        "Yes; a far smaller one by putting in its own words",
        weak_to_strong,
    ),
    "vocabularies": Row(
        "Does a PARM guide a base of another vocabulary?", "Yes, with less of its effect", vocabularies
    ),
    "interpolation": Row("Do answers move evenly with α?", "In order and without jumps", interpolation),
    "initialisation": Row(
        "Do start and tying of A, B, W1, W2 matter?", "Mainly: the rows of W2 must begin different", initialisation
    ),
    "design": Row(
        "Do r1 : r2, β, depth and Dirichlet p matter?", "β does; p above 0.5 and the first blocks alone harm", design
    ),
    "cross_domain": Row("Can a trained PARM learn a further objective?", "Yes, in 50 steps", cross_domain),
    "many_objectives": Row(
        "Up to how many objectives?",
        "Two well, four and eight with a recipe of their own, twelve in part",
        many_objectives,
    ),
    "nonconvex": Row("A front that is not convex?", "With smooth Tchebycheff", nonconvex),
    "costs": Row("What do k objectives cost? (one PARM, k ARMs)", "One PARM the same for any k", costs),
}


def table(page: Path) -> str:
    """One line for the real model and for each experiment that was measured, with links from the folder of a page."""

    def line(question: str, target: Path, answer: str, measured: str) -> str:
        return f"| [{question}]({Path(os.path.relpath(target, page.parent)).as_posix()}) | {answer} | {measured} |"

    card = ROOT / "parm_mlx" / "models" / "smollm2-parm" / "README.md"
    lines = ["| question | answer | measured |", "|---|---|---|"]
    lines.append(line("Does it steer a real model, SmolLM2-135M-Instruct?", card, "Yes", real_model()))
    for name, row in ROWS.items():
        if (found := EXPERIMENTS / f"{name}.json").exists():
            results = json.loads(found.read_text(encoding="utf-8"))
            lines.append(line(row.question, EXPERIMENTS / f"{name}.md", row.answer, row.measured(results)))
    return "\n".join(lines)


def pages(readme: str) -> dict[Path, str]:
    """The two files, given README.md as it is."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    first, second = ROOT / "README.md", EXPERIMENTS / "README.md"
    inside = f"{BEGIN}\n{table(first)}\n{END}"
    return {first: before + inside + after, second: PAGE.format(table=table(second))}


def main() -> None:
    """Writes them."""
    for path, text in pages((ROOT / "README.md").read_text(encoding="utf-8")).items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
