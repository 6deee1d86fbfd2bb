import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from parm_mlx.answers.sweep import Sweep
from parm_mlx.data.dataset import load_data
from parm_mlx.data.sample import Sampled, sample
from parm_mlx.errors import ConfigError, DataError, InputError, OutputError
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.named import BUNDLED_BASE
from parm_mlx.rewards.registry import Reward, load_rewards

QUESTIONS = ("How can I sleep better?", "What is good for a cough?", "How do I plant a rose?")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "questions.txt"
    file.write_text("\n".join(QUESTIONS), encoding="utf-8")
    return file


def rewards() -> dict[str, Reward]:
    return load_rewards({"warmth": "warmth", "detail": "detail"})


def sampled(questions: Path, out: Path, **settings: Any) -> Sampled:
    settings = {"num_samples": 3, "max_tokens": 24, "even_length": 1.0, "min_margin": ["0"], **settings}
    return sample(BUNDLED_BASE, rewards(), out, prompts=questions, **settings)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]


def test_pairs_are_of_answers_to_one_prompt_with_the_labels_of_their_scores(questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples"
    done = sampled(questions, out, pairs="all")
    scorers = rewards()
    assert done.pairs == len(rows(out)) > 0
    assert (done.prompts, done.answers) == (3, 9)
    for row in rows(out):
        assert row["prompt"] in QUESTIONS
        for name, label in row["preferred"].items():
            first, second = scorers[name]([row["prompt"]] * 2, row["responses"])
            assert label == int(first < second)
            assert row["margins"][name] == abs(first - second)
    labels = {name: sum(name in row["preferred"] for row in rows(out)) for name in scorers}
    assert done.labels == labels
    data = load_data(out / "pairs.jsonl")
    assert len(data.train) + len(data.valid) == done.pairs


def test_unfinished_answers_are_cut_and_their_end_is_not_learned(questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples"
    sampled(questions, out, pairs="all", max_tokens=12)
    results = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    whole = {result["text"].strip() for result in results if result["finish_reason"] == "stop"}
    cut = 0
    for row in rows(out):
        for response, ended in zip(row["responses"], row.get("ended", [True, True]), strict=True):
            assert ended == (response in whole)
            if not ended:
                cut += 1
                assert response[-1] in ".!?"
                assert any(result["text"].strip().startswith(response) for result in results)
    assert cut


def test_another_choice_of_pairs_uses_the_same_answers(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "samples"
    sampled(questions, out, pairs="all")
    every = rows(out)

    def none_left(self: Sweep, groups: Sequence[Any], done: Any, stopped: Any) -> Any:
        assert all(job.key in done for jobs in groups for job in jobs)
        return iter(())

    monkeypatch.setattr(Sweep, "__call__", none_left)
    done = sampled(questions, out, pairs="best")
    assert done.pairs == len(rows(out)) <= len(every)
    assert all(row in every for row in rows(out))
    with pytest.raises(OutputError, match="num_samples: 3, now 4"):
        sampled(questions, out, num_samples=4)


def test_an_interrupted_run_goes_on_to_the_same_pairs(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled(questions, tmp_path / "whole")
    whole = Sweep.__call__

    def two_answers(self: Sweep, *arguments: Any) -> Any:
        answers = whole(self, *arguments)
        yield from (next(answers), next(answers))
        raise KeyboardInterrupt

    monkeypatch.setattr(Sweep, "__call__", two_answers)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            sampled(questions, tmp_path / "parts")
    monkeypatch.setattr(Sweep, "__call__", whole)
    sampled(questions, tmp_path / "parts")
    for name in ("results.jsonl", "scores.jsonl", "pairs.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_system_prompts_take_turns_and_do_not_reach_the_pairs(questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples"
    sampled(questions, out, system_prompts=["none", "Be kind."], pairs="all")
    asked = [json.loads(line)["prompt"] for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    kind = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": QUESTIONS[0]}]
    assert asked[:3] == [QUESTIONS[0], kind, QUESTIONS[0]]
    assert all(isinstance(row["prompt"], str) for row in rows(out))


def test_the_model_writes_prompts_itself(tmp_path: Path) -> None:
    out = tmp_path / "samples"
    done = sample(BUNDLED_BASE, rewards(), out, magpie=3, num_samples=2, max_tokens=16, even_length=1.0)
    asked = {json.loads(line)["prompt"] for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()}
    assert done.prompts == len(asked) == 3
    assert all(prompt.strip() == prompt and "<|" not in prompt for prompt in asked)


def test_what_cannot_be_sampled_is_told(questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples"
    with pytest.raises(InputError, match="exclude each other"):
        sample(BUNDLED_BASE, rewards(), out, prompts=questions, magpie=3)
    with pytest.raises(InputError, match="prompts are missing"):
        sample(BUNDLED_BASE, rewards(), out)
    with pytest.raises(InputError, match="needs two answers"):
        sampled(questions, out, num_samples=1)
    with pytest.raises(InputError, match="temperature above 0"):
        sampled(questions, out, sampling=Sampling())
    with pytest.raises(ConfigError, match="no reward is called 'warm'"):
        sampled(questions, out, min_margin=["warm=1sd"])
    assert not out.exists()
    with pytest.raises(DataError, match="no two of the 9 answers make a pair"):
        sampled(questions, out, min_margin=["1000sd"])
    (out / "note.txt").write_text("mine", encoding="utf-8")
    other = tmp_path / "other"
    other.mkdir()
    (other / "note.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="not made it for a run of data sample"):
        sampled(questions, other)


def test_objectives_with_nothing_to_trade_are_warned_of() -> None:
    spread: Any = None
    done = Sampled(
        20, {"a": 20, "b": 20}, {}, spread, {("a", "length"): -0.8, ("b", "length"): 0.1}, {("a", "b"): (20, 1)}
    )
    agree, follows = done.warnings()
    assert agree.startswith("a and b disagree in 1 of 20 pairs")
    assert follows.startswith("a follows the length")


def test_answers_without_a_whole_sentence_are_one_line(questions: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of the \d+ answers has a whole sentence within 1 tokens"):
        sampled(questions, tmp_path / "samples", max_tokens=1)
