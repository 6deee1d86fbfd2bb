"""Pairs of HH-RLHF: what a folder holds, how it is divided, and how a PARM is measured on pairs; and weak to strong."""

import gzip
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from parm_mlx.answers.store import Result
from parm_mlx.data.pairs import Pair
from parm_mlx.data.tokenize import tokenize_pair
from parm_mlx.evaluation.summary import Run
from parm_mlx.guidance.loading import load_base, load_guide
from parm_mlx.named import BUNDLED_PARM


def transcript(question: str, answer: str) -> str:
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


def write(file: Path, questions: list[str]) -> None:
    rows = [
        {
            "chosen": transcript(question, "Tins, lids, rims."),
            "rejected": transcript(question, "It is what it is it is."),
        }
        for question in questions
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout without Git LFS: one file of pairs, in which two conversations begin alike, and a pointer."""
    questions = [f"How do I open tin {i}?" for i in range(8)]
    more = [f"{questions[0]}\n\nAssistant: Which?\n\nHuman: That one."]
    write(tmp_path / "hh" / "harmless-base" / "test.jsonl.gz", questions + more)
    pointer = tmp_path / "hh" / "helpful-base" / "train.jsonl.gz"
    pointer.parent.mkdir()
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    return tmp_path / "hh"


def test_pointers_are_named_and_the_only_objective_gets_a_second_one(
    scripts: Any, folder: Path, tmp_path: Path
) -> None:
    about = scripts.hh_rlhf.make(
        str(folder), tmp_path / "pairs", model="bundled", tokens=100, held_out=3, most=4, scorer="focus"
    )
    assert about["missing"] == ["helpful-base/train.jsonl.gz"]
    assert about["objectives"] == ["harmless", "focus"]
    assert about["human"] == ["harmless"]
    assert (about["read"], about["fitting"]) == (9, 9)
    assert about["train"] == 4
    assert about["test"] in (3, 4)  # the two that begin alike stay together
    assert about["disagreement"] == {"harmless focus": [about["train"] + about["test"], 0]}
    rows = [json.loads(row) for row in (tmp_path / "pairs" / "train.jsonl").read_text().splitlines()]
    assert [row["preferred"] for row in rows] == [{"harmless": 0, "focus": 0}] * 4


def test_long_conversations_are_left_out(scripts: Any, folder: Path, tmp_path: Path) -> None:
    write(folder / "harmless-base" / "train.jsonl.gz", ["How? " * 300, "Why?", "What?"])
    about = scripts.hh_rlhf.make(
        str(folder), tmp_path / "pairs", model="bundled", tokens=100, held_out=9, most=9, scorer="focus"
    )
    assert (about["read"], about["fitting"], about["train"], about["test"]) == (12, 11, 2, 9)


def test_two_objectives_need_no_scorer(scripts: Any, folder: Path, tmp_path: Path) -> None:
    write(folder / "helpful-base" / "train.jsonl.gz", ["How do I open tin 1?", "Who are you?"])
    about = scripts.hh_rlhf.make(
        str(folder), tmp_path / "pairs", model="bundled", tokens=100, held_out=9, most=9, scorer="focus"
    )
    assert about["objectives"] == about["human"] == ["helpful", "harmless"]
    assert (about["train"], about["test"]) == (1, 9)  # the other question is held out


def test_a_folder_of_pointers_alone_is_an_error(scripts: Any, folder: Path) -> None:
    (folder / "harmless-base" / "test.jsonl.gz").unlink()
    with pytest.raises(SystemExit, match=r"only pointers of Git LFS: helpful-base/train\.jsonl\.gz"):
        scripts.hh_rlhf.make(str(folder), folder, model="bundled", tokens=9, held_out=1, most=1, scorer="focus")


@pytest.mark.parametrize("seed", range(5))
def test_held_out_pairs_share_no_first_question_with_training(scripts: Any, seed: int) -> None:
    hh = scripts.hh_rlhf

    def pair(question: str, turns: int) -> Pair:
        later = [{"role": role, "content": f"{i}"} for i in range(turns) for role in ("assistant", "user")]
        return Pair([{"role": "user", "content": question}, *later], ("a", "b"), {"harmless": 0}, f"{question}{turns}")

    pairs = [pair(question, turns) for question in ("A", "a ", "b", "c", "d", "e") for turns in range(2)]
    train, held = hh.divide({"test": pairs}, 3, 100, seed)
    assert len(held) >= 3
    assert not {hh.first_question(p) for p in train} & {hh.first_question(p) for p in held}
    assert {p.where for p in train} | {p.where for p in held} == {p.where for p in pairs}
    assert hh.divide({"test": pairs}, 3, 100, seed) == (train, held)
    few, _ = hh.divide({"train": pairs[:4], "test": pairs[4:]}, 2, 3, seed)
    assert len(few) == 3
    assert {hh.first_question(p) for p in few} == {"a"}


def test_leads_are_differences_of_log_probabilities(scripts: Any, tmp_path: Path) -> None:
    texts = ["I am so glad you asked! Cut the tin open.", "Cut the tin along its rim."]
    rows = [
        {"prompt": f"How do I open {what}?", "responses": texts, "preferred": {"warmth": 0, "focus": 1}}
        for what in ("a tin", "an old and rusty tin")
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    alphas = [(0.0, 1.0), (0.25, 0.75)]
    found = scripts.judging.leads(BUNDLED_PARM, "bundled", tmp_path, alphas, 200, scripts.hh_rlhf.first_question)
    assert found["preferred"] == [[0, 1], [0, 1]]
    assert found["group"] == [0, 1]
    assert found["longer"] == [0, 0]

    (base, _), (guide, tokenizer) = load_base("bundled"), load_guide("bundled", "bundled")
    for row, leads in zip(rows, found["leads"], strict=True):
        pair = Pair(row["prompt"], tuple(row["responses"]), row["preferred"], "")
        both = tokenize_pair(tokenizer, pair, guide.objectives).rows
        for lead, alpha in zip(leads, (None, *alphas), strict=True):
            sums = []
            for one in both:
                ids = mx.array([one.ids.tolist()])
                logits = (base(ids) if alpha is None else guide(ids, alpha=list(alpha)))[0, one.start - 1 : -1]
                logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
                sums.append(float(mx.take_along_axis(logprobs, ids[0, one.start :, None], axis=-1).sum()))
            assert lead == pytest.approx(sums[0] - sums[1], abs=5e-3)


def test_accuracies_by_hand(scripts: Any) -> None:
    """Four pairs; the base judges all by its first response, α judges as the objective that has all weight."""
    found = {
        "leads": [[1.0, 1.0, 1.0], [1.0, -1.0, 1.0], [1.0, -1.0, 1.0], [1.0, 1.0, -1.0]],
        "preferred": [[0, 0], [0, 1], [0, 1], [1, -1]],
        "group": [0, 1, 1, 2],
        "longer": [0, 1, -1, 1],
    }
    results = scripts.judging.measure([found], ("harmless", "focus"), 500)
    harmless, focus = results["harmless"], results["focus"]
    assert harmless["pairs"] == 4
    assert harmless["base"]["value"] == 0.75
    assert [row["value"] for row in harmless["alphas"]] == [0.25, 1.0]
    assert harmless["corner_less_base"]["value"] == 0.25
    assert harmless["corner_less_other"]["value"] == 0.75
    assert harmless["longer_is_preferred"]["value"] == pytest.approx(2 / 3)
    assert focus["pairs"] == 3
    assert focus["base"]["value"] == pytest.approx(1 / 3)
    assert [row["value"] for row in focus["alphas"]] == pytest.approx([1.0, 1 / 3])
    assert focus["corner_less_other"]["value"] == pytest.approx(2 / 3)
    differ = results["where_they_differ"]
    assert (differ["pairs"], differ["of"]) == (2, 3)
    assert [row["value"] for row in differ["alphas"]] == [0.0, 1.0]
    assert differ["corners"]["value"] == 1.0


def test_pairs_of_one_first_question_are_drawn_together(scripts: Any) -> None:
    """Twelve pairs of three questions, one of which is right throughout: shares are those of three draws."""
    right, groups = np.repeat([1.0, 0.0, 0.0], 4)[:, None], np.repeat([0, 1, 2], 4).tolist()
    found = scripts.judging.Shares(right[None], np.ones(12), groups, 2000)
    assert found.by_seed.tolist() == [[pytest.approx(1 / 3)]]
    assert set(np.round(found.drawn[:, 0] * 3, 6)) == {0.0, 1.0, 2.0, 3.0}
    assert found.drawn.mean() == pytest.approx(1 / 3, abs=0.03)


def test_shares_of_several_seeds_vary_by_seeds_and_by_pairs(scripts: Any) -> None:
    """Shares of 1/2, 1/2, 1: where all pairs are of one group only the seeds vary them, by t(3) s / √3."""
    holds = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 1, 1]])[:, :, None]
    alone = scripts.judging.Shares(holds, np.ones(4), [0, 0, 0, 0], 100).of(0)
    half = 4.303 * np.sqrt(1 / 12) / np.sqrt(3)
    assert alone["value"] == pytest.approx(2 / 3)
    assert (alone["low"], alone["high"]) == (pytest.approx(2 / 3 - half), pytest.approx(2 / 3 + half))
    same = scripts.judging.Shares(holds[[0, 0, 0]], np.ones(4), [0, 1, 2, 3], 2000).of(0)
    assert same == scripts.judging.Shares(holds[:1], np.ones(4), [0, 1, 2, 3], 2000).of(0)
    both = scripts.judging.Shares(holds, np.ones(4), [0, 1, 2, 3], 2000).of(0)
    assert both["low"] < alone["low"]


def test_where_all_pairs_are_of_even_length_there_is_no_longer_response(scripts: Any) -> None:
    found = {"leads": [[1.0, 1.0, -1.0]], "preferred": [[0, 1]], "group": [0], "longer": [-1]}
    results = scripts.judging.measure([found], ("humor", "harmless"), 100)
    assert "longer" not in results
    assert "longer_is_preferred" not in results["humor"]
    assert results["harmless"]["base"]["value"] == 0


RATED = """text,is_humor,humor_rating,offense_rating
A b c,1,3.0,0.0
D e f,1,2.0,1.0
G h i,1,2.6,0.2
J k l,1,2.5,0.3
M n o p q r s t u v w x y z,1,1.0,1.0
No joke here,0,,2.0
"""


def test_two_parms_are_compared_at_the_own_corners(scripts: Any) -> None:
    """α = (0, 1) and (1, 0): the first PARM is right at both corners of both pairs, the second one nowhere."""
    about = {"preferred": [[0, 1], [0, 1]], "group": [0, 1], "longer": [-1, -1]}
    first = about | {"leads": [[0.0, -2.0, 2.0], [0.0, -1.0, 1.0]]}
    second = about | {"leads": [[0.0, 1.0, -1.0], [0.0, 0.5, -0.5]]}
    found = scripts.judging.compared(first, second, 200)
    assert found == {name: [{"value": 1.0, "low": 1.0, "high": 1.0}] * 2 for name in ("right", "raised")} | {"moved": 2}
    same = scripts.judging.compared(first, first, 200)
    assert [each["value"] for name in ("right", "raised") for each in same[name]] == [0, 0, 0, 0]
    assert same["moved"] == 1


def test_texts_of_one_length_are_paired_by_what_people_said(scripts: Any, tmp_path: Path) -> None:
    (tmp_path / "rated.csv").write_text(RATED)
    read = scripts.rated_texts.read(tmp_path / "rated.csv", "bundled", 100)
    assert [text.text for text in read] == ["A b c", "D e f", "G h i", "J k l", "M n o p q r s t u v w x y z"]
    assert read[1].ratings == {"humor": 2.0, "harmless": -1.0}
    assert scripts.rated_texts.read(tmp_path / "rated.csv", "bundled", 1) == []

    def rated(text: str, humor: float, harmless: float) -> Any:
        return scripts.rated_texts.RatedText(text, 3, {"humor": humor, "harmless": harmless})

    (found,) = scripts.rated_texts.pair([rated("a", 3.0, -0.2), rated("b", 2.0, 0.0)], "Tell me a joke.", 0.5, 0)
    assert found.preferred == {"humor": found.responses.index("a")}
    (found,) = scripts.rated_texts.pair([rated("a", 3.0, -0.5), rated("b", 2.5, 0.0)], "Tell me a joke.", 0.5, 0)
    assert found.preferred == {"humor": found.responses.index("a"), "harmless": found.responses.index("b")}
    assert scripts.rated_texts.pair([rated("a", 3.0, -0.4), rated("b", 2.6, 0.0)], "Tell me a joke.", 0.5, 0) == []
    other = scripts.rated_texts.RatedText("b", 4, {"humor": 0.0, "harmless": 0.0})
    assert scripts.rated_texts.pair([rated("a", 3.0, -0.4), other], "Tell me a joke.", 0.5, 0) == []


def test_no_text_of_a_held_out_pair_is_trained_on(scripts: Any, tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrst"
    rows = [f"{letter} {letter} {letter},1,{i % 4},{i % 3}" for i, letter in enumerate(letters)]
    (tmp_path / "rated.csv").write_text("text,is_humor,humor_rating,offense_rating\n" + "\n".join(rows) + "\n")
    about = scripts.rated_texts.make(
        tmp_path / "rated.csv",
        tmp_path / "pairs",
        model="bundled",
        prompt="Tell me a joke.",
        tokens=50,
        held_out=8,
        rounds=3,
        clear=0.5,
    )
    train, test = (
        [json.loads(row) for row in (tmp_path / "pairs" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test")
    )
    assert (len(train), len(test)) == (about["train"], about["test"])
    texts = [[text for row in rows for text in row["responses"]] for rows in (train, test)]
    assert not set(texts[0]) & set(texts[1])
    assert len(set(texts[1])) == len(texts[1])
    pairs = [frozenset(row["responses"]) for row in train]
    assert len(set(pairs)) == len(pairs) > 6
    assert about["labels"]["humor"] == sum("humor" in row["preferred"] for row in train)


def a_run(name: str, scores: dict[tuple[float, float] | None, list[tuple[float, float]]]) -> Run:
    results, by_key = [], {}
    for alpha, rows in scores.items():
        for number, row in enumerate(rows):
            result = Result(f"p{number}", f"p{number}", alpha, 0, "", 1, "stop")
            results.append(result)
            by_key[result.key] = dict(zip(("warmth", "focus"), row, strict=True))
    return Run(name, ("warmth", "focus"), {}, results, by_key)


def test_what_is_kept_by_hand(scripts: Any) -> None:
    """In units of the own base's spread, 1 and 2: corners of 4 and 2 on its own base, of 2 and 2 on the other."""
    unguided = [(-1.0, -2.0), (1.0, 2.0)]
    own = a_run("own", {None: unguided, (1.0, 0.0): [(4.0, 0.0)] * 2, (0.0, 1.0): [(0.0, 4.0)] * 2})
    far = [(-900.0, 0.0), (900.0, 1.0)]  # of a damaged base: its spread is no unit
    other = a_run("other", {None: far, (1.0, 0.0): [(3.0, 1.0)] * 2, (0.0, 1.0): [(1.0, 5.0)] * 2})
    found = scripts.weak_to_strong.kept(own, other, 200)
    assert found["own"]["corners"]["warmth"] == {"value": 4.0, "low": 4.0, "high": 4.0}
    assert found["own"]["corners"]["focus"]["value"] == 2.0
    assert found["other"]["corners"]["warmth"]["value"] == 2.0
    assert found["kept"]["corners"]["warmth"]["value"] == 0.5
    assert found["kept"]["corners"]["focus"]["value"] == 1.0
    assert found["own"]["gain"]["value"] == pytest.approx(1.5)  # a quarter of the sum of the corners
    assert found["kept"]["gain"]["value"] == pytest.approx(2 / 3)
    assert found["other"]["unguided"] == {"warmth": 0.0, "focus": 0.5}
