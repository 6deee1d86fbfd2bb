"""What passes cost, what follows for decoding one answer, and what is kept of it."""

import json
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest
from tiny import tiny_guided, tiny_shared

from parm_mlx.errors import InputError
from parm_mlx.guidance import costs
from parm_mlx.guidance.costs import LENGTHS, Costs, key, known, measure, recall, remember
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.session import Session, load_session
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.guidance.speculation import Drafting

PASSES = [1.0, 1.1, 1.3, 1.7, 2.1]


@pytest.mark.parametrize(
    ("fates", "drafting", "rounds"),
    [
        # Four kept drafts, two at a time: no token is drawn beyond them.
        ([(True, 1.0)] * 4, Drafting(None, 2), [(2, 2, 2), (2, 2, 2)]),
        # The second is wrong: the first is kept, the second replaced, the third drafted again.
        ([(True, 1.0), (False, 1.0), (True, 1.0)], Drafting(None, 3), [(3, 1, 2), (1, 1, 1)]),
        # 0.8 · 0.6 is below a half: two are drafted though four may be.
        ([(True, 0.8), (True, 0.6), (True, 0.9)], Drafting(None, 4), [(2, 2, 2), (1, 1, 1)]),
        ([(False, 0.4), (False, 0.4)], Drafting(None, 4), [(1, 0, 1), (1, 0, 1)]),
        ([], Drafting(None, 4), []),
    ],
)
def test_rounds_of_speculation_along_an_answer(
    fates: list[tuple[bool, float]], drafting: Drafting, rounds: list[tuple[int, int, int]]
) -> None:
    """Drafted, kept and gained tokens of each check."""
    assert costs._rounds(fates, drafting) == rounds


def test_another_way_must_be_faster_by_more_than_chance() -> None:
    plain = {"off": 1.0, "base": 2.0}
    assert Costs(PASSES, PASSES, per_token=plain | {"guide": 0.97}).drafter == "off"
    assert Costs(PASSES, PASSES, per_token=plain | {"guide": 0.88}).drafter == "guide"
    assert Costs(PASSES, PASSES, per_token={"off": 1.0, "guide": 0.85, "base": 0.8}).drafter == "base"
    assert not Costs(PASSES, PASSES, per_token={"off": 1.0, "apart": 0.97}).apart
    two_passes = Costs(PASSES, PASSES, per_token={"off": 1.0, "apart": 0.8, "guide": 0.78})
    assert two_passes.apart
    assert two_passes.drafter == "off", "it must be faster than two passes, too"
    assert str(two_passes) == "tokens/s 1 without drafts, 1.25 in two passes, 1.28 with guide drafts: two passes"
    assert not Costs(PASSES, PASSES, per_token={"off": 1.0}).apart


@pytest.mark.parametrize(
    ("family", "together", "tried"), [("llama", 1.1, False), ("llama", 1.5, True), ("mamba", 1.5, False)]
)
def test_drafts_are_not_tried_where_they_could_not_pay(
    family: str, together: float, tried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass over twelve tokens takes 2.1 of one: even if all are kept, a token costs 1 + 2.1 / 12 = 1.175.

    Plain decoding at 1.1 is less, at 1.5 is not. What mamba has read of drafts that are not kept is read again.
    """
    seconds = {(name, n): t for name in ("base", "guide") for n, t in zip(LENGTHS, PASSES, strict=True)}
    seconds |= {("off", 1): together, ("apart", 1): together}
    monkeypatch.setattr(costs, "pass_seconds", lambda *_: seconds)
    found = measure(tiny_shared(family), [PromptTokens([5, 6, 7], [5, 6, 7])])
    assert (found.base, found.guide, found.per_token["off"], found.per_token["apart"]) == (
        PASSES,
        PASSES,
        *[together] * 2,
    )
    assert found.per_token.keys() == {"off", "apart"} | ({"guide", "base"} if tried else set())
    assert found.kept.keys() == ({"guide", "base"} if tried else set())


def test_the_price_of_drafts_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """One draft at a time, all kept: each token takes a pass of the drafter and one of the checker, 1 + 1."""
    seconds = {(name, n): t for name in ("base", "guide") for n, t in zip(LENGTHS, PASSES, strict=True)}
    monkeypatch.setattr(costs, "pass_seconds", lambda *_: seconds | {("off", 1): 10.0})
    monkeypatch.setattr(costs, "_fates", lambda *_: [{"guide": (True, 1.0), "base": (False, 1.0)}] * 4)
    monkeypatch.setattr(costs, "_drafted_seconds", lambda *_: {})
    found = measure(tiny_guided("llama"), [PromptTokens([5], [5])], tokens=1)
    assert found.per_token == {"off": 10.0, "guide": 2.0, "base": 2.0}
    assert found.kept == {"guide": 1.0, "base": 0.0}
    found = measure(tiny_guided("llama"), [PromptTokens([5], [5])], tokens=2)
    assert found.per_token["guide"] == (4 * 1 + 2 * 1.1) / 4
    assert found.per_token["base"] == pytest.approx((7 * 1 + 3 * 1.1 + 1) / 4), "drafted 2, 2, 2 and 1, one token each"


@pytest.mark.parametrize(
    ("plain", "kept", "tried"),
    [(10.0, 1, ["guide", "base"]), (10.0, 2, ["guide"]), (1.4, 1, ["guide", "base"]), (1.2, 1, [])],
)
def test_what_promises_to_pay_is_tried_out(
    plain: float, kept: int, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve drafts of the guide, all kept, cost 1 + 2.1 / 12 = 1.175 a token. The base drafts four at a time.

    If all of these are kept they cost (4 + 1.3) / 4 = 1.33, less than 1.3 times as much; if one in two is, they do not.
    """
    seconds = {(name, n): t for name in ("base", "guide") for n, t in zip(LENGTHS, PASSES, strict=True)}
    monkeypatch.setattr(costs, "pass_seconds", lambda *_: seconds | {("off", 1): plain})
    fates = [{"guide": (True, 1.0), "base": (i % kept == 0, 0.8)} for i in range(24)]
    monkeypatch.setattr(costs, "_fates", lambda *_: fates)
    asked = []

    def try_out(_model: Any, _prompts: Any, _ends: Any, ways: dict[str, Drafting]) -> dict[str, float]:
        asked.extend(ways)
        assert all(drafting.by_guide == (name == "guide") for name, drafting in ways.items())
        return dict.fromkeys(ways, 0.5)

    monkeypatch.setattr(costs, "_drafted_seconds", try_out)
    found = measure(tiny_guided("llama"), [PromptTokens([5], [5])])
    assert asked == tried
    assert [name for name in ("guide", "base") if found.per_token.get(name) == 0.5] == tried


def test_drafts_are_tried_out_by_speculation() -> None:
    model, prompt = tiny_guided("llama"), PromptTokens([5, 6, 7], [5, 6, 7])
    ways = {"guide": Drafting(None, 3, by_guide=True), "base": Drafting(None, 3)}
    found = costs._drafted_seconds(model, [prompt, prompt], frozenset(), ways)
    assert found.keys() == ways.keys()
    assert all(0 < seconds < 1 for seconds in found.values())
    assert costs._drafted_seconds(model, [prompt], frozenset(), {}) == {}


def test_no_more_tokens_are_decoded_than_there_is_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "SECONDS", 0.0)
    found = measure(tiny_guided("llama"), [PromptTokens([5, 6], [5, 6])])
    assert found.drafter == "off"
    assert not found.kept


def test_what_is_measured_is_what_speculation_does() -> None:
    """The kept share of drafts is predicted from plain greedy decoding alone."""
    from itertools import islice

    from parm_mlx.guidance.prefill import prefill
    from parm_mlx.guidance.sampling import Sampling
    from parm_mlx.guidance.speculation import Speculation

    model = tiny_guided("llama")
    fates = list(costs._fates(model, PromptTokens([5, 6, 7], [5, 6, 7]), frozenset(), inf))
    for name in ("guide", "base"):
        rounds = costs._rounds([fate[name] for fate in fates], Drafting(None))
        cache = model.make_cache()
        last = prefill(model, cache, [5, 6, 7], [5, 6, 7])
        speculation = Speculation(model, cache, last, Drafting(None, by_guide=name == "guide"), Sampling())
        whole = rounds[:-1]  # the last one ends with the answer, not with the drafter
        list(islice(speculation, sum(tokens for _, _, tokens in whole)))
        count = speculation.count
        assert (count.checks, count.drafted, count.accepted) == (
            len(whole),
            *(sum(column) for column in list(zip(*whole, strict=True))[:2]),
        )


def test_real_passes_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Base and guide each read every number of tokens."""
    model, read = tiny_guided("llama"), defaultdict[int, set[int]](set)
    run = type(model.base).__call__

    def counted(self: Any, inputs: mx.array, **others: Any) -> mx.array:
        read[id(self)].add(inputs.shape[1])
        return cast(mx.array, run(self, inputs, **others))

    monkeypatch.setattr(type(model.base), "__call__", counted)
    found = measure(model, [PromptTokens([5, 6, 7], [8, 9])])
    assert set(LENGTHS) <= read[id(model.base)] & read[id(model.guide.model)]
    assert len(found.base) == len(found.guide) == len(LENGTHS)
    assert all(seconds > 0 for seconds in found.base + found.guide)
    assert found.per_token["off"] > 0


def test_costs_are_kept_by_machine_and_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = Costs(PASSES, PASSES, {"guide": 0.9}, {"off": 2.0, "guide": 1.0})
    name = key({"base": "aa"}, {"betas": (1.0,)})
    assert name != key({"base": "ab"}, {"betas": (1.0,)}) != key({"base": "aa"}, {"betas": (2.0,)})
    assert recall(name) is None
    remember(name, "a + b", found)
    remember("other", "c + d", Costs(PASSES, PASSES, per_token={"off": 1.0}))
    assert recall(name) == found
    assert str(found) == "tokens/s 0.5 without drafts, 1 with guide drafts: guide drafts"
    assert dict(known()) == {"a + b": found, "c + d": Costs(PASSES, PASSES, per_token={"off": 1.0})}
    monkeypatch.setattr(costs, "device_name", lambda: "another chip")
    assert key({"base": "aa"}, {"betas": (1.0,)}) != name


WHOLE = {"base": PASSES, "guide": PASSES, "kept": {}, "per_token": {"off": 1.0}}


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{", '{"costs": {"base": [1]}}', '{"costs": []}', '{"costs": null}'),
        *(
            json.dumps({"costs": WHOLE | {"per_token": tokens}})
            for tokens in ({}, {"off": None}, {"off": 0}, {"off": "x"})
        ),
        *(
            json.dumps({"costs": WHOLE | {"per_token": {"off": 1.0, **more}}})
            for more in ({"banana": 0.1}, {"guide": -1})
        ),
        json.dumps({"costs": WHOLE | {"base": ["x"] * 5}}),
        json.dumps({"costs": WHOLE | {"more": 1}}),
    ],
)
def test_a_broken_record_is_measured_again(content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "parm-mlx" / costs.FOLDER / "x.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert recall("x") is None
    assert known() == []
    remember("x", "a + b", Costs(PASSES, PASSES, per_token={"off": 1.0}))
    assert recall("x") is not None


def test_processes_that_measure_at_the_same_time_keep_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = Costs(PASSES, PASSES, per_token={"off": 1.0})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: remember(f"{i:03}", str(i), found), range(40)))
    assert known() == [(name, found) for name in sorted(map(str, range(40)))]
    assert not list(tmp_path.rglob("*.partial"))


def test_of_one_name_the_latest_costs_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for seconds, name in ((1.0, "b"), (2.0, "a")):
        remember(name, "base + parm", Costs(PASSES, PASSES, per_token={"off": seconds}))
    old = tmp_path / "parm-mlx" / costs.FOLDER / "b.json"
    os.utime(old, (1, 1))
    assert known() == [("base + parm", Costs(PASSES, PASSES, per_token={"off": 2.0}))]


def test_a_user_without_a_home_measures_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(costs, "cache_folder", homeless)
    remember("x", "a + b", Costs(PASSES, PASSES, per_token={"off": 1.0}))
    assert recall("x") is None
    assert known() == []


def test_a_cache_folder_that_cannot_be_written_does_no_harm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "parm-mlx").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remember("x", "a + b", Costs(PASSES, PASSES, per_token={"off": 1.0}))
    assert recall("x") is None
    assert (tmp_path / "parm-mlx").read_text() == "a file"


@pytest.fixture
def session(official: Path, official_parm: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Session:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return load_session(official / "arm_base", official_parm)


def test_the_choice_is_measured_once_and_kept(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    plain = {"off": 1.0, "apart": 0.8, "guide": 0.5}
    monkeypatch.setattr("parm_mlx.guidance.session.measure", lambda *_: Costs(PASSES, PASSES, {}, plain))
    assert session.drafting_alone(said.append) == Drafting(None, by_guide=True)
    assert isinstance(session.model, SharedModel)
    assert session.model.apart, "two passes are faster than one"
    assert len(said) == 1
    assert said[0].startswith("measuring once how fast these models are here")
    monkeypatch.setattr("parm_mlx.guidance.session.measure", None)
    assert session.drafting_alone(said.append) == Drafting(None, by_guide=True)
    assert len(said) == 1


def test_nothing_is_measured_where_all_is_said(official: Path, official_parm: Path) -> None:
    said: list[str] = []
    for settings, expected in (
        ({"speculation": "off"}, None),
        ({"speculation": "guide", "num_draft_tokens": 3}, Drafting(None, 3, by_guide=True)),
        ({"max_kv_size": 64}, None),
        ({"guidance": "one-pass"}, None),
    ):
        session = load_session(official / "arm_base", official_parm, **settings)  # type: ignore[arg-type]
        assert session.drafting_alone(said.append) == expected
    assert load_session(official / "base_lm", alone=True).drafting_alone(said.append) is None
    assert not said


def test_questions_that_a_model_cannot_read_are_no_error(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.prompter, "_limit", 3)
    with pytest.raises(InputError, match="tokens"):
        session.prompter("How do I keep a tomato plant alive?")
    assert session.drafting_alone() is None
