"""Pairs of models whose tokenizers differ, from loading to chat; the PARM is random, so that it moves every answer."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlx_lm import generate

import parm_mlx
from parm_mlx.errors import InputError, ModelError
from parm_mlx.guidance.across import AcrossGuide, AcrossModel
from parm_mlx.guidance.chat import Conversation
from parm_mlx.guidance.explain import explain
from parm_mlx.guidance.generate import generate_batch
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.renumbered import RenumberedGuide
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.saved import load_conversation, save_conversation
from parm_mlx.guidance.session import Session, load_session
from parm_mlx.guidance.speculation import Drafting

QUESTIONS = "How do I cook rice?", "My friend is sad. What can I say? 😀", "Write <|end|> and </s>, then f(x)."
ALPHAS = (1.0, 0.0), (0.3, 0.7)


@pytest.fixture(scope="module")
def session(official_parm: Path) -> Session:
    return load_session("bundled", official_parm, across_candidates=10)


def requests(session: Session, beta: float | None = None) -> list[Request]:
    asked = [session.prompter([{"role": "user", "content": question}]) for question in QUESTIONS]
    return [Request(prompt, alpha, Sampling(temp=0), beta=beta) for prompt in asked for alpha in ALPHAS]


def test_a_parm_of_another_vocabulary_guides_by_itself(session: Session) -> None:
    assert isinstance(session.model, AcrossModel)
    assert isinstance(session.model.guide, AcrossGuide)
    assert any("another vocabulary" in note for note in session.notes)
    assert session.tokenizer.eos_token_ids == {1}
    answers = list(generate_batch(session.model, session.tokenizer, requests(session), 5))
    assert len({tuple(answer.tokens) for answer in answers}) > 3
    assert session.model.count is not None
    assert 0 < session.model.count.summary()["across_open"] < 0.1


def test_answers_of_a_batch_are_those_that_come_alone(session: Session) -> None:
    """Prompts are shared by preferences, and another one joins."""
    asked = [*requests(session, 0.5)[1::2], Request(requests(session)[0].prompt, None, Sampling(temp=0))]
    together = {each.index: each.tokens for each in generate_batch(session.model, session.tokenizer, asked, 8)}
    for index, request in enumerate(asked):
        (answer,) = generate_batch(session.model, session.tokenizer, [request], 8)
        assert together[index] == answer.tokens


def test_what_the_base_drafts_changes_nothing(session: Session) -> None:
    for request in requests(session)[:3]:
        (plain,) = generate_batch(session.model, session.tokenizer, [request], 10)
        (drafted,) = generate_batch(session.model, session.tokenizer, [request], 10, drafting=Drafting(None, 3))
        assert drafted.tokens == plain.tokens


def test_a_guide_of_another_vocabulary_cannot_draft(official_parm: Path) -> None:
    with pytest.raises(InputError, match="a guide of another vocabulary cannot draft"):
        load_session("bundled", official_parm, speculation="guide")


def test_it_can_be_switched_off(official_parm: Path) -> None:
    with pytest.raises(ModelError, match="different tokenizers"):
        load_session("bundled", official_parm, across="off")


@pytest.mark.parametrize("limits", [{"max_kv_size": 64}])
def test_prompt_caches_that_forget_are_refused(official_parm: Path, limits: Any) -> None:
    with pytest.raises(ModelError, match="the guide's prompt cache is recurrent, rotating or quantised"):
        load_session("bundled", official_parm, **limits)


def test_one_pass_for_both_is_refused(official_parm: Path) -> None:
    with pytest.raises(ModelError, match="different vocabularies, and cannot share a forward pass"):
        load_session("bundled", official_parm, share="on")


def test_what_the_guide_gave_each_token_is_told(session: Session) -> None:
    """Eq. 13, term by term; read at once, the numbers are those of decoding."""
    request = requests(session, 0.5)[1]
    (answer,) = generate_batch(session.model, session.tokenizer, [request], 12)
    reasons = explain(session.model, request, answer.tokens)
    assert [each.top[0][0] for each in reasons] == answer.tokens
    for each in reasons:
        best = [(dict(each.base_top).get(t), dict(each.guide_top).get(t), value) for t, value in each.top]
        found = {
            round(value - base - guide / 0.5, 3)
            for base, guide, value in best
            if base is not None and guide is not None
        }
        assert len(found) <= 1  # −log Z, the same for all


def said(conversation: Conversation, question: str) -> str:
    return "".join(piece.text for piece in conversation.ask(question, Sampling(temp=0), 8))


def conversation_of(session: Session, alpha: Any = ALPHAS[0]) -> Conversation:
    return Conversation(session.model, session.tokenizer, session.prompter, alpha)


def test_a_chat_goes_on_as_if_it_were_read_again(session: Session, tmp_path: Path) -> None:
    """α is switched in the middle; the caches that are kept change nothing, nor does a file between."""
    names: dict[str, Any] = {"model": "x"}
    going_on = conversation_of(session)
    said(going_on, QUESTIONS[0])
    going_on.alpha = ALPHAS[1]
    said(going_on, QUESTIONS[1])
    settings: dict[str, float | None] = {"beta": 1.0, "temp": 0.0}
    save_conversation(tmp_path / "chat.json", going_on, names, settings)
    other = conversation_of(session)
    assert load_conversation(tmp_path / "chat.json", other, names) == settings
    assert other.alpha == ALPHAS[1]
    first = said(going_on, QUESTIONS[2])
    assert said(other, QUESTIONS[2]) == first
    assert going_on.last_question is not None
    assert other.last_question == going_on.last_question


def test_a_saved_chat_with_tokens_that_no_model_knows_is_refused(session: Session, tmp_path: Path) -> None:
    going_on = conversation_of(session)
    said(going_on, QUESTIONS[0])
    save_conversation(tmp_path / "chat.json", going_on, {}, {"beta": 1.0, "temp": 0.0})
    content = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
    content["asked"]["guide"][1] = 600  # the guide's vocabulary has 512
    (tmp_path / "chat.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="damaged"):
        load_conversation(tmp_path / "chat.json", conversation_of(session), {})


def test_mlx_lm_runs_it(official_parm: Path) -> None:
    """A prompt that mlx-lm reads is text to the guide."""
    model, tokenizer = parm_mlx.load("bundled", official_parm, alpha=[1, 0])
    messages = [{"role": "user", "content": QUESTIONS[0]}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert generate(model, tokenizer, prompt, max_tokens=6)


def turned(official: Path, folder: Path) -> Path:
    """The official base model under other ids: two words have changed places, in the vocabulary and in its weights."""
    import shutil

    import mlx.core as mx

    shutil.copytree(official / "base_lm", folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    names = list(content["model"]["vocab"])
    a, b = (content["model"]["vocab"][names[i]] for i in (300, 301))
    content["model"]["vocab"] |= {names[300]: b, names[301]: a}
    path.write_text(json.dumps(content), encoding="utf-8")
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    order = mx.arange(512)
    order[a], order[b] = b, a
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            weights[name] = weights[name][order]
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    return folder


def test_the_same_tokens_under_other_ids_are_eq_13(official: Path, official_parm: Path, tmp_path: Path) -> None:
    plain = load_session(official / "base_lm", official_parm)
    other = load_session(turned(official, tmp_path / "turned"), official_parm)
    assert isinstance(plain.model, GuidedModel)
    assert isinstance(other.model, AcrossModel)
    assert isinstance(other.model.guide, RenumberedGuide)
    for ours, theirs in zip(requests(plain), requests(other), strict=True):
        (expected,) = generate_batch(plain.model, plain.tokenizer, [ours], 12)
        (got,) = generate_batch(other.model, other.tokenizer, [theirs], 12)
        assert got.text == expected.text
        assert len(got.tokens) == len(expected.tokens)
