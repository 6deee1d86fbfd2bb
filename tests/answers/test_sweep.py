"""The sweep on the official tiny models."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from parm_mlx.answers import sweep as sweep_module
from parm_mlx.answers.store import Result, RunFolder
from parm_mlx.answers.sweep import Job, Sweep, answer_all, answer_seed, plan, score_all
from parm_mlx.errors import RunError
from parm_mlx.guidance.guide import Guide
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.loading import load_with_tokenizers
from parm_mlx.guidance.prompts import Prompt, Prompter
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.guidance.templates import Content

PROMPTS = [Prompt("joke", "Tell me a joke."), Prompt("france", "What is the capital of France?"), Prompt("hi", "Hi")]
ALPHAS = [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
IDENTITY = {"objectives": ["harmless", "helpful"], "settings": {}}


@pytest.fixture(scope="module")
def parts(official: Path, official_parm: Path) -> tuple[GuidedModel, Sweep]:
    model, tokenizer, guide_tokenizer = load_with_tokenizers(official / "base_lm", official_parm)
    prompter = Prompter(tokenizer, guide_tokenizer)
    return model, Sweep(model, tokenizer, prompter, Sampling(temp=1.0), 12, batch_size=8)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "GROUP", 4)


def answers(results: Sequence[Result]) -> dict[object, str]:
    return {result.key: result.text for result in results}


def test_the_plan_has_every_answer_once_the_base_alone_first() -> None:
    groups = plan(PROMPTS, ALPHAS, [0, 1])
    jobs = [job for group in groups for job in group]
    assert len({job.key for job in jobs}) == len(jobs) == 3 * 2 * (1 + 3)
    assert [job.alpha for job in jobs[:6]] == [None] * 6
    assert [len(group) for group in groups] == [4, 2, 4, 4, 4, 4, 2]
    assert [job.key for job in jobs[6:9]] == [("joke", alpha, 0) for alpha in ALPHAS]


def test_random_numbers_are_of_prompt_and_seed_alone() -> None:
    assert answer_seed("Hi", 0) == answer_seed("Hi", 0)
    assert len({answer_seed("Hi", 0), answer_seed("Hi", 1), answer_seed("Ho", 0)}) == 3


def test_an_answer_does_not_depend_on_its_company(parts: tuple[GuidedModel, Sweep]) -> None:
    """All at once, each alone, in another order: the same texts."""
    _, sweep = parts
    jobs = [job for group in plan(PROMPTS, ALPHAS, [0, 1]) for job in group]
    together = answers(list(sweep([jobs], set())))
    assert together == answers(list(sweep([[job] for job in jobs], set())))
    assert together == answers(list(sweep([jobs[::-1]], set())))
    assert len(set(together.values())) > len(jobs) / 2


def test_what_is_done_is_skipped(parts: tuple[GuidedModel, Sweep], monkeypatch: pytest.MonkeyPatch) -> None:
    _, sweep = parts
    groups = plan(PROMPTS, ALPHAS, [0])
    asked: list[Job] = []
    original = Sweep._request
    monkeypatch.setattr(Sweep, "_request", lambda self, job: asked.append(job) or original(self, job))  # type: ignore[func-returns-value]
    done = {job.key for job in groups[0]} | {groups[1][0].key}
    found = list(sweep(groups, done))
    assert not done & {result.key for result in found}
    assert len(found) == 12 - len(done)
    assert [job.key for job in asked] == [job.key for group in groups[1:] for job in group]


class Broken:
    """Answers so many, then stops, as a process that is killed."""

    def __init__(self, sweep: Sweep, count: int) -> None:
        self.model = sweep.model
        self.sweep, self.count = sweep, count

    def __call__(self, *args: object) -> Iterator[Result]:
        for number, result in enumerate(self.sweep(*args)):  # type: ignore[arg-type]
            if number == self.count:
                raise KeyboardInterrupt
            yield result


def answer(folder: RunFolder, *arguments: Any) -> tuple[list[Result], list[Result]]:
    with folder.locked():
        return answer_all(folder, *arguments)


def test_a_run_that_is_broken_off_anywhere_ends_with_the_same_bytes(
    parts: tuple[GuidedModel, Sweep], tmp_path: Path
) -> None:
    _, sweep = parts
    groups = plan(PROMPTS, ALPHAS, [0])
    results, fresh = answer(RunFolder(tmp_path / "whole", IDENTITY), sweep, groups)
    assert [result.key for result in results] == [job.key for group in groups for job in group]
    assert {result.key for result in fresh} == {result.key for result in results}
    expected = (tmp_path / "whole" / "results.jsonl").read_bytes()
    for count in range(0, 12, 3):
        folder = RunFolder(tmp_path / f"run{count}", IDENTITY)
        with pytest.raises(KeyboardInterrupt):
            answer(folder, Broken(sweep, count), groups)
        assert len(folder.results()) == count
        again, fresh = answer(RunFolder(folder.path, IDENTITY), sweep, groups)
        assert (len(again), len(fresh)) == (12, 12 - count)
        assert (folder.path / "results.jsonl").read_bytes() == expected


def test_a_stop_keeps_what_has_ended(parts: tuple[GuidedModel, Sweep], tmp_path: Path) -> None:
    _, sweep = parts
    groups = plan(PROMPTS, ALPHAS, [0])
    seen: list[Result] = []

    def watch(items: Iterator[Result], _total: int, _label: str) -> Iterator[Result]:
        for result in items:
            seen.append(result)
            yield result

    folder = RunFolder(tmp_path / "run", IDENTITY)
    results, _ = answer(folder, sweep, groups, None, lambda: len(seen) >= 3, watch)
    assert 3 <= len(results) < 12
    assert list(folder.results().values()) == results


def lengths(prompts: Sequence[Content], texts: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def test_scores_are_kept_and_only_what_is_missing_is_scored(
    parts: tuple[GuidedModel, Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sweep = parts
    monkeypatch.setattr("parm_mlx.answers.sweep.CHUNK", 5)
    folder = RunFolder(tmp_path / "run", IDENTITY)
    results, _ = answer(folder, sweep, plan(PROMPTS, ALPHAS, [0]))
    calls: list[int] = []

    def failing(prompts: Sequence[Content], texts: Sequence[str]) -> list[float]:
        calls.append(len(texts))
        if len(calls) == 2:
            raise RunError("no answer")
        return lengths(prompts, texts)

    with pytest.raises(RunError, match="no answer"):
        score_all(folder, results, {"length": failing})
    assert len(folder.scores()) == 5
    scores = score_all(folder, results, {"length": failing})
    assert calls == [5, 5, 5, 2]
    assert scores == {result.key: {"length": len(result.text)} for result in results} == folder.scores()
    more = score_all(folder, results, {"length": failing, "tokens": lambda p, t: [1.0] * len(t)})
    assert (calls, more[results[0].key]) == ([5, 5, 5, 2, 0, 0, 0], {"length": len(results[0].text), "tokens": 1.0})


def test_answers_that_cannot_go_on_are_an_error_after_all_others(
    parts: tuple[GuidedModel, Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guide fails for one preference; the groups before, with it and after it are done nevertheless."""
    model, sweep = parts
    groups = plan(PROMPTS, ALPHAS, [0])
    original = type(model.guide).bind

    def bind(self: Guide, alpha: mx.array) -> Any:
        return original(self, mx.where(alpha[:, :1] == 0.5, mx.nan, alpha))

    monkeypatch.setattr(Guide, "bind", bind)
    found: list[Result] = []
    with pytest.raises(RunError, match="the logits of the guide are not finite"):
        found.extend(sweep(groups, set()))
    assert [r.alpha for r in found].count((0.5, 0.5)) == 0
    assert len(found) == len(PROMPTS) * 3
