"""Preference pairs of texts that people have rated: two texts of one length, and which of them was rated higher.

The file is a CSV with the columns ``text``, ``is_humor``, ``humor_rating`` and ``offense_rating``, as that of
SemEval-2021 Task 7 (HaHackathon); ratings are means over people. Only texts that were found to be jokes are taken.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import parm_mlx  # noqa: F401  (loads the fast BLAS before mlx)

# isort: split
import numpy as np

from parm_mlx.data.formats import as_row
from parm_mlx.data.pairs import Pair
from parm_mlx.files import resolve
from parm_mlx.mlxlm import load_tokenizer_alone

OBJECTIVES = ("humor", "harmless")


@dataclass(frozen=True)
class RatedText:
    """A text with what people said of it.

    Attributes:
        text: The text.
        size: Its tokens.
        ratings: By objective, higher is better.
    """

    text: str
    size: int
    ratings: dict[str, float]


def read(file: Path, model: str, most: int) -> list[RatedText]:
    """The different jokes of at most ``most`` tokens."""
    tokenizer = load_tokenizer_alone(resolve(model))
    found = {}
    with file.open(encoding="utf-8-sig", newline="") as rows:
        for row in csv.DictReader(rows):
            text = row["text"].strip()
            if row["is_humor"] != "1" or not text:
                continue
            size = len(tokenizer.encode(text, add_special_tokens=False))
            if size <= most:
                ratings = {"humor": float(row["humor_rating"]), "harmless": -float(row["offense_rating"])}
                found[text] = RatedText(text, size, ratings)
    return list(found.values())


def pair(texts: Sequence[RatedText], prompt: str, clear: float, seed: int) -> list[Pair]:
    """Pairs of texts of the same number of tokens, each text in one pair at most.

    Args:
        texts: To draw from.
        prompt: What all of them answer.
        clear: A rating decides where the two are at least so far apart; where none decides, there is no pair.
        seed: Of who meets whom.
    """
    rng, pairs = np.random.default_rng(seed), []
    by_size: dict[int, list[RatedText]] = {}
    for i in rng.permutation(len(texts)):
        by_size.setdefault(texts[i].size, []).append(texts[i])
    for size, same in sorted(by_size.items()):
        for number, both in enumerate(zip(same[::2], same[1::2], strict=False)):
            apart = {name: both[0].ratings[name] - both[1].ratings[name] for name in OBJECTIVES}
            preferred = {name: int(value < 0) for name, value in apart.items() if abs(value) >= clear}
            if preferred:
                pairs.append(Pair(prompt, (both[0].text, both[1].text), preferred, f"{seed}/{size}/{number}"))
    return pairs


def make(
    file: Path, out: Path, *, model: str, prompt: str, tokens: int, held_out: int, rounds: int, clear: float
) -> dict[str, Any]:
    """Writes ``train.jsonl`` and ``test.jsonl``, which have no text in common, and says what is in them.

    Args:
        file: The CSV file.
        out: A new folder.
        model: Its tokenizer counts the tokens.
        prompt: What the texts answer.
        tokens: Most of a text.
        held_out: Texts to hold out; each is in one held-out pair at most.
        rounds: Pairs that a text of training can be in.
        clear: As for :func:`pair`.
    """
    texts = read(file, model, tokens)
    order = np.random.default_rng(0).permutation(len(texts))
    held, trained = ([texts[i] for i in part] for part in (order[:held_out], order[held_out:]))
    test = pair(held, prompt, clear, 0)
    drawn = [each for seed in range(1, rounds + 1) for each in pair(trained, prompt, clear, seed)]
    train = list({frozenset(each.responses): each for each in drawn}.values())
    out.mkdir(parents=True)
    for name, pairs in (("train", train), ("test", test)):
        (out / f"{name}.jsonl").write_text("".join(map(as_row, pairs)), encoding="utf-8")
    ratings = np.array([[text.ratings[name] for name in OBJECTIVES] for text in texts])
    return {
        "objectives": list(OBJECTIVES),
        "texts": len(texts),
        "held_out": len(held),
        "train": len(train),
        "test": len(test),
        "labels": {name: sum(name in each.preferred for each in train) for name in OBJECTIVES},
        "correlation": round(float(np.corrcoef(ratings.T)[0, 1]), 3),
        "tokens": np.percentile([text.size for text in texts], (5, 50, 95)).tolist(),
    }
