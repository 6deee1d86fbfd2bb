"""Preference pairs of HH-RLHF with human labels, divided so that held-out pairs share no first question with training.

    python examples/experiments/hh_rlhf.py hh-rlhf --out pairs
    python examples/experiments/hh_rlhf.py Anthropic/hh-rlhf:harmless-base,helpful-base --out pairs

A checkout of the git repository holds pairs only where Git LFS has fetched them. Files that are pointers are named and
left out. Each folder is an objective, ``harmless-base`` that of ``harmless``. Where there is one objective alone, a
scorer labels the same responses for a second one, so that there is something to trade.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import parm_mlx  # noqa: F401  (loads the fast BLAS before mlx)

# isort: split
import numpy as np

from parm_mlx.data.dataset import disagreement, merge, read_dataset
from parm_mlx.data.formats import as_row
from parm_mlx.data.pairs import Pair
from parm_mlx.data.sources import DataFile, LocalFile, find_files
from parm_mlx.data.tokenize import tokenize_pairs
from parm_mlx.files import resolve
from parm_mlx.guidance.templates import as_messages
from parm_mlx.mlxlm import TokenizerWrapper, load_tokenizer_alone
from parm_mlx.rewards.registry import load_rewards

GZIP = b"\x1f\x8b"
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Found:
    """What a source holds.

    Attributes:
        files: Those with pairs.
        missing: The names of files that are pointers to pairs elsewhere.
    """

    files: list[DataFile]
    missing: list[str]


def find(source: str) -> Found:
    """Finds the pairs of a folder or of a data set on the hub; every folder in it is an objective."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return Found([_named(file, file.objective or "") for file in find_files(source)], [])
    files: list[DataFile] = []
    missing = []
    for path in sorted(folder.glob("*/*.jsonl.gz")):
        name, split = path.relative_to(folder).as_posix(), path.name.partition(".")[0]
        if split not in SPLITS:
            continue
        with path.open("rb") as file:
            is_data = file.read(len(GZIP)) == GZIP
        if is_data:
            files.append(_named(LocalFile(name, split, None, path), path.parent.name))
        else:
            missing.append(name)
    return Found(files, missing)


def _named(file: DataFile, folder: str) -> DataFile:
    return replace(file, objective=folder.partition("-")[0] or None)


def read(source: str, files: Sequence[DataFile]) -> dict[str, list[Pair]]:
    """The different pairs of each split that is there, with the labels of all objectives."""
    splits = {}
    for split in SPLITS:
        if of_split := [replace(file, split="train") for file in files if file.split == split]:
            data = read_dataset(source, of_split, skip_bad=True)
            splits[split] = merge(data.splits["train"], data.objectives).labelled
    return splits


def add_labels(pairs: Sequence[Pair], name: str, spec: str) -> list[Pair]:
    """The pairs with labels of a scorer beside those that they have; equal scores are no label."""
    (reward,) = load_rewards([f"{name}={spec}"]).values()
    prompts = [pair.prompt for pair in pairs for _ in pair.responses]
    scores = np.array(reward(prompts, [response for pair in pairs for response in pair.responses])).reshape(-1, 2)
    return [
        pair if first == second else replace(pair, preferred={**pair.preferred, name: int(second > first)})
        for pair, (first, second) in zip(pairs, scores.tolist(), strict=True)
    ]


def first_question(pair: Pair) -> str:
    """What a conversation begins with; conversations that begin alike are of one person about one thing."""
    return str(as_messages(pair.prompt)[0]["content"]).strip().lower()


def divide(splits: dict[str, list[Pair]], count: int, most: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on, at most ``most``, and at least ``count`` held-out ones that share no first question with them.

    Held-out pairs are those of the test split; where there is one split alone, it is divided.
    """
    rng = np.random.default_rng(seed)
    train, test = splits.get("train", []), splits.get("test", [])
    train, test = train or test, test or train
    by_question: dict[str, list[Pair]] = {}
    for pair in test:
        by_question.setdefault(first_question(pair), []).append(pair)
    questions, held = list(by_question), list[Pair]()
    for i in rng.permutation(len(questions)):
        if len(held) >= count:
            break
        held += by_question[questions[i]]
    away = {first_question(pair) for pair in held}
    left = [pair for pair in train if first_question(pair) not in away]
    return [left[i] for i in rng.permutation(len(left))[:most]], held


def fitting(pairs: Sequence[Pair], tokenizer: TokenizerWrapper, limit: int) -> list[Pair]:
    """The pairs of at most ``limit`` tokens, prompt and response together."""
    kept, _ = tokenize_pairs(tokenizer, pairs, (), limit, skip_bad=True)
    where = {pair.where for pair in kept}
    return [pair for pair in pairs if pair.where in where]


def make(
    source: str, out: Path, *, model: str, tokens: int, held_out: int, most: int, scorer: str, seed: int = 0
) -> dict[str, Any]:
    """Writes ``train.jsonl`` and ``test.jsonl``, and says what is in them.

    Args:
        source: A folder or a data set on the hub.
        out: A new folder.
        model: Its tokenizer counts the tokens.
        tokens: Most of a conversation.
        held_out: Pairs to hold out, at least.
        most: Most pairs to train on.
        scorer: Of the second objective, where there is one alone.
        seed: Of the division.

    Returns:
        Plain values: the objectives, the files with their SHA-256, the pairs of each kind.
    """
    found = find(source)
    if not found.files:
        hint = f"only pointers of Git LFS: {', '.join(found.missing)}" if found.missing else "no folder of pairs"
        raise SystemExit(f"error: {source} holds no pairs of HH-RLHF: {hint}")
    splits = read(source, found.files)
    read_pairs = sum(map(len, splits.values()))
    tokenizer = load_tokenizer_alone(resolve(model))
    splits = {split: fitting(pairs, tokenizer, tokens) for split, pairs in splits.items()}
    human = list(dict.fromkeys(name for pairs in splits.values() for pair in pairs for name in pair.preferred))
    objectives = human
    if len(human) == 1:
        objectives = [*human, scorer]
        splits = {split: add_labels(pairs, scorer, f"builtin:{scorer}") for split, pairs in splits.items()}
    train, held = divide(splits, held_out, most, seed)
    out.mkdir(parents=True)
    for name, pairs in (("train", train), ("test", held)):
        (out / f"{name}.jsonl").write_text("".join(map(as_row, pairs)), encoding="utf-8")
    every = [*train, *held]
    return {
        "objectives": objectives,
        "human": human,
        "files": {file.name: file.identity() for file in found.files},
        "missing": found.missing,
        "read": read_pairs,
        "fitting": sum(map(len, splits.values())),
        "train": len(train),
        "test": len(held),
        "first_questions": {
            name: len({first_question(pair) for pair in pairs}) for name, pairs in (("train", train), ("test", held))
        },
        "labels": {name: sum(name in pair.preferred for pair in every) for name in objectives},
        "disagreement": {" ".join(names): list(counts) for names, counts in disagreement(every, objectives).items()},
    }


def main() -> None:
    """Makes the pairs of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder of HH-RLHF, or owner/name:folder,folder of the hub")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train.jsonl and test.jsonl")
    parser.add_argument("--model", default="smollm2", help="whose tokenizer counts (default: smollm2)")
    parser.add_argument("--tokens", type=int, default=160, help="most tokens of a conversation (default: 160)")
    parser.add_argument("--held-out", type=int, default=400, help="held-out pairs, at least (default: 400)")
    parser.add_argument("--most", type=int, default=4000, help="most pairs to train on (default: 4000)")
    parser.add_argument("--scorer", default="detail", help="second objective where there is one alone")
    args = vars(parser.parse_args())
    print(json.dumps(make(args.pop("source"), args.pop("out"), **args), indent=1))


if __name__ == "__main__":
    main()
