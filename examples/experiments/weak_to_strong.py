"""Weak to strong: guides of one base guide another, which they have never seen.

    python examples/experiments/weak_to_strong.py

The bundled PARM (3 million parameters) guides SmolLM2-135M, which is 43 times as large and has another vocabulary; and
SmolLM2's PARM guides SmolLM2 in 3 bits. Each is measured beside the base that the guide was trained on, with the same
questions and random numbers. SmolLM2 is fetched at first use.
"""

import statistics
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import common

# isort: split
import mlx_lm
import numpy as np
from common import markdown
from numpy.typing import NDArray

from parm_mlx.convert.model import Quantization
from parm_mlx.convert.run import Request, convert
from parm_mlx.evaluation.metrics import bootstrap, corner_difference, interval, mip_gain, spearman
from parm_mlx.evaluation.summary import Run, compare
from parm_mlx.files import resolve
from parm_mlx.rewards.builtin import words

SEED = 0
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A guide, the base that it was trained on, and another one.

    Attributes:
        title: In the table.
        parm: Name of the adapter, whose held-out questions are asked.
        own: The name of its backbone.
        other: Name or folder of the other base.
        beta: Of guided decoding.
    """

    title: str
    parm: str
    own: str
    other: str
    beta: float = 1.0


def fewer_bits(out: Path, bits: int, group_size: int) -> None:
    """Writes SmolLM2 with fewer bits: its weights as float32 numbers, quantised again."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain"
        mlx_lm.convert(str(resolve("smollm2")), str(plain), dequantize=True, dtype="float32")
        convert(Request(str(plain), out, quantization=Quantization("affine", bits, group_size)), print)


def scores_of(run: Run) -> tuple[Array, Array]:
    """The preferences (A, k), and raw scores (P, 1 + A, k) of a run: the unguided answers first."""
    alphas = sorted({result.alpha for result in run.results if result.alpha is not None}, reverse=True)
    prompts = sorted({result.id for result in run.results})
    values = [
        [[run.scores[prompt, alpha, SEED][name] for name in run.objectives] for alpha in (None, *alphas)]
        for prompt in prompts
    ]
    return np.array(alphas), np.array(values)


def kept(own: Run, other: Run, samples: int) -> dict[str, Any]:
    """What a guide does to another base, beside what it does to its own; the same questions are drawn for both.

    The unit is one standard deviation of the own base's unguided answers, for both: those of a damaged base may have
    any spread.
    """
    alphas, first = scores_of(own)
    same, second = scores_of(other)
    assert np.array_equal(alphas, same)
    names, unit = own.objectives, first[:, 0].std(axis=0)
    found: dict[str, Any] = {}
    drawn: dict[str, tuple[Array, Array]] = {}
    for which, values in (("own", first), ("other", second)):
        points = values[:, 1:] / unit
        means, sampled = points.mean(axis=0), bootstrap(points, samples, 0)
        corners = corner_difference(alphas, means)
        drawn[which] = corner_difference(alphas, sampled), mip_gain(alphas, sampled)
        found[which] = {
            "unguided": dict(zip(names, values[:, 0].mean(axis=0).tolist(), strict=True)),
            "corners": {name: interval(corners[i], drawn[which][0][:, i]) for i, name in enumerate(names)},
            "gain": interval(mip_gain(alphas, means), drawn[which][1]),
            "spearman": {name: float(spearman(alphas[:, i], means[:, i])) for i, name in enumerate(names)},
            "points": means.tolist(),
        }
    corners, gain = (there / here for there, here in zip(drawn["other"], drawn["own"], strict=True))
    here, there = found["own"], found["other"]
    found["kept"] = {
        "corners": {
            name: interval(there["corners"][name]["value"] / here["corners"][name]["value"], corners[:, i])
            for i, name in enumerate(names)
        },
        "gain": interval(there["gain"]["value"] / here["gain"]["value"], gain),
    }
    return found


def runs_of_four(text: str) -> list[tuple[str, ...]]:
    """The runs of four words of a text."""
    said = words(text)
    return [tuple(said[i : i + 4]) for i in range(len(said) - 3)]


def wording(own: Run, other: Run) -> dict[str, dict[str, float]]:
    """What the answers of the other base consist of, guided and unguided.

    ``repeated`` is the share of pairs of neighbouring words that the answer has had before, ``of_the_guide`` the share
    of runs of four words that guided answers of the guide's own base have too, to whatever question.
    """
    known = {run for result in own.results if result.alpha is not None for run in runs_of_four(result.text)}
    found = {}
    for name, guided in (("unguided", False), ("guided", True)):
        texts = [result.text for result in other.results if (result.alpha is not None) == guided]
        pairs = [list(pairwise(words(text))) for text in texts]
        found[name] = {
            "repeated": statistics.mean(1 - len(set(each)) / max(len(each), 1) for each in pairs),
            "of_the_guide": statistics.mean(
                sum(run in known for run in runs_of_four(text)) / max(len(runs_of_four(text)), 1) for text in texts
            ),
        }
    return found


def shown(found: dict[str, float]) -> str:
    """``value [low, high]``."""
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def share(found: dict[str, float]) -> str:
    """``value [low, high] %``."""
    value, low, high = (round(found[name], 2) + 0.0 for name in ("value", "low", "high"))  # no -0 %
    return f"{value:.0%} [{low:.0%}, {high:.0%}]"


def rows(case: Case, found: dict[str, Any]) -> list[list[str]]:
    """The lines of a case in the table."""
    lines = []
    names = list(found["own"]["unguided"])
    for which, base in (("own", "its own base"), ("other", case.title.partition(" guides ")[2])):
        r = found[which]
        cells = [*(f"{name} {shown(r['corners'][name])}" for name in names)]
        ranks = ", ".join(f"{r['spearman'][name]:.2f}" for name in names)
        unguided = ", ".join(f"{r['unguided'][name]:.2f}" for name in names)
        lines.append([case.title.partition(" guides ")[0], base, *cells, shown(r["gain"]), ranks, unguided])
    r = found["kept"]
    cells = [f"{name} {share(r['corners'][name])}" for name in names]
    lines.append(["", "**kept**", *cells, share(r["gain"]), "", ""])
    return lines


def main() -> None:
    """Makes the base in 3 bits, sweeps, compares and writes the page."""
    experiment = common.begin("weak_to_strong", __doc__)
    damaged = experiment.settings["damaged"]
    coarse = experiment.work / "bases" / f"smollm2-{damaged['bits']}bit"
    experiment.made(coarse, lambda: fewer_bits(coarse, **damaged))
    if experiment.quick:
        return
    cases = {
        "vocabulary": Case("the bundled PARM guides SmolLM2", "bundled", "bundled", "smollm2"),
        "gentle": Case("the same at β = 4 guides SmolLM2", "bundled", "bundled", "smollm2", beta=4.0),
        "bits": Case("SmolLM2's PARM guides SmolLM2 in 3 bits", "smollm2", "smollm2", str(coarse)),
    }
    samples, results, lines, drawn = experiment.settings["sweep"]["bootstrap"], {}, [], {}
    said = []
    for name, case in cases.items():
        own, other = (
            experiment.real(f"w2s-{name}-{which}", model=base, parm=case.parm, beta=case.beta)
            for which, base in (("own", case.own), ("other", case.other))
        )
        results[name] = r = {**kept(own, other, samples), "wording": wording(own, other)}
        lines += rows(case, r)
        shares = [
            r["wording"][which][what] for what in ("of_the_guide", "repeated") for which in ("unguided", "guided")
        ]
        said.append([case.title, *(f"{value:.0%}" for value in shares)])
        drawn[name] = compare([own, other], samples=200)
    picture = drawn["vocabulary"]
    for run, name in zip(picture["runs"], ("on the bundled base", "on SmolLM2"), strict=True):
        run["name"] = name
    experiment.picture(picture)
    heads = ["guide", "base", "corners", "corners", "gain by α", "Spearman", "unguided scores"]
    settings = experiment.settings["real"]
    experiment.publish(
        results,
        table=markdown(heads, lines),
        wording=markdown(["", "words of the guide, unguided", "guided", "repeated, unguided", "guided"], said),
        questions=str(settings["questions"]),
        temp=f"{settings['temp']:g}",
        tokens=str(settings["max_tokens"]),
        samples=f"{samples:,}",
        bits=str(damaged["bits"]),
        group=str(damaged["group_size"]),
        kept_warmth=share(results["vocabulary"]["kept"]["corners"]["warmth"]),
        kept_focus=share(results["vocabulary"]["kept"]["corners"]["focus"]),
        kept_gain=share(results["vocabulary"]["kept"]["gain"]),
        gentle_gain=share(results["gentle"]["kept"]["gain"]),
        bits_cheer=share(results["bits"]["kept"]["corners"]["cheer"]),
        bits_formality=share(results["bits"]["kept"]["corners"]["formality"]),
        bits_gain=share(results["bits"]["kept"]["gain"]),
    )


if __name__ == "__main__":
    main()
